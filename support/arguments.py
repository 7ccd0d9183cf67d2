"""The command line: parsers whose complaints are one line, and flags that are made from a dataclass of settings."""

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from support.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s. A flag must be written out."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> None:
        raise UserError(message)


def number_from(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argument type: a number from `low` to `high`."""

    def number(word: str) -> float:
        value = kind(word)  # argparse answers what is no number
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{word} is not from {low} to {high}")
        return value

    return number


def parse_blocks(text: str | None) -> int | list[int] | None:
    """Blocks as one types them: how many of the first ("9"), a range from 0 ("3-8"), or a list ("0,4,8")."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d{1,4})-(\d{1,4})", text):
        return list(range(int(match[1]), int(match[2]) + 1))
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*,?", text):
        raise UserError(f"blocks '{text}' is no count (9), range (3-8) or list (0,4,8)")
    return [int(number) for number in text.split(",") if number] if "," in text else int(text)


def flag(default: Any, help: str, type: Callable = str, **options: Any) -> Any:
    """A field of a dataclass that is a flag, too. `options` are those of argparse, and `group`, which opens a group."""
    return dataclasses.field(default=default, metadata={"help": help, "type": type, **options})


def add_flags(parser: Parser, settings: type) -> None:
    """Adds a flag for each field of a dataclass: its name, its default and its help."""
    for field in dataclasses.fields(settings):
        options, default = dict(field.metadata), field.default  # for argparse
        if "group" in options:
            group = parser.add_argument_group(options.pop("group"))
        if default is not None:
            options["help"] += f" ({default})"
        if isinstance(default, bool):
            options["action"] = argparse.BooleanOptionalAction
            del options["type"]
        # The default is the dataclass's: what was not typed is not there.
        group.add_argument(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, **options)
