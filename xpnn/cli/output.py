"""Where results go."""

from __future__ import annotations

from xpnn.errors import DataError
from xpnn.files import check_writable


def check_destination(path: str, what: str) -> None:
    """Raise DataError if a file could not be written at `path`: asked before the work, not after it."""
    try:
        check_writable(path)
    except OSError as error:
        raise DataError(f"cannot write {what} to {path!r}: {error.strerror or error}") from None
