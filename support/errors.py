"""If the user can fix a mistake, the script ends with exit status 2 and one line on stderr that says how."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake that the user can fix. Its text is one line that says what is wrong and what to do."""


def unknown(kind: str, word: str, choices: Iterable) -> UserError:
    """Returns the error for a `word` that is not among `choices`. It names the most similar ones."""
    nearest = difflib.get_close_matches(word, choices, n=3, cutoff=0.5) or choices
    return UserError(f"unknown {kind} '{word}'; did you mean {' or '.join(nearest)}?")


def not_finite(what: str) -> UserError:
    """Returns the error for a run whose numbers are no longer finite."""
    return UserError(
        f"{what} not finite; start over with --fresh and a lower --lr, or, if AMP is on, resume with --amp off"
    )


# If torch's error contains the first text, the user sees the second one.
TROUBLE = {
    "out of memory": "the GPU is out of memory; lower --batch-size, or split batches with --accumulate",
    "can't allocate memory": "there is not enough memory; lower --batch-size, or split batches with --accumulate",
    "DataLoader worker (": "a process that decodes images has died; use --workers 0, or give /dev/shm more space",
    "shared memory": "processes that decode images cannot share them; use --workers 0, or give /dev/shm more space",
    "Connection closed by peer": "another process of this run has ended; its own error line says why",
}


def in_a_line(error: Exception) -> str:
    """Returns the line for a mistake or for a known problem of the machine, and raises any other error again."""
    text = str(error).rstrip()
    if isinstance(error, UserError):
        # If the error was raised in a loader's worker, its text is the worker's traceback and then its own line.
        return text.rpartition("\n")[2].removeprefix("support.errors.UserError: ")
    if isinstance(error, OSError) and error.filename:
        return f"cannot use {error.filename}: {error.strerror}; fix this, or give another path"
    if isinstance(error, MemoryError):
        return TROUBLE["can't allocate memory"]
    for words, line in TROUBLE.items():
        if words in text and isinstance(error, RuntimeError):
            return line
    raise error


def answer_mistakes(main: Callable) -> None:
    """Runs a script's `main`. A mistake ends it with one line on stderr and status 2, and Ctrl-C with status 130."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # A name may have letters that stdout cannot encode.
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # The reader of stdout, for example `head`, has ended. There is nothing to report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        print(f"error: {in_a_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
