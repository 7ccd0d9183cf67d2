"""The command line: parsers whose complaints are one line, and flags that are made from a dataclass of settings."""

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any

from support.errors import UserError

# Each setting has a role, which decides its group in --help, and how tables, names and resuming treat it.
ROLES = {
    "run": "what to run (flags that take several values make a grid)",
    "data": "data (tables compare runs only where these are equal)",
    "variant": "attention transfer (the name of a run shows what is not the default)",
    "recipe": "recipe (tables compare runs where these are equal, or as published)",
    "machine": "machine (may be changed when a stopped run is resumed)",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s. A flag must be written out."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> None:
        raise UserError(message)


def number_from(kind: type, low: float, high: float = math.inf) -> Callable:
    """An argument type: a number from `low` to `high`."""

    def number(word: str) -> float:
        value = kind(word)  # argparse reports a word that is not a number.
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{word} is not from {low} to {high}")
        return value

    return number


def flag(role: str, default: Any, help: str, low: float = 0, high: float = math.inf, **options: Any) -> Any:
    """A field of a dataclass of settings, which is a flag too.

    `role` is one of `ROLES`. A number lies from `low` to `high`. The option `used_by` names the kinds of runs that use
    the setting, unless all do; the other options are argparse's.
    """
    assert role in ROLES, f"{role} is no role"
    return dataclasses.field(default=default, metadata={"role": role, "help": help, "range": (low, high), **options})


def names_of(settings: Any, role: str) -> list:
    """The names of the settings that have that role."""
    return [field.name for field in dataclasses.fields(settings) if field.metadata["role"] == role]


def words_of(settings: dict) -> list[str]:
    """The words by which these values of settings are typed."""
    words = []
    for name, value in settings.items():
        word = name.replace("_", "-")
        words += [f"--{word}" if value else f"--no-{word}"] if isinstance(value, bool) else [f"--{word}", str(value)]
    return words


def add_flags(parser: Parser, settings: type) -> None:
    """Adds a flag for each field of a dataclass of settings, in the group of its role."""
    groups = {role: parser.add_argument_group(title) for role, title in ROLES.items()}
    for field in dataclasses.fields(settings):
        options = {name: field.metadata[name] for name in ("choices", "nargs", "metavar") if name in field.metadata}
        kind = (typing.get_args(field.type) or [field.type])[0]  # This is int for int | None.
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = str if kind is str else number_from(kind, *field.metadata["range"])
            options.setdefault("metavar", {int: "N", float: "X"}.get(kind))
        default = "" if field.default is None else f" Default: {field.default}."
        # The defaults are the dataclass's: the parser leaves out what was not typed.
        options |= {"default": argparse.SUPPRESS, "help": field.metadata["help"] + default}
        groups[field.metadata["role"]].add_argument(f"--{field.name.replace('_', '-')}", **options)
