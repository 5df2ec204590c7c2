"""Rows of a table by number, and their gradient, on the GPU: the same bits in each run, as a loop on the host gives."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import Body
from xpnn.errors import ShapeError
from xpnn.half_precision import handles_half
from xpnn.ops.embedding import check_scatter
from xpnn_backends.cupy.kernels import THREADS, blocks_for, generic, in_order, launch

FLOATS = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}
"""dtype -> how many elements 16 bytes hold."""

INDICES = ("int64", "int32")

_ONE_BLOCK = 4096
"""So many positions are sorted by one block, in one launch."""

_STRIPES = 8
"""Stripes of a block of the sort: one for each of its warps."""

_MOST_BLOCKS = 1024
"""Blocks of the sort: each has a column of counters, and one block adds all of those up."""

_WORDS = (16, 8, 4, 2)
"""Bytes that `take_rows` may move at a time."""

_WIDTHS = [(dtype, width) for dtype, most in FLOATS.items() for width in (1, most)]

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    *[("embedding", "take_rows", (bytes_, index)) for bytes_ in _WORDS for index in INDICES],
    *[("embedding", "begin_sort", (index,)) for index in INDICES],
    ("embedding", "count_digits", ()),
    ("embedding", "counts_to_sums", ()),
    ("embedding", "place_by_digit", ()),
    *[("embedding", "sort_in_one_block", (index,)) for index in INDICES],
    *[("embedding", "add_runs", (dtype, width)) for dtype, width in _WIDTHS],
]


def _width(x: Any, features: int) -> int:
    """How many elements of each row of x may be moved at a time: 16 bytes of them, or one."""
    width = FLOATS[x.dtype.name]
    return width if features % width == 0 and x.data.ptr % 16 == 0 else 1


def _lane_bits(packs: int, most: int) -> int:
    """The binary logarithm of how many threads share a row of so many packs."""
    return min((packs - 1).bit_length(), most)


def _fits(x: Any, indices: Any) -> bool:
    return x.dtype.name in FLOATS and indices.dtype.name in INDICES


def _take_rows(table: Any, indices: Any) -> Any:
    """table[indices], for a table (length, features) and indices of any shape."""
    table, indices = in_order(table), in_order(indices)
    length, features = table.shape
    y = cupy.empty((*indices.shape, features), dtype=table.dtype)
    if y.size:
        row_bytes = features * table.dtype.itemsize
        # Words of as many bytes as divide a row and the address of the first one.
        word = next(size for size in _WORDS if row_bytes % size == 0 and table.data.ptr % size == 0)
        words = row_bytes // word
        lane_bits = _lane_bits(words, 8)
        blocks = blocks_for(indices.size << lane_bits)
        arguments = (table, indices, y, indices.size, length, words, np.int32(lane_bits))
        launch("embedding", "take_rows", (word, indices.dtype.name), blocks, THREADS, arguments)
    return y


def _sorted_positions(indices: Any, length: int) -> tuple[Any, Any]:
    """(rows, positions): the indices in ascending order, and where each was; equal ones in the order of positions.

    Indices out of range become `length`, and so come last.
    """
    count = indices.size
    index = indices.dtype.name
    passes = -(-length.bit_length() // 8)
    pairs = [tuple(cupy.empty(count, dtype=cupy.uint32) for _ in range(2)) for _ in range(2)]
    if count <= _ONE_BLOCK:
        stripe = _stripe_length(count, 1)
        arguments = (indices, *pairs[0], *pairs[1], count, stripe, length, np.int32(passes))
        launch("embedding", "sort_in_one_block", (index,), 1, THREADS, arguments)
        return pairs[passes % 2]
    blocks = min(-(-count // 2048), _MOST_BLOCKS)
    stripe = _stripe_length(count, blocks)
    counts = cupy.empty(256 * blocks, dtype=cupy.uint32)
    launch("embedding", "begin_sort", (index,), blocks_for(count), THREADS, (indices, *pairs[0], count, length))
    for number in range(passes):
        shift = np.int32(8 * number)
        source, target = pairs[number % 2], pairs[1 - number % 2]
        launch("embedding", "count_digits", (), blocks, THREADS, (source[0], counts, count, stripe, shift))
        launch("embedding", "counts_to_sums", (), 1, 1024, (counts, np.int32(counts.size)))
        arguments = (counts, *source, *target, count, stripe, shift)
        launch("embedding", "place_by_digit", (), blocks, THREADS, arguments)
    return pairs[passes % 2]


def _stripe_length(count: int, blocks: int) -> int:
    """How many positions a warp goes through: a multiple of 32."""
    return -(-count // (blocks * _STRIPES * 32)) * 32


@handles_half
def scatter_add(values: Any, indices: Any, length: int) -> tuple[Any, Any]:
    """By sorting the positions and adding up runs: no atomic additions of floats, and so no random order."""
    check_scatter(values, indices)
    if not _fits(values, indices) or max(length, indices.size) >= 2**32 - 1:
        return generic("scatter_add")(values, indices, length)
    dtype = values.dtype
    values, indices = in_order(values), in_order(indices)
    features = values.shape[-1]
    total = cupy.zeros((length, features), dtype=values.dtype)
    if values.size and length:
        rows, positions = _sorted_positions(indices, length)
        width = _width(values, features)
        packs = features // width
        lane_bits = _lane_bits(packs, 5)
        columns = min(-(-packs >> lane_bits), 65535)
        blocks = blocks_for(indices.size << lane_bits)
        arguments = (values, rows, positions, total, indices.size, length, packs, np.int32(lane_bits))
        launch("embedding", "add_runs", (values.dtype.name, width), (blocks, columns), THREADS, arguments)

    def vjp(dy: Any) -> tuple[Any, None]:
        return _take_rows(dy, indices).astype(dtype, copy=False), None

    return total, vjp


@handles_half
def embedding(table: Any, indices: Any) -> tuple[Any, Any]:
    """Whole rows are copied, 16 bytes at a time."""
    if table.ndim != 2:
        raise ShapeError(f"embedding: the table has shape {tuple(table.shape)}, wants (vocabulary, features)")
    if not _fits(table, indices):
        return generic("embedding")(table, indices)
    length, dtype = table.shape[0], table.dtype

    def vjp(dy: Any) -> tuple[Any, None]:
        return scatter_add(dy, indices, length)[0].astype(dtype, copy=False), None

    return _take_rows(table, indices), vjp


BODIES: dict[str, Body] = {"embedding": embedding, "scatter_add": scatter_add}
