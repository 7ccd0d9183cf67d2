"""Files are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from support.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to. If all goes well, the file is moved to `path`, and otherwise it vanishes.

    It raises a `UserError` if the disk is full or if one cannot write there, where possible before the caller's work.
    """
    if not path.name or path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the path of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary folder is beside the file, so that moving is instantaneous, and no other process uses it.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as own_folder:
            temporary = Path(own_folder, path.name)
            yield temporary
            umask = os.umask(0)  # The umask cannot be read without setting it.
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read.
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write {path}: {reason}; make room there, or choose another place "
            "(the variable TORCH_HOME moves the weights)"
        ) from error
