"""Mistakes that a user can mend: one line on stderr, exit status 2, and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake that its user can mend. Its text is one line that says what is wrong and what to do."""


def unknown(kind: str, word: str, choices: Iterable[str]) -> UserError:
    """The error for a `word` that is none of `choices`; it names the nearest of them."""
    nearest = difflib.get_close_matches(word, choices, n=3, cutoff=0.5) or choices
    return UserError(f"unknown {kind} '{word}'; did you mean {' or '.join(nearest)}?")


def not_finite(what: str) -> UserError:
    """The error for a training that has run away."""
    return UserError(
        f"{what} not finite; start over with --fresh and a lower --lr, or, if AMP is on, go on with --amp off"
    )


TROUBLE = {  # what torch says, and what is to be done
    "out of memory": "the memory of the GPU is too small; lower --batch-size, or cut batches with --accumulate",
    "can't allocate memory": "the memory is too small; lower --batch-size, or cut batches with --accumulate",
    "DataLoader worker (": "a process that decodes images has died; use --workers 0, or give /dev/shm more room",
    "shared memory": "processes that decode images cannot hand them over; use --workers 0, or give /dev/shm more room",
    "Connection closed by peer": "another process of this training has ended; its own line says why",
}


def in_a_line(error: Exception) -> str:
    """What a mistake, or a known trouble of the machine's, says. Raises any other error again."""
    text = str(error).rstrip()
    if isinstance(error, UserError):
        # Raised in a loader's worker, it brings the worker's traceback along, before its own line.
        return text.rpartition("\n")[2].removeprefix("support.errors.UserError: ")
    for words, line in TROUBLE.items():
        if words in text and isinstance(error, RuntimeError):
            return line
    raise error


def answer_mistakes(main: Callable[[], None]) -> None:
    """Runs a script's `main`. A mistake ends it with one line on stderr and exit status 2, Ctrl-C with 130."""
    try:
        main()
    except Exception as error:
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
