"""Pooling on the GPU: one pass over x forward, one over dx backward, without atomic additions."""

from __future__ import annotations

import functools
import math
from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn.ops.pooling import check_pooling
from xpnn.ops.windows import Ints, Pairs, output_length
from xpnn_backends.cupy.kernels import THREADS, blocks_for, generic, in_order, launch

FLOATS = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}
"""dtype -> how many elements 16 bytes hold."""

_AXES = 3
"""Spatial axes that the kernels know; fewer are filled up in front with axes of length 1."""

_GLOBAL_THREADS = 256
_BUSY = 128
"""About so many blocks keep a GPU busy."""

_MOST = 2**31 - 1

_WIDTHS = [(dtype, width) for dtype, most in FLOATS.items() for width in (1, most)]
_TAPS = [(dtype, width, "uint8") for dtype, width in _WIDTHS] + [(dtype, 1, "int32") for dtype in FLOATS]
"""Which position in the window was the largest is one byte, where the window has no more positions than that."""

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    *[("pooling", name, parameters) for name in ("max_pool", "max_pool_gradient") for parameters in _TAPS],
    *[
        ("pooling", f"{name}{suffix}", parameters)
        for name in ("average_pool", "global_max_pool", "global_average_pool")
        for suffix in ("", "_gradient")
        for parameters in _WIDTHS
    ],
]


def _width(x: Any) -> int:
    """How many neighbouring channels of x may be moved at a time: 16 bytes of them, or one."""
    width = FLOATS[x.dtype.name]
    return width if x.shape[-1] % width == 0 and x.data.ptr % 16 == 0 else 1


@functools.lru_cache(maxsize=1024)
def _axis_arguments(lengths: Ints, window: Ints, stride: Ints, padding: Pairs) -> tuple[Any, ...]:
    """AXIS(depth), AXIS(height), AXIS(width) of the kernels."""
    axes = [
        (length, taps, step, pair[0], output_length(length, taps, step, pair))
        for length, taps, step, pair in zip(lengths, window, stride, padding, strict=True)
    ]
    axes = [(1, 1, 1, 0, 1)] * (_AXES - len(axes)) + axes
    return tuple(np.int32(setting) for axis in axes for setting in axis)


def _places(x: Any, window: Ints, stride: Ints, padding: Pairs) -> tuple[int, ...]:
    """The shape of the result."""
    lengths = x.shape[1:-1]
    return (x.shape[0], *map(output_length, lengths, window, stride, padding), x.shape[-1])


def _fits(x: Any, window: Ints, stride: Ints, padding: Pairs) -> bool:
    """Whether a kernel can do it: positions along an axis and in the window are counted with 32 bits."""
    if x.dtype.name not in FLOATS or len(window) > _AXES:
        return False
    reach = [length + sum(pair) + step for length, pair, step in zip(x.shape[1:-1], padding, stride, strict=True)]
    return bool(max(*reach, x.shape[-1], math.prod(window)) <= _MOST)


def _safe_scale(count: int) -> float:
    """A power of 2 such that `count` numbers that are multiplied by it have a sum which does not overflow."""
    return float(0.5 ** (count - 1).bit_length())


