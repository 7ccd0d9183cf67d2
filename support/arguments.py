"""This module handles the command line: parsers with one-line errors, and flags made from a dataclass of settings."""

import argparse
import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any

from support.errors import UserError

# Each setting has a role, which decides its group in --help, and how tables, run names and resuming treat it.
ROLES = {
    "run": "what to run (flags that take several values make a grid)",
    "data": "data (tables compare runs only where these are equal)",
    "variant": "attention transfer (a run's name shows values other than the default)",
    "recipe": "recipe (tables compare runs where these are equal, or as published)",
    "machine": "machine (may be changed when a stopped run is resumed)",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s. Flags cannot be abbreviated."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> None:
        raise UserError(message)


def number_from(kind: type, low: float, high: float = math.inf) -> Callable:
    """Returns an argument type: a number from `low` to `high`."""

    def number(word: str) -> float:
        value = kind(word)  # argparse reports a word that is not a number.
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{word} is not between {low} and {high}")
        return value

    return number


def flag(role: str, default: Any, help: str, low: float = 0, high: float = math.inf, **options: Any) -> Any:
    """Returns a field for a dataclass of settings, from which `add_flags` makes a flag.

    `role` is one of `ROLES`. A number must be from `low` to `high`. The option `used_by` names the kinds of runs that
    use the setting, unless all do. The other options go to argparse.
    """
    assert role in ROLES, f"{role} is not a role"
    return dataclasses.field(default=default, metadata={"role": role, "help": help, "range": (low, high), **options})


def names_of(settings: Any, role: str) -> list:
    """Returns the names of the settings that have this role."""
    return [field.name for field in dataclasses.fields(settings) if field.metadata["role"] == role]


def words_of(settings: dict) -> list[str]:
    """Returns the words of a command line that sets these values."""
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
        kind = (typing.get_args(field.type) or [field.type])[0]  # For int | None this is int.
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = str if kind is str else number_from(kind, *field.metadata["range"])
            options.setdefault("metavar", {int: "N", float: "X"}.get(kind))
        default = "" if field.default is None else f" Default: {field.default}."
        # The dataclass holds the defaults. The parser leaves out flags that were not typed.
        options |= {"default": argparse.SUPPRESS, "help": field.metadata["help"] + default}
        groups[field.metadata["role"]].add_argument(f"--{field.name.replace('_', '-')}", **options)
