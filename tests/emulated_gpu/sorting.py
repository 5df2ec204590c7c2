"""CuPy sorts by Thrust, which is compiled into it together with a CUDA runtime of its own: here by NumPy instead."""

from __future__ import annotations

import ctypes
import math
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np


def _array(address: int, dtype: Any, shape: Sequence[int]) -> Any:
    """Device memory, which is memory of the host, as an array of NumPy's."""
    kind = np.dtype(dtype)
    buffer = (ctypes.c_char * (kind.itemsize * math.prod(shape))).from_address(address)
    return np.frombuffer(buffer, dtype=kind).reshape(tuple(shape))


def _wait() -> None:
    """Thrust waits for its stream: it is refused in a capture."""
    from cupy.cuda import stream
    from cupy_backends.cuda.api import runtime

    runtime.streamSynchronize(stream.get_current_stream().ptr)


def sort(dtype: Any, data: int, _keys: int, shape: Sequence[int]) -> None:
    _wait()
    values = _array(data, dtype, shape)
    values[...] = np.sort(values, axis=-1, kind="stable")


def argsort(dtype: Any, order: int, data: int, _keys: int, shape: Sequence[int]) -> None:
    _wait()
    values = _array(data, dtype, shape)
    places = np.argsort(values, axis=-1, kind="stable")
    _array(order, np.intp, shape)[...] = places
    values[...] = np.take_along_axis(values, places, axis=-1)


def lexsort(dtype: Any, order: int, keys: int, count: int, length: int) -> None:
    _wait()
    _array(order, np.intp, (length,))[...] = np.lexsort(_array(keys, dtype, (count, length)))


def install() -> None:
    """Stand in for cupy.cuda.thrust, before CuPy is imported."""
    module: Any = types.ModuleType("cupy.cuda.thrust")
    module.available = True
    module.get_build_version = lambda: 300000
    module.sort, module.argsort, module.lexsort = sort, argsort, lexsort
    sys.modules["cupy.cuda.thrust"] = module