def _per_item(
    name: str, width: int, more: tuple[Any, ...], result: Any, given: tuple[Any, ...], rest: tuple[Any, ...]
) -> None:
    """Launch a kernel with one thread for each `width` channels of its result.

    Its parameters: `given`, the number of samples, the packs of channels of each position, and `rest`.
    """
    if not result.size:
        return
    packs = np.int32(result.shape[-1] // width)
    parameters = (result.dtype.name, width, *more)
    arguments = (*given, result.shape[0], packs, *rest)
    launch("pooling", name, parameters, blocks_for(result.size // width), THREADS, arguments)


@handles_half
def max_pool(x: Any, *, window: Ints, stride: Ints, padding: Pairs) -> tuple[Any, Any]:
    """Keeps one byte for each result, its place in the window: the backward pass reads neither x nor y."""
    check_pooling("max_pool", x, window, stride, padding)
    if not _fits(x, window, stride, padding):
        return generic("max_pool")(x, window=window, stride=stride, padding=padding)
    shape, dtype = x.shape, x.dtype
    axes = _axis_arguments(shape[1:-1], tuple(window), tuple(stride), tuple(padding))
    small = math.prod(window) <= 256
    tap = "uint8" if small else "int32"
    x = in_order(x)
    y = cupy.empty(_places(x, window, stride, padding), dtype=x.dtype)
    taps = cupy.empty(y.shape, dtype=tap)
    _per_item("max_pool", _width(x) if small else 1, (tap,), y, (x, y, taps), axes)

    def vjp(dy: Any) -> tuple[Any]:
        dy = in_order(dy)
        dx = cupy.empty(shape, dtype=dy.dtype)
        _per_item("max_pool_gradient", _width(dy) if small else 1, (tap,), dx, (dy, taps, dx), axes)
        return (dx.astype(dtype, copy=False),)

    return y, vjp


@handles_half
def average_pool(x: Any, *, window: Ints, stride: Ints, padding: Pairs, count_padding: bool = True) -> tuple[Any, Any]:
    """Nothing is kept."""
    check_pooling("average_pool", x, window, stride, padding)
    if not _fits(x, window, stride, padding):
        body = generic("average_pool")
        return body(x, window=window, stride=stride, padding=padding, count_padding=count_padding)
    shape, dtype = x.shape, x.dtype
    axes = _axis_arguments(shape[1:-1], tuple(window), tuple(stride), tuple(padding))
    same_counts = bool(count_padding) or not any(before or after for before, after in padding)
    settings = (*axes, np.bool_(same_counts), _safe_scale(math.prod(window)))
    x = in_order(x)
    y = cupy.empty(_places(x, window, stride, padding), dtype=x.dtype)
    _per_item("average_pool", _width(x), (), y, (x, y), settings)

    def vjp(dy: Any) -> tuple[Any]:
        dy = in_order(dy)
        dx = cupy.empty(shape, dtype=dy.dtype)
        _per_item("average_pool_gradient", _width(dy), (), dx, (dy, dx), settings)
        return (dx.astype(dtype, copy=False),)

    return y, vjp


def _fits_global(x: Any, mask: Any) -> bool:
    if x.dtype.name not in FLOATS or x.ndim < 3 or not x.size:
        return False
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != cupy.bool_):
        return False
    return bool(max(math.prod(x.shape[1:-1]), x.shape[-1]) <= _MOST)


def _launch_global(name: str, x: Any, mask: Any, y: Any, found: Any, more: tuple[Any, ...]) -> None:
    """Launch a kernel whose blocks have some channels of one sample each."""
    width = _width(x)
    packs = x.shape[-1] // width
    lane_bits = min((packs - 1).bit_length(), 5)
    # Few samples: more blocks, each with fewer channels. The number does not depend on the GPU, and so no sum does.
    while lane_bits > 1 and x.shape[0] * (packs >> lane_bits) < _BUSY:
        lane_bits -= 1
    chunks = -(-packs >> lane_bits)
    arguments = (
        *(x, mask, y, found, x.shape[0]),
        *map(np.int32, (math.prod(x.shape[1:-1]), packs, lane_bits)),
        *more,
    )
    blocks = blocks_for(x.shape[0] * chunks, 1)
    launch("pooling", name, (x.dtype.name, width), blocks, _GLOBAL_THREADS, arguments)


def _gradient_global(name: str, shape: tuple[int, ...], dy: Any, given: tuple[Any, ...]) -> Any:
    """dx of the given shape, from dy and what the forward pass found."""
    dy = in_order(dy)
    dx = cupy.empty(shape, dtype=dy.dtype)
    width = _width(dy)
    sizes = map(np.int32, (math.prod(shape[1:-1]), shape[-1] // width))
    arguments = (dy, *given, dx, shape[0], *sizes)
    launch("pooling", name, (dy.dtype.name, width), blocks_for(dx.size // width), THREADS, arguments)
    return dx


@handles_half
def global_max_pool(x: Any, mask: Any = None) -> tuple[Any, Any]:
    """Keeps the position of each result: the backward pass does not read x."""
    if not _fits_global(x, mask):
        return generic("global_max_pool")(x, mask)
    shape, dtype = x.shape, x.dtype
    x = in_order(x)
    y = cupy.empty((shape[0], shape[-1]), dtype=x.dtype)
    best = cupy.empty(y.shape, dtype=cupy.int32)
    _launch_global("global_max_pool", x, None if mask is None else in_order(mask), y, best, ())

    def vjp(dy: Any) -> tuple[Any, None]:
        dx = _gradient_global("global_max_pool_gradient", shape, dy, (best,))
        return dx.astype(dtype, copy=False), None

    return y, vjp


@handles_half
def global_average_pool(x: Any, mask: Any = None) -> tuple[Any, Any]:
    """Keeps how many positions of each sample count."""
    if not _fits_global(x, mask):
        return generic("global_average_pool")(x, mask)
    shape, dtype = x.shape, x.dtype
    x = in_order(x)
    mask = None if mask is None else in_order(mask)
    y = cupy.empty((shape[0], shape[-1]), dtype=x.dtype)
    counts = cupy.empty(shape[0], dtype=cupy.int32)
    scale = _safe_scale(math.prod(shape[1:-1]))
    _launch_global("global_average_pool", x, mask, y, counts, (scale,))

    def vjp(dy: Any) -> tuple[Any, None]:
        dx = _gradient_global("global_average_pool_gradient", shape, dy, (mask, counts))
        return dx.astype(dtype, copy=False), None

    return y, vjp


BODIES: dict[str, Body] = {
    "max_pool": max_pool,
    "average_pool": average_pool,
    "global_max_pool": global_max_pool,
    "global_average_pool": global_average_pool,
}
