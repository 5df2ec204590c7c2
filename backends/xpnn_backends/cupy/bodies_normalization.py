"""Layer norm, RMS norm and batch norm by kernels of ours; see normalization.cu."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from xpnn.dispatch import OPS, Body
from xpnn.half_precision import handles_half
from xpnn.ops.standardization import check_vectors
from xpnn_backends.cupy.bodies_activations import PACKS, ceil_divide
from xpnn_backends.cupy.kernels import THREADS, blocks_for, generic, in_order, launch

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_HALVES = ("float16", "bfloat16")
_PAIRS = [(dtype, dtype) for dtype in _FLOATS] + [(dtype, "float32") for dtype in _HALVES]
"""dtypes of x and of the weights."""
_BATCH_FLOATS = ("float32", *_HALVES)
_BATCH_PAIRS = [pair for pair in _PAIRS if pair[0] in _BATCH_FLOATS]

_WARP = 32
_WARP_FEATURES = 1024
"""Up to so many features, a warp does a row that is not held."""
_BLOCK_HELD = 4
"""Packs of a row that a thread holds, where a block of 256 threads does it."""


def _warp_held(pack: int) -> int:
    """Packs of a row that a lane holds, where a warp does it: half precision needs more registers, being widened."""
    return 8 if pack < 8 else 4


def _teams(pack: int) -> list[tuple[int, int, int]]:
    """(threads for a row, packs that each holds, elements of a pack): all that the kernels on rows are made for."""
    held = [(_WARP, _warp_held(pack), pack), (THREADS, _BLOCK_HELD, pack)]
    return [*held, (THREADS, 0, pack), (_WARP, 0, 1), (THREADS, 0, 1)]


def _team(features: int, width: int) -> tuple[int, int, int]:
    """The one of `_teams` that does rows of so many features, of which `width` may be moved at a time."""
    packs = features // width
    if width > 1 and packs <= _WARP * _warp_held(width):
        return _WARP, _warp_held(width), width
    if width > 1 and packs <= THREADS * _BLOCK_HELD:
        return THREADS, _BLOCK_HELD, width
    return _WARP if width == 1 and features <= _WARP_FEATURES else THREADS, 0, width


KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    *(
        ("normalization", name, (*pair, *team, centre))
        for name in ("row_norm_forward", "row_norm_backward")
        for pair in _PAIRS
        for team in _teams(PACKS[pair[0]])
        for centre in (False, True)
    ),
    *(
        ("normalization", "row_norm_parameter_sums", (dtype, centre, width))
        for dtype in _FLOATS
        for centre in (False, True)
        for width in (1, PACKS[dtype])
    ),
    *(("normalization", "add_parts", ("float32", dtype)) for dtype in ("float32", *_HALVES)),
    *(("normalization", "add_parts", ("float64", dtype)) for dtype in _FLOATS),
    *(("normalization", "batch_norm_sums", (dtype, width)) for dtype in _BATCH_FLOATS for width in (1, PACKS[dtype])),
    ("normalization", "batch_norm_statistics", ()),
    *(
        ("normalization", name, (*pair, relu, width))
        for name in ("batch_norm_apply", "batch_norm_backward")
        for pair in _BATCH_PAIRS
        for relu in (False, True)
        for width in (1, PACKS[pair[0]])
    ),
    *(
        ("normalization", "batch_norm_gradient_sums", (dtype, relu, width))
        for dtype in _BATCH_FLOATS
        for relu in (False, True)
        for width in (1, PACKS[dtype])
    ),
]

_LINE = 128
"""Bytes that the blocks which sum up columns have side by side: what memory is read by."""

_ROWS_EACH = 16
"""So many rows a thread sums up before the work is spread over more blocks."""

_MOST_PARTS = 1024
"""Blocks that sum up columns. Not so many on a larger GPU: the sums are the same bits on all of them."""


def _launch(name: str, parameters: tuple[Any, ...], blocks: Any, *arguments: Any, threads: int = THREADS) -> None:
    launch("normalization", name, parameters, blocks, threads, arguments)


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _dtypes(x: Any, *vectors: Any) -> tuple[str, str] | None:
    """(dtype of x, dtype of the vectors that are given), or None if no kernel has them."""
    given = {str(vector.dtype) for vector in vectors if vector is not None} or {str(x.dtype)}
    pair = (str(x.dtype), given.pop())
    return pair if not given and pair in _PAIRS else None


class _Blocks(NamedTuple):
    """How blocks share a matrix: `across` threads of each side by side, the others below them; see `Columns`."""

    grid: tuple[int, int]
    threads: int
    across: np.int32


def _width(features: int, *arrays: Any) -> int:
    """How many elements of a row may be moved at a time, by addresses: 16 bytes of the first array, or one."""
    pack = PACKS[str(arrays[0].dtype)]
    fits = all(array is None or array.data.ptr % (pack * array.itemsize) == 0 for array in arrays)
    return pack if features % pack == 0 and fits else 1


def _blocks_of_sums(rows: int, features: int, width: int, itemsize: int) -> _Blocks:
    """Blocks that sum up columns: narrow and high, so that there are few sums to add up again."""
    packs = features // width
    across = min(packs, _LINE // (width * itemsize))
    levels = min(THREADS // across, 1 << (rows - 1).bit_length())
    wide = ceil_divide(packs, across)
    parts = max(1, min(ceil_divide(rows, levels * _ROWS_EACH), _MOST_PARTS // wide))
    return _Blocks((wide, parts), across * levels, np.int32(across))


def _blocks_of_parts(sums: Any) -> _Blocks:
    """Blocks that add up the parts of sums (2, parts, features); each adds up all parts of its columns."""
    _, parts, features = sums.shape
    blocks = _blocks_of_sums(parts, features, 1, 2 * sums.itemsize)
    return blocks._replace(grid=(blocks.grid[0], 1))


def _blocks_of_rows(rows: int, features: int, width: int) -> _Blocks:
    """Blocks that go through a matrix element by element, whose threads keep to their columns."""
    packs = features // width
    across = min(packs, THREADS)
    if packs > THREADS:
        # As many for each block, in whole warps, so that each row of a block begins where a line of memory does.
        across = ceil_divide(ceil_divide(packs, ceil_divide(packs, THREADS)), 32) * 32
    levels = THREADS // across
    wide = ceil_divide(packs, across)
    high = max(1, min(ceil_divide(rows, levels), blocks_for(rows * packs) // wide, 65535))
    return _Blocks((wide, high), across * levels, np.int32(across))


def _row_norm(
    name: str, x: Any, weight: Any, bias: Any, axes: int, epsilon: float, centre: bool
) -> tuple[Any, Any] | None:
    """(y, (dy -> (dx, dweight, dbias))), or None if no kernel does it."""
    pair = _dtypes(x, weight, bias)
    if pair is None or x.size == 0 or not 1 <= axes <= x.ndim:
        return None
    shape = tuple(x.shape[-axes:])
    check_vectors(name, shape, weight=weight, bias=bias)
    features = math.prod(shape)
    rows = x.size // features
    x = in_order(x)
    weight, bias = (None if vector is None else in_order(vector) for vector in (weight, bias))
    team = _team(features, _width(features, x, weight, bias))
    y = cupy.empty_like(x)
    means = cupy.empty(rows, dtype=_wide(pair[0])) if centre else None
    deviations = cupy.empty(rows, dtype=_wide(pair[0]))
    arguments = (x, weight, bias, y, means, deviations, rows, features, float(epsilon))
    _launch("row_norm_forward", (*pair, *team, centre), blocks_for(rows, THREADS // team[0]), *arguments)

    def vjp(dy: Any) -> tuple[Any, Any, Any]:
        dy = in_order(dy.astype(x.dtype, copy=False))
        dx = cupy.empty_like(x)
        team = _team(features, _width(features, x, dy, weight))
        arguments = (dy, x, weight, means, deviations, dx, rows, features)
        _launch("row_norm_backward", (*pair, *team, centre), blocks_for(rows, THREADS // team[0]), *arguments)
        if weight is None and bias is None:
            return dx, None, None
        width = _width(features, x, dy)
        blocks_of_sums = _blocks_of_sums(rows, features, width, x.itemsize)
        sums = cupy.empty((2, blocks_of_sums.grid[1], features), dtype=_wide(pair[0]))
        _launch(
            "row_norm_parameter_sums",
            (pair[0], centre, width),
            blocks_of_sums.grid,
            *(dy, x, means, deviations, sums, rows, features, blocks_of_sums.across),
            threads=blocks_of_sums.threads,
        )
        dweight, dbias = (None if v is None else cupy.empty(shape, dtype=v.dtype) for v in (weight, bias))
        _add_parts(sums, None, None, dweight, dbias, pair[1])
        return dx, dweight, dbias

    return y, vjp


def _add_parts(sums: Any, along: Any, total: Any, dweight: Any, dbias: Any, dtype: str) -> None:
    """The two sums over the parts of `sums` (2, parts, features), into those of the arrays that are not None.

    Args:
        sums: float32 or float64.
        along: gets the first sum, in the same dtype.
        total: gets the second one.
        dweight: gets the first one as well, in `dtype`.
        dbias: gets the second one.
        dtype: that of dweight and dbias.
    """
    _, parts, features = sums.shape
    blocks = _blocks_of_parts(sums)
    _launch(
        "add_parts",
        (str(sums.dtype), dtype),
        blocks.grid,
        *(sums, along, total, dweight, dbias, parts, features, blocks.across),
        threads=blocks.threads,
    )


@handles_half
def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, axes: int = 1, epsilon: float = 1e-5) -> Any:
    """One kernel forward; backward one for dx and two for the vectors."""
    found = _row_norm("layer_norm", x, weight, bias, axes, epsilon, True)
    return generic("layer_norm")(x, weight, bias, axes=axes, epsilon=epsilon) if found is None else found


@handles_half
def rms_norm(x: Any, weight: Any = None, *, axes: int = 1, epsilon: float = 1e-5) -> Any:
    """As `layer_norm`, without a mean."""
    found = _row_norm("rms_norm", x, weight, None, axes, epsilon, False)
    if found is None:
        return generic("rms_norm")(x, weight, axes=axes, epsilon=epsilon)
    y, vjp = found
    return y, lambda dy: vjp(dy)[:2]


@handles_half
def batch_norm(
    x: Any, weight: Any = None, bias: Any = None, *, epsilon: float = 1e-5, activation: str | None = None
) -> Any:
    """Kernels for float32 and half precision; relu is done in them, another activation by its own op behind."""
    pair = _dtypes(x, weight, bias)
    if pair not in _BATCH_PAIRS or x.size == 0 or x.ndim == 0:
        return generic("batch_norm")(x, weight, bias, epsilon=epsilon, activation=activation)
    if activation not in (None, "relu"):
        (value, mean, variance), inner = batch_norm(x, weight, bias, epsilon=epsilon)
        y, activation_vjp = OPS[activation](value)

        def behind(cotangents: tuple[Any, Any, Any]) -> tuple[Any, ...]:
            dy, dmean, dvariance = cotangents
            found: tuple[Any, ...] = inner((activation_vjp(dy)[0], dmean, dvariance))
            return found

        return (y, mean, variance), behind
    channels = x.shape[-1]
    check_vectors("batch_norm", (channels,), weight=weight, bias=bias)
    relu = activation == "relu"
    rows = x.size // channels
    x = in_order(x)
    weight, bias = (None if vector is None else in_order(vector) for vector in (weight, bias))
    width = _width(channels, x)
    blocks = _blocks_of_sums(rows, channels, width, x.itemsize)
    parts = blocks.grid[1]
    sums = cupy.empty((2, parts, channels), dtype=cupy.float64)
    arguments: tuple[Any, ...] = (x, sums, rows, channels, blocks.across)
    _launch("batch_norm_sums", (pair[0], width), blocks.grid, *arguments, threads=blocks.threads)
    mean, variance = cupy.empty((2, channels), dtype=cupy.float32)
    exact_mean, inverse_deviation = cupy.empty((2, channels), dtype=cupy.float64)
    blocks = _blocks_of_parts(sums)
    arguments = (sums, mean, variance, exact_mean, inverse_deviation, parts, channels, rows, float(epsilon))
    _launch("batch_norm_statistics", (), blocks.grid, *arguments, blocks.across, threads=blocks.threads)
    y = cupy.empty_like(x)
    blocks = _blocks_of_rows(rows, channels, width)
    arguments = (x, weight, bias, exact_mean, inverse_deviation, y, rows, channels, blocks.across)
    _launch("batch_norm_apply", (*pair, relu, width), blocks.grid, *arguments, threads=blocks.threads)

    def vjp(cotangents: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        dy, dmean, dvariance = cotangents
        dy = in_order(dy.astype(x.dtype, copy=False))
        width = _width(channels, x, dy)
        blocks = _blocks_of_sums(rows, channels, width, x.itemsize)
        sums = cupy.empty((2, blocks.grid[1], channels), dtype=cupy.float64)
        arguments: tuple[Any, ...] = (dy, x, y, exact_mean, inverse_deviation, sums, rows, channels, blocks.across)
        _launch("batch_norm_gradient_sums", (pair[0], relu, width), blocks.grid, *arguments, threads=blocks.threads)
        along, total = cupy.empty((2, channels), dtype=cupy.float64)
        dweight, dbias = (None if v is None else cupy.empty(v.shape, dtype=v.dtype) for v in (weight, bias))
        _add_parts(sums, along, total, dweight, dbias, pair[1])
        dx = cupy.empty_like(x)
        dmean, dvariance = (
            None if d is None else in_order(d.astype(cupy.float32, copy=False)) for d in (dmean, dvariance)
        )
        blocks = _blocks_of_rows(rows, channels, width)
        found = (exact_mean, inverse_deviation, along, total, dmean, dvariance)
        arguments = (dy, x, y, weight, *found, dx, rows, channels, blocks.across)
        _launch("batch_norm_backward", (*pair, relu, width), blocks.grid, *arguments, threads=blocks.threads)
        return dx, dweight, dbias

    return (y, mean, variance), vjp


BODIES: dict[str, Body] = {"batch_norm": batch_norm, "layer_norm": layer_norm, "rms_norm": rms_norm}
