"""Where results go."""

from __future__ import annotations

import os
from collections.abc import Sequence

from xpnn.errors import DataError
from xpnn.files import check_writable


def check_destination(path: str, what: str, keep: Sequence[str] = ()) -> None:
    """Raise DataError if a file could not be written at `path`: asked before the work, not after it.

    Args:
        path: where a result is to go.
        what: the result, for the error.
        keep: files that must not be replaced by it.
    """
    if not path:
        raise DataError(f"cannot write {what}: the name of its file is empty")
    for other in keep:
        if os.path.realpath(path) == os.path.realpath(other):
            raise DataError(
                f"cannot write {what} to {path!r}: this command reads or writes that file; give another name"
            )
    try:
        check_writable(path)
    except OSError as error:
        raise DataError(f"cannot write {what} to {path!r}: {error.strerror or error}") from None
