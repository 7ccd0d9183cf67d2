"""Files are written whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from safetensors import SafetensorError

from support.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such module.
    fcntl = None

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # The disk is full or broken.


def check_name(path: Path) -> None:
    """Raises a `UserError` for a path that safetensors cannot open because it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of {path} is not UTF-8, which safetensors needs; choose another name") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to. On success the file is moved to `path`, and otherwise it is deleted.

    Raises a `UserError` if the disk is full or `path` cannot be written, if possible before the caller's work.
    """
    if not path.name or path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the path of a file")
    check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary folder is next to the file, so moving takes no time. No other process uses the folder.
        own_folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as error:
        raise cannot_write(path, error.strerror) from error
    with own_folder:
        temporary = Path(own_folder.name, path.name)
        try:
            yield temporary
            umask = os.umask(0)  # The umask cannot be read without setting it.
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # safetensors creates files that only their owner can read.
            os.replace(temporary, path)
        except SafetensorError as error:
            raise cannot_write(path, error) from error
        except OSError as error:
            # The caller's work may fail for another reason, for example when it reads a file.
            is_of_writing = error.errno in DISK if error.filename is None else own_folder.name in str(error.filename)
            if not is_of_writing:
                raise
            raise cannot_write(path, error.strerror or error) from error


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Waits until no other process is making the file `path`, and then makes all others wait.

    The system releases a lock when its process ends for any reason. Where there are no locks, no process waits.
    """
    waiting_room = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(waiting_room, "ab")
    except OSError as error:
        raise cannot_write(path, error.strerror) from error
    with file:
        with suppress(OSError, AttributeError):  # Some disks have no locks, and Windows has no fcntl.
            fcntl.lockf(file, fcntl.LOCK_EX)
        was_removed = os.fstat(file.fileno()).st_nlink == 0  # The process before this one has removed it.
        try:
            with turn(path) if was_removed else nullcontext():
                yield
        finally:
            if not was_removed:
                with suppress(OSError):
                    waiting_room.unlink()


def cannot_write(path: Path, reason: object) -> UserError:
    advice = "free some space, or choose another folder (for weights, with the variable TORCH_HOME)"
    return UserError(f"cannot write {path}: {reason}; {advice}")
