"""Mistakes that a user can mend: one line on stderr, exit status 2, and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake that its user can mend. Its text is one line that says what is wrong and what to do."""


def unknown(kind: str, word: str, choices: Iterable[str]) -> UserError:
    """The error for a `word` that is none of `choices`; it names the nearest of them."""
    choices = list(choices)
    nearest = difflib.get_close_matches(word, choices, n=3, cutoff=0.5) or choices
    return UserError(f"unknown {kind} '{word}'; did you mean {' or '.join(nearest)}?")


def answer_mistakes(main: Callable[[], None]) -> None:
    """Runs a script's `main`. A `UserError` ends it with one line on stderr and exit status 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        # An error that was raised in a loader's worker brings the worker's traceback along, before its own line.
        last_line = str(error).rstrip().rpartition("\n")[2]
        print(f"error: {last_line.removeprefix('support.errors.UserError: ')}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
