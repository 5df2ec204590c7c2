"""Writing files so that a failure at any moment leaves the old file, or the new one, and never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

# What file systems answer that cannot synchronise a folder; the rename is then as durable as they make it.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name in the same folder, flush it to the disk, then rename it to `path`.

    A link is followed: the file that it points to is replaced. Raises OSError; the old file is then untouched and the
    temporary one gone.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, _CREATE, 0o666)
    try:
        with open(descriptor, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, target.stat().st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _synchronise_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError if a file could not be written at `path`; an existing one is left as it is.

    To be asked before long work whose result goes there.
    """
    target = _target(path)
    probe = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(probe, _CREATE, 0o666))
    probe.unlink()


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that a path leads to. Raises OSError if there is no folder for it, or something else in its place."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the name of a file", str(path))
    if target.exists() and not target.is_file():
        # A rename would put a file in the place of /dev/null.
        raise OSError(errno.EINVAL, "it is a device or a pipe; give the name of a file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"there is no folder {str(Path(path).parent)!r}; make it first", str(path)
        )
    return target


def _synchronise_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
