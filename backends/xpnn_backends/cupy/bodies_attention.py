"""Attention: in half precision through cuDNN, where the scores never leave the chip; else by products and kernels.

What cuDNN does not do (float32 and float64, masks, dropout) is done in tiles: some samples, or some heads of one
sample, with all their queries or a part of them. The products of a tile are cublasLt's; what lies between them is one
kernel forward and one backward (see attention.cu). For each score these read and write:

                                       reads                     writes
    forward     product q k^T                                    the score
                kernel                 the score                 the weight, in its place
                product with v         the weight
    backward    product q k^T                                    the score
                product dy v^T                                   the weight's gradient
                kernel                 both                      the weight and the score's gradient, in their places
                three products         each of the two; the second one twice

A tile is so small that most of it stays in the GPU's cache on the way from one of them to the next, so that its
weights are had again faster than they would be read; they are kept if one tile is all there is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from xpnn.dispatch import Body, namespace
from xpnn.half_precision import handles_half
from xpnn.ops.attention import BLOCK, check_mask, check_settings, check_shapes
from xpnn.random import RandomKey, mask_threshold
from xpnn_backends.cupy import products
from xpnn_backends.cupy.cudnn_definitions import Attention, Ints
from xpnn_backends.cupy.cudnn_graphs import ALIGNMENT, plan, ready, why_not
from xpnn_backends.cupy.kernels import blocks_for, generic, launch, number

_CUDNN_DTYPES = ("float16", "bfloat16")
"""In float32 cuDNN has no backward pass."""

_TILE_BYTES = 32 << 20
"""Scores of one tile: a cache of 50 MB holds most of them, and there are enough of them to keep a large GPU busy."""

_CAUSAL_PARTS = 4
"""Causal queries of more than one tile are done in so many parts, of which each skips the keys behind it: 5/8 of the
work is left."""

_QUERIES = 128
"""A part of the queries has a multiple of so many, if there is room: matrices like that are multiplied well."""

_PACKS = {"float32": 4, "float64": 2, "float16": 4, "bfloat16": 4}
"""dtype -> how many scores or weights a kernel moves at a time: 16 bytes of scores, which are float32 for halves."""

_WARP = 32
_WARP_HELD = {"float32": 8, "float64": 4, "float16": 8, "bfloat16": 8}
"""dtype -> packs of a row that each thread holds, if a warp does it: as many as there are registers for."""

_WARP_ROWS = 8
"""Rows that a block does at a time, if a warp does each."""

_BLOCK_HELD = 4
"""Packs of a row that each thread holds, if a block does it."""

_MOST_THREADS = 512
"""Of a block that does a row."""


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _kernels() -> list[tuple[str, str, tuple[Any, ...]]]:
    found: list[tuple[str, str, tuple[Any, ...]]] = []
    for dtype, pack in _PACKS.items():
        for row in ((_WARP_HELD[dtype], pack, False), (_BLOCK_HELD, pack, True), (0, pack, True)):
            for drops in (False, True):
                found.append(("attention", "attention_weights", (dtype, *row, drops)))
                found.append(("attention", "attention_gradient", (dtype, dtype, *row, drops, False)))
                found.append(("attention", "attention_gradient", (dtype, _wide(dtype), *row, drops, True)))
    return found


KERNELS: list[tuple[str, str, tuple[Any, ...]]] = _kernels()


@handles_half
def attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout_key: Any = None,
    dropout_rate: float = 0.0,
    block: int = BLOCK,
) -> tuple[Any, Any]:
    """cuDNN's kernels for float16 and bfloat16, without a mask and without dropout; else products and kernels of ours.

    cuDNN would add a mask to the scores, where a query that may look at no key gives NaN, and drop weights by random
    bits of its own. Its backward pass adds up dquery in an order that may differ from run to run.
    """
    settings: dict[str, Any] = {
        "causal": causal,
        "scale": scale,
        "dropout_key": dropout_key,
        "dropout_rate": dropout_rate,
        "block": block,
    }

    def without_cudnn() -> tuple[Any, Any]:
        return by_products(query, key, value, mask, **settings)

    if not _cudnn_handles(query, key, value) or mask is not None or dropout_rate != 0.0:
        return without_cudnn()
    check_shapes(query, key, value)
    check_settings(dropout_key, dropout_rate, block)
    arrays = query_read, key_read, value_read = _readable(query), _readable(key), _readable(value)
    definition = Attention(
        product="forward",
        dtype=query.dtype.name,
        query=_dims(query),
        key=_dims(key),
        value=_dims(value),
        strides=(_strides(query_read), _strides(key_read), _strides(value_read)),
        causal=causal,
        scale=1.0 / math.sqrt(query.shape[3]) if scale is None else float(scale),
    )
    forward = plan(definition)
    if forward is None:
        return without_cudnn()
    batch, queries, heads, _ = query.shape
    y = cupy.empty((batch, queries, heads, value.shape[3]), dtype=query.dtype)
    statistics = cupy.empty((batch, heads, queries), dtype=cupy.float32)
    forward.run(*arrays, y, statistics)

    def vjp(dy: Any) -> tuple[Any, ...]:
        backward = plan(definition._replace(product="backward"))
        if backward is None:
            gradients: tuple[Any, ...] = without_cudnn()[1](dy)
            return gradients
        results = [cupy.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        backward.run(*arrays, y, ready(dy.astype(query.dtype, copy=False)), statistics, *results)
        return (*results, None)

    return y, vjp


def _cudnn_handles(query: Any, key: Any, value: Any) -> bool:
    if query.dtype.name not in _CUDNN_DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        return False
    return query.size > 0 and key.size > 0 and value.size > 0 and why_not() is None


def _readable(x: Any) -> Any:
    """x as it lies, a slice of a larger array say, if cuDNN can read its vectors 16 bytes at a time; or a copy."""
    size = x.dtype.itemsize
    bytes_apart = x.strides[:3]
    in_place = x.strides[3] == size and x.data.ptr % ALIGNMENT == 0
    if in_place and all(step > 0 and step % ALIGNMENT == 0 for step in bytes_apart):
        return x
    return cupy.array(x, order="C", copy=True)


def _dims(x: Any) -> Ints:
    """(batch, time, heads, size) in cuDNN's order: (batch, heads, time, size)."""
    batch, time, heads, size = x.shape
    return batch, heads, time, size


