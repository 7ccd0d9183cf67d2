"""A mistake that a user can mend ends a script with exit status 2 and one line on stderr, which says what to do."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """This is a mistake that the user can mend. Its text is one line that says what is wrong and what to do."""


def unknown(kind: str, word: str, choices: Iterable) -> UserError:
    """Returns the error for a `word` that is none of `choices`. The error names the nearest of them."""
    nearest = difflib.get_close_matches(word, choices, n=3, cutoff=0.5) or choices
    return UserError(f"unknown {kind} '{word}'; did you mean {' or '.join(nearest)}?")


def not_finite(what: str) -> UserError:
    """Returns the error for a training whose numbers are no longer finite."""
    return UserError(
        f"{what} not finite; start over with --fresh and a lower --lr, or, if AMP is on, go on with --amp off"
    )


# If torch's error holds the first text, the user is told the second one.
TROUBLE = {
    "out of memory": "the memory of the GPU is too small; lower --batch-size, or cut batches with --accumulate",
    "can't allocate memory": "the memory is too small; lower --batch-size, or cut batches with --accumulate",
    "DataLoader worker (": "a process that decodes images has died; use --workers 0, or give /dev/shm more room",
    "shared memory": "processes that decode images cannot hand them over; use --workers 0, or give /dev/shm more room",
    "Connection closed by peer": "another process of this training has ended; its own line says why",
}


def in_a_line(error: Exception) -> str:
    """Returns the line for a mistake or for a known trouble of the machine. It raises any other error again."""
    text = str(error).rstrip()
    if isinstance(error, UserError):
        # If the error was raised in a loader's worker, its text is the worker's traceback and then its own line.
        return text.rpartition("\n")[2].removeprefix("support.errors.UserError: ")
    if isinstance(error, OSError) and error.filename:
        return f"cannot use {error.filename}: {error.strerror}; mend that, or name another place"
    if isinstance(error, MemoryError):
        return TROUBLE["can't allocate memory"]
    for words, line in TROUBLE.items():
        if words in text and isinstance(error, RuntimeError):
            return line
    raise error


def answer_mistakes(main: Callable) -> None:
    """Runs a script's `main`. A mistake ends it with one line on stderr and status 2, and Ctrl-C with status 130."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # A name may have letters that this place cannot print.
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # The one who reads, for example `head`, has gone. There is nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
