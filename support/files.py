"""Writing files: whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from support.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which becomes `path` if all goes well and vanishes if not.

    Raises a `UserError` if one cannot write there, where possible before the caller's work, or if the disk is full.
    """
    if not path.name or path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the path of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder below the same one makes renaming instantaneous, and no other process has this folder.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as own_folder:
            temporary = Path(own_folder) / path.name
            yield temporary
            umask = os.umask(0)  # It cannot be read without setting it.
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # safetensors makes files that their owner alone can read.
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "make room there, or choose another place (the variable TORCH_HOME moves the weights)"
        raise UserError(f"cannot write {path}: {reason}; {remedy}") from error