def _strides(x: Any) -> Ints:
    """The strides in elements, in cuDNN's order."""
    batch, time, heads, size = (step // x.dtype.itemsize for step in x.strides)
    return batch, heads, time, size


# Without cuDNN


class _Tile(NamedTuple):
    """What is done at a time: some samples and groups (heads of keys), each from one number up to another.

    Either all groups are in it, or one sample. Of the queries there are number `start` to `stop` - 1, and of the keys
    the first `keys`: the only ones that they may look at.
    """

    first_sample: int
    last_sample: int
    first_group: int
    last_group: int
    start: int
    stop: int
    keys: int

    def of(self, x: Any) -> Any:
        """The part of an array (batch, groups, ...) that belongs to the tile's samples and groups."""
        return x[self.first_sample : self.last_sample, self.first_group : self.last_group]


def _tiles(shape: tuple[int, int, int, int, int], itemsize: int, causal: bool) -> list[_Tile]:
    """The tiles for scores (batch, groups, heads of a group, queries, keys); of the same heads, the last queries first.

    The last queries of causal attention look at all keys that any query looks at.
    """
    batch, groups, members, queries, keys = shape
    reached = min(queries, keys) if causal else keys
    fitting = max(1, _TILE_BYTES // (members * reached * itemsize))  # queries of one group
    part = queries
    if causal and batch * groups * queries > fitting:
        part = min(_ceil_divide(queries, _CAUSAL_PARTS * _QUERIES) * _QUERIES, queries)
    if part > fitting:
        part = fitting // _QUERIES * _QUERIES or fitting
    heads = min(batch * groups, max(1, fitting // part))
    samples = max(1, heads // groups)
    samples = _ceil_divide(batch, _ceil_divide(batch, samples))  # all tiles alike, rather than a small last one
    heads = min(heads, groups)
    heads = _ceil_divide(groups, _ceil_divide(groups, heads))
    return [
        _Tile(
            sample,
            min(sample + samples, batch),
            group,
            min(group + heads, groups),
            start,
            min(start + part, queries),
            min(start + part, reached) if causal else keys,
        )
        for sample in range(0, batch, samples)
        for group in range(0, groups, heads)
        for start in reversed(range(0, queries, part))
    ]


def _ceil_divide(count: int, each: int) -> int:
    return -(-count // each)


class _Rows(NamedTuple):
    """How a kernel shares out the rows of a tile.

    Attributes:
        row: its template parameters (packs held, elements of a pack, whether a block does a row).
        threads: of a block.
        blocks: how many.
    """

    row: tuple[int, int, bool]
    threads: int
    blocks: int


def _share_rows(rows: int, keys: int, dtype: str) -> _Rows:
    pack, held = _PACKS[dtype], _WARP_HELD[dtype]
    # A row that does not begin where a pack may begin has elements in one pack more.
    packs = _ceil_divide(keys if keys % pack == 0 else keys + pack - 1, pack)
    if packs <= _WARP * held:
        return _Rows((held, pack, False), _WARP * _WARP_ROWS, blocks_for(rows, _WARP_ROWS))
    if packs <= _MOST_THREADS * _BLOCK_HELD:
        threads = _WARP * _ceil_divide(packs, _WARP * _BLOCK_HELD)
        return _Rows((_BLOCK_HELD, pack, True), threads, blocks_for(rows, 1))
    return _Rows((0, pack, True), _MOST_THREADS, blocks_for(rows, 1))


class _Statistics(NamedTuple):
    """Of each query of each head: the largest score, and 1 / (the sum of exp(score - largest))."""

    largest: Any
    inverse: Any


class _Kernels:
    """The two kernels between the products, with all that they are told besides arrays."""

    def __init__(
        self,
        query: Any,
        key: Any,
        mask: Any,
        causal: bool,
        scale: float,
        dropout_key: RandomKey | None,
        dropout_rate: float,
        block: int,
    ) -> None:
        _, self._queries, self._heads, _ = query.shape
        self._keys = key.shape[1]
        self._members = self._heads // key.shape[2]
        self._dtype = query.dtype.name
        self._causal = np.int32(causal)
        self._mask = mask, *_mask_strides(mask, query, key)
        self._scale = scale
        self.drops = dropout_rate != 0.0 and dropout_key is not None
        self._dropout_key = dropout_key if self.drops and dropout_key is not None else RandomKey(0, 0, 0)
        self._threshold = mask_threshold(dropout_rate)
        self._block = min(block, self._queries)

    def weights(self, tile: _Tile, scores: Any, kept: Any, dropped: Any, statistics: _Statistics | None) -> None:
        """Launch `attention_weights`: `kept` gets the weights, `dropped` those that dropout leaves; or None."""
        plan, numbers = self._plan(tile, scores)
        largest, inverse = statistics or (None, None)
        arguments = (scores, kept, dropped, largest, inverse, *numbers)
        parameters = (self._dtype, *plan.row, self.drops)
        launch("attention", "attention_weights", parameters, plan.blocks, plan.threads, arguments)

    def gradient(
        self, tile: _Tile, given: Any, weight_gradients: Any, result: Any, used: Any, statistics: _Statistics | None
    ) -> None:
        """Launch `attention_gradient`: `result` gets the gradient of q k^T, `used` the weights as v was multiplied."""
        plan, numbers = self._plan(tile, weight_gradients)
        largest, inverse = statistics or (None, None)
        arguments = (given, weight_gradients, result, used, largest, inverse, *numbers)
        parameters = (self._dtype, given.dtype.name, *plan.row, self.drops, statistics is not None)
        launch("attention", "attention_gradient", parameters, plan.blocks, plan.threads, arguments)

    def _plan(self, tile: _Tile, scores: Any) -> tuple[_Rows, tuple[Any, ...]]:
        rows = scores.size // tile.keys
        numbers = (
            *self._mask,
            rows,
            tile.first_sample * self._heads + tile.first_group * self._members,
            np.int32(self._heads),
            np.int32(tile.start),
            np.int32(tile.stop - tile.start),
            np.int32(tile.keys),
            np.int32(self._queries),
            np.int32(self._keys),
            self._causal,
            self._scale,
            np.uint64(self._dropout_key.seed),
            np.uint64(self._dropout_key.stream),
            *number(self._dropout_key.step),
            np.uint32(self._threshold),
            np.int32(self._block),
            65536.0 / (65536 - self._threshold),
        )
        return _share_rows(rows, tile.keys, self._dtype), numbers


def _mask_strides(mask: Any, query: Any, key: Any) -> tuple[int, ...]:
    """How far apart bools of a mask are along (batch, heads, queries, keys); 0 where there is one for all."""
    if mask is None:
        return 0, 0, 0, 0
    shape = check_mask(namespace(query), mask, query, key)
    strides = (0,) * (4 - mask.ndim) + mask.strides
    return tuple(0 if length == 1 else step for length, step in zip(shape, strides, strict=True))


def by_products(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout_key: Any = None,
    dropout_rate: float = 0.0,
    block: int = BLOCK,
) -> tuple[Any, Any]:
    """The op by products of tiles and a kernel between them; see the top of this file.

    In half precision scores and sums are float32, weights and gradients of scores are rounded for their products.
    """
    if not _is_handled(query, key, value):
        return generic("attention")(
            query, key, value, mask, causal=causal, scale=scale, dropout_key=dropout_key, dropout_rate=dropout_rate,
            block=block,
        )  # fmt: skip
    check_shapes(query, key, value)
    check_settings(dropout_key, dropout_rate, block)
    factor = 1.0 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    kernels = _Kernels(query, key, mask, causal, factor, dropout_key, dropout_rate, block)
    dtype, wide = query.dtype, np.dtype(_wide(query.dtype.name))
    in_place = dtype == wide
    batch, length, heads, size = query.shape
    groups, value_size = key.shape[2], value.shape[3]
    members = heads // groups
    tiles = _tiles((batch, groups, members, length, key.shape[1]), wide.itemsize, causal)
    at_once = tiles[0].last_sample - tiles[0].first_sample
    queries, keys, values = (_by_head(x, groups, at_once) for x in (query, key, value))
    keeps = len(tiles) == 1
    statistics = None
    if not keeps:
        statistics = _Statistics(*(cupy.empty((batch, heads, length), dtype=wide) for _ in range(2)))
    kept: Any = None

    def scores_of(tile: _Tile) -> Any:
        return products.matmul(_rows(queries, tile), _turned(_keys(keys, tile)), out_dtype=wide)

    def place_like(scores: Any) -> Any:
        """Where weights, or the scores' gradients, go: in place of what they are made of, if that is of their dtype."""
        return scores if in_place else cupy.empty(scores.shape, dtype=dtype)

    y = cupy.empty((batch, groups, members, length, value_size), dtype=dtype)
    for tile in tiles:
        scores = scores_of(tile)
        weights = place_like(scores)
        if keeps:
            kept = weights
        if kernels.drops:
            # Dropped weights have a place of their own where the others are kept.
            factors = cupy.empty(weights.shape, dtype=dtype) if keeps else weights
            kernels.weights(tile, scores, kept, factors, statistics)
        else:
            factors = weights
            kernels.weights(tile, scores, weights, None, statistics)
        _multiply(factors, _keys(values, tile), tile.of(y)[:, :, :, tile.start : tile.stop])
        del scores, weights, factors  # the next tile may have their memory

    def vjp(dy: Any) -> tuple[Any, ...]:
        dy = _by_head(dy.astype(dtype, copy=False), groups, at_once)
        # Sums over several parts of the queries are rounded once.
        sums = wide if any(tile.start > 0 for tile in tiles) else dtype
        dqueries = cupy.empty((batch, groups, members, length, size), dtype=dtype)
        begin = cupy.empty if tiles[0].keys == key.shape[1] else cupy.zeros
        dkeys = begin((batch, groups, key.shape[1], size), dtype=sums)
        dvalues = begin((batch, groups, key.shape[1], value_size), dtype=sums)
        for tile in tiles:
            here = _rows(dy, tile)
            given = kept if keeps else scores_of(tile)
            dweights = products.matmul(here, _turned(_keys(values, tile)), out_dtype=wide)
            dscores = place_like(dweights)
            factors = given
            if not keeps:
                factors = place_like(given)
            elif kernels.drops:
                factors = cupy.empty(given.shape, dtype=dtype)
            written = factors if kernels.drops or not keeps else None
            kernels.gradient(tile, given, dweights, dscores, written, statistics)
            del given, dweights, written
            adds = tile.stop < length
            _multiply(_turned(factors), here, tile.of(dvalues)[:, :, : tile.keys], adds)
            del factors
            _multiply(dscores, _keys(keys, tile), tile.of(dqueries)[:, :, :, tile.start : tile.stop])
            _multiply(_turned(dscores), _rows(queries, tile), tile.of(dkeys)[:, :, : tile.keys], adds)
            del dscores
        dkeys, dvalues = (x.astype(dtype, copy=False)[:, :, None] for x in (dkeys, dvalues))
        return _by_time(dqueries), _by_time(dkeys), _by_time(dvalues), None

    return _by_time(y), vjp


def _is_handled(query: Any, key: Any, value: Any) -> bool:
    if query.dtype.name not in _PACKS or key.dtype != query.dtype or value.dtype != query.dtype:
        return False
    return bool(query.size > 0 and key.size > 0 and value.size > 0)


def _by_head(x: Any, groups: int, samples_at_once: int) -> Any:
    """(batch, time, heads, size) -> (batch, groups, heads of a group, time, size), ready for products.

    As x lies, if one sample is multiplied at a time; else a copy, since the matrices of several samples do not lie at
    even distances.
    """
    batch, time, heads, size = x.shape
    by_head = x.transpose(0, 2, 1, 3)
    if samples_at_once > 1 and heads > 1:
        by_head = cupy.ascontiguousarray(by_head)
    return by_head.reshape(batch, groups, heads // groups, time, size)


def _by_time(x: Any) -> Any:
    """The inverse of `_by_head`."""
    batch, groups, members, time, size = x.shape
    return x.reshape(batch, groups * members, time, size).transpose(0, 2, 1, 3)


def _keys(x: Any, tile: _Tile) -> Any:
    """The tile's keys or values: (samples, groups, keys, size)."""
    return tile.of(x)[:, :, 0, : tile.keys]


def _rows(x: Any, tile: _Tile) -> Any:
    """The tile's queries, those of all heads of a group one below the other: (samples, groups, rows, size)."""
    part = tile.of(x)[:, :, :, tile.start : tile.stop]
    samples, groups, members, count, size = part.shape
    return part[:, :, 0] if members == 1 else part.reshape(samples, groups, members * count, size)


def _turned(x: Any) -> Any:
    """The transposed matrices."""
    return x.swapaxes(-1, -2)


def _multiply(a: Any, b: Any, result: Any, adds: bool = False) -> None:
    """result = a b, or result += a b; result's axes may be more than those of a product, in the same order."""
    shape = (*a.shape[:-1], b.shape[-1])
    if adds:
        result += products.matmul(a, b, out_dtype=result.dtype).reshape(result.shape)
    elif result.flags.c_contiguous:
        products.matmul(a, b, result.reshape(shape), out_dtype=result.dtype)
    else:
        result[...] = products.matmul(a, b, out_dtype=result.dtype).reshape(result.shape)


BODIES: dict[str, Body] = {"attention": attention}
