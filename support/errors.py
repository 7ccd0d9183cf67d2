"""Mistakes that a user can mend: one line on stderr, exit status 2, and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable

import torch


class UserError(ValueError):
    """A mistake that its user can mend. Its text is one line that says what is wrong and what to do."""


MISTAKES = (UserError, torch.OutOfMemoryError)


def unknown(kind: str, word: str, choices: Iterable[str]) -> UserError:
    """The error for a `word` that is none of `choices`; it names the nearest of them."""
    nearest = difflib.get_close_matches(word, choices, n=3, cutoff=0.5) or choices
    return UserError(f"unknown {kind} '{word}'; did you mean {' or '.join(nearest)}?")


def not_finite(what: str, step: int) -> UserError:
    """The error for a training that has run away."""
    remedy = "start over with --fresh and a lower --lr, or, if AMP is on, go on with --amp off"
    return UserError(f"{what} not finite at step {step}; {remedy}")


def in_a_line(error: Exception) -> str:
    """What one of MISTAKES says."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the memory of the GPU is too small; lower --batch-size, or cut a training's batches with --accumulate"
    # An error that was raised in a loader's worker brings the worker's traceback along, before its own line.
    last_line = str(error).rstrip().rpartition("\n")[2]
    return last_line.removeprefix("support.errors.UserError: ")


def answer_mistakes(main: Callable[[], None]) -> None:
    """Runs a script's `main`. A mistake ends it with one line on stderr and exit status 2, Ctrl-C with 130."""
    try:
        main()
    except MISTAKES as error:
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
