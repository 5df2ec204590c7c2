"""Where results go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from xpnn.data.idx import is_idx
from xpnn.data.pictures import is_picture
from xpnn.errors import DataError
from xpnn.files import check_writable


def check_destination(path: str, what: str, keep: Sequence[str] = ()) -> None:
    """Raise DataError if a file could not be written at `path`: asked before the work, not after it.

    Args:
        path: where a result is to go.
        what: the result, for the error.
        keep: files that must not be replaced by it, and folders in which it must not become, or replace, a picture
            or an IDX file: these are read as data.
    """
    if not path:
        raise DataError(f"cannot write {what}: the name of its file is empty")
    target = Path(os.path.realpath(path))
    for other in keep:
        data = Path(os.path.realpath(other))
        if target == data:
            raise DataError(
                f"cannot write {what} to {path!r}: this command reads or writes that file; give another name"
            )
        if data in target.parents and (is_picture(target) or is_idx(target)):
            raise DataError(
                f"cannot write {what} to {path!r}: in the folder {other!r} that file would be one of the data; "
                "give another name"
            )
    try:
        check_writable(path)
    except OSError as error:
        raise DataError(f"cannot write {what} to {path!r}: {error.strerror or error}") from None
