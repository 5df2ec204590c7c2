"""Bodies of the norms and of clipping: a pass for the norm, with sums in float64, and a pass to clip."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import Body
from xpnn.ops.clipping import _MARGIN
from xpnn_backends.cupy.bodies_optimizers import is_number
from xpnn_backends.cupy.kernels import THREADS, blocks_for, generic, in_order, launch, number

FAMILY = "norms"

_DTYPES = ("float32", "float64", "float16", "bfloat16")

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    (FAMILY, name, (dtype,)) for name in ("norm_parts", "norm", "clip_by_norm", "clip_by_value") for dtype in _DTYPES
]
"""(family, kernel, template parameters) of all that is launched here."""

_NORM_THREADS = 512
"""NORM_THREADS in norms.cu."""

_MOST_PARTS = 256
"""Blocks for the norm of one array. Not so many on a larger GPU: the result is the same bits on all of them."""

_PART = 3
"""Numbers in a partial sum of squares."""


def _known(blocks: tuple[Any, ...]) -> bool:
    """True if the blocks are arrays of one dtype that the kernels know, with at least one element between them."""
    dtype = blocks[0].dtype
    return (
        dtype.name in _DTYPES
        and all(isinstance(x, cupy.ndarray) and x.dtype == dtype for x in blocks)
        and any(x.size for x in blocks)
    )


def _parts(blocks: tuple[Any, ...]) -> tuple[Any, np.int32]:
    """Partial sums of squares of all blocks (each in C order), and how many these are."""
    filled = [x for x in blocks if x.size]
    each = _NORM_THREADS * 16 // filled[0].itemsize
    counts = [min(-(-x.size // each), _MOST_PARTS) for x in filled]
    parts = cupy.empty((sum(counts), _PART), cupy.float64)
    start = 0
    for x, count in zip(filled, counts, strict=True):
        launch(FAMILY, "norm_parts", (x.dtype.name,), count, _NORM_THREADS, (x, x.size, parts[start : start + count]))
        start += count
    return parts, np.int32(start)


def _transformed(kernel: str, x: Any, arguments: tuple[Any, ...]) -> Any:
    """kernel(x, new array, count, *arguments)."""
    y = cupy.empty(x.shape, x.dtype)
    if x.size:
        blocks = blocks_for(x.size, THREADS * 16 // x.itemsize)
        launch(FAMILY, kernel, (x.dtype.name,), blocks, THREADS, (x, y, x.size, *arguments))
    return y


def _clipped(blocks: tuple[Any, ...], limit: Any) -> tuple[Any, ...] | None:
    """The blocks, made shorter by one factor; None if the generic body is to do it."""
    if not _known(blocks) or not is_number(limit):
        return None
    ordered = tuple(map(in_order, blocks))
    parts = _parts(ordered)
    limit_arguments = number(limit)
    return tuple(_transformed("clip_by_norm", x, (*parts, _MARGIN, *limit_arguments)) for x in ordered)


def _generic_vjp(name: str, *arguments: Any, **options: Any) -> Any:
    """The vjp of the op's generic body."""

    def vjp(cotangents: Any) -> Any:
        return generic(name)(*arguments, **options)[1](cotangents)

    return vjp


def global_norm(*blocks: Any) -> Any:
    """One pass over each block, and a kernel that adds up the parts."""
    if not _known(blocks):
        return generic("global_norm")(*blocks)
    value = cupy.empty((), blocks[0].dtype)
    parts = _parts(tuple(map(in_order, blocks)))
    launch(FAMILY, "norm", (value.dtype.name,), 1, THREADS, (*parts, value))
    return value, _generic_vjp("global_norm", *blocks)


def clip_by_norm(x: Any, limit: Any) -> Any:
    """One pass for the norm, one to clip."""
    clipped = _clipped((x,), limit)
    if clipped is None:
        return generic("clip_by_norm")(x, limit)
    return clipped[0], _generic_vjp("clip_by_norm", x, limit)


def clip_by_global_norm(*blocks: Any, limit: Any) -> Any:
    """One pass over each block for the norm, one to clip."""
    clipped = _clipped(blocks, limit)
    if clipped is None:
        return generic("clip_by_global_norm")(*blocks, limit=limit)
    return clipped, _generic_vjp("clip_by_global_norm", *blocks, limit=limit)


def clip_by_value(x: Any, limit: Any) -> Any:
    """One pass, where the generic body makes two."""
    if not _known((x,)) or not is_number(limit):
        return generic("clip_by_value")(x, limit)
    clipped = _transformed("clip_by_value", in_order(x), number(limit))
    return clipped, _generic_vjp("clip_by_value", x, limit)


BODIES: dict[str, Body] = {
    "global_norm": global_norm,
    "clip_by_norm": clip_by_norm,
    "clip_by_global_norm": clip_by_global_norm,
    "clip_by_value": clip_by_value,
}
"""op name -> body."""
