"""Small host arrays that a step takes to the device in each run, such as class weights.

A graph cannot copy from the host's memory. While a step is made into one, such an array travels once and is kept.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

_MOST_BYTES = 1 << 20
"""A larger array is data: it should lie on the device already."""


class _State(threading.local):
    def __init__(self) -> None:
        self.keeping = 0


_state = _State()
_kept: dict[Any, Any] = {}


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """A block in which `constant` finds what it made in an earlier one."""
    _state.keeping += 1
    try:
        yield
    finally:
        _state.keeping -= 1


def constant(x: Any, dtype: Any) -> Any | None:
    """x, which lies on the host, as an array of the current device that nobody may change; None outside of `kept`."""
    if not _state.keeping:
        return None
    array = np.asarray(x, dtype=None if dtype is None else np.dtype(dtype))
    if array.nbytes > _MOST_BYTES or array.dtype.kind not in "biufV":
        return None
    key = (cupy.cuda.runtime.getDevice(), array.dtype.char, array.shape, array.tobytes())
    found = _kept.get(key)
    if found is None:
        stream = cupy.cuda.get_current_stream()
        found = cupy.asarray(array)
        if not stream.is_capturing():
            stream.synchronize()  # steps on other streams may read it at once
            _kept[key] = found
    return found
