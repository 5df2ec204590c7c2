"""Scaled dot-product attention, in blocks of queries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.random_mask import random_mask
from xpnn.random import RandomKey, mask_threshold

BLOCK = 128
"""How many queries are compared with all keys at a time."""


class _Block(NamedTuple):
    """Queries number `start` to `stop` - 1, which look at the first `keys` keys."""

    number: int
    start: int
    stop: int
    keys: int


class _Weights(NamedTuple):
    """The weights of one block: `powers` times `inverse`, which is one number for each query.

    Attributes:
        powers: exp(scores - largest), (batch, groups, heads of a group, queries, keys).
        largest: the largest score of each query.
        inverse: 1 / (sum of its powers).
    """

    powers: Array
    largest: Array
    inverse: Array


@op
def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout_key: RandomKey | None = None,
    dropout_rate: float = 0.0,
    block: int = BLOCK,
) -> tuple[Array, Vjp]:
    """y = P v with P = softmax(scale q k^T), for each head: every query gets a mean of the values.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017. With dP = dy v^T, the derivatives are
    ds = P (dP - sum over keys of P dP) for the scores, dq = scale ds k, dk = scale ds^T q and dv = P^T dy.

    The queries are taken `block` at a time, so that of P only (block, keys) numbers for each head exist at once: memory
    grows with the length of the sequence, not with its square. For the backward pass each query keeps its largest
    score and the sum of its powers; P is computed from them again, block by block (Rabe and Staats, "Self-attention
    Does Not Need O(n^2) Memory", arXiv:2112.05682, 2021; Dao, Fu, Ermon, Rudra and Ré, "FlashAttention", NeurIPS
    2022). If one block holds all queries, its powers are kept instead.

    With fewer heads of keys and values than of queries, each of them serves a group of neighbouring query heads
    (Ainslie et al., "GQA", EMNLP 2023).

    A query that may look at no key gets 0, and gives no gradient. Scores must be finite: what a product of numbers
    beyond 1e19 in float32 overflows to is not saved.

    Args:
        query: (batch, queries, heads, size).
        key: (batch, keys, key heads, size); heads is a multiple of key heads.
        value: (batch, keys, key heads, value size).
        mask: bool, True where a query may look at a key; broadcastable to (batch, heads, queries, keys). Or None.
        causal: True if query i may look at keys 0 to i only, whatever the two lengths are.
        scale: 1 / sqrt(size) by default.
        dropout_key: which random bits drop weights; needed if dropout_rate is not 0. Block number b takes those of
            the stream `dropout_key.stream` + b 2^40, so a mask depends on `block`.
        dropout_rate: the probability with which a weight in P is set to 0, the others being scaled as in `dropout`.
        block: how many queries are taken at a time.

    Returns:
        y of shape (batch, queries, heads, value size), and vjp(dy) -> (dquery, dkey, dvalue, None).

    Raises:
        ShapeError: the shapes do not fit together.
        ConfigError: the mask is not bool, or a setting makes no sense.
    """
    xp = namespace(query)
    check_shapes(query, key, value)
    check_settings(dropout_key, dropout_rate, block)
    if key.shape[1] == 0:
        return _without_keys(xp, query, key, value)
    groups = key.shape[2]
    factor = 1.0 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    queries = _by_head(xp, query, groups)
    keys = _by_head(xp, key, groups)
    values = _by_head(xp, value, groups)
    allowed = None if mask is None else _mask_by_head(xp, mask, query, key)
    blocks = list(_blocks(query.shape[1], key.shape[1], block, causal))
    lowest = -float(xp.finfo(query.dtype).max)

    def scores_of(part: _Block) -> Array:
        scaled = queries[..., part.start : part.stop, :] * factor
        scores = xp.matmul(scaled, keys[..., : part.keys, :].mT)
        may_look = _may_look(xp, part, allowed, causal, device(query))
        return scores if may_look is None else xp.where(may_look, scores, -math.inf)

    def weights_of(part: _Block) -> _Weights:
        scores = scores_of(part)
        largest = xp.max(scores, axis=-1, keepdims=True)
        if mask is not None:
            # Where no key may be looked at, -inf - -inf would be NaN; this way the powers are 0, and so is their sum.
            largest = xp.maximum(largest, lowest)
        powers = xp.exp(scores - largest)
        total = xp.sum(powers, axis=-1, keepdims=True)
        if mask is not None:
            total = xp.where(total > 0, total, xp.ones_like(total))
        return _Weights(powers, largest, 1.0 / total)

    def dropped(part: _Block, powers: Array) -> Array:
        """The powers, or their gradient, where dropout keeps them; the scale is left to `inverse`."""
        if dropout_key is None or dropout_rate == 0.0:
            return powers
        stream = dropout_key.stream + (part.number << 40)
        kept, _ = random_mask(powers, dropout_key._replace(stream=stream), dropout_rate)
        return xp.where(kept, powers, 0.0)

    dropout_scale = 65536.0 / (65536 - mask_threshold(dropout_rate))
    results = []
    remembered: list[_Weights | tuple[Array, Array]] = []
    for part in blocks:
        weights = weights_of(part)
        product = xp.matmul(dropped(part, weights.powers), values[..., : part.keys, :])
        results.append(product * (weights.inverse * dropout_scale))
        remembered.append(weights if len(blocks) == 1 else (weights.largest, weights.inverse))
    y = _joined(xp, results)

    def vjp(dy: Array) -> tuple[Any, ...]:
        dy = _by_head(xp, dy, groups)
        query_gradients = []
        key_gradient: Any = None
        value_gradient: Any = None
        for part, known in zip(blocks, remembered, strict=True):
            if isinstance(known, _Weights):
                powers, _, inverse = known
            else:
                largest, inverse = known
                powers = xp.exp(scores_of(part) - largest)
            here = dy[..., part.start : part.stop, :]
            # sum over keys of P dP is the same as sum over features of y dy, with dropout too
            mean = inverse * xp.sum(here * y[..., part.start : part.stop, :], axis=-1, keepdims=True)
            here = here * (inverse * dropout_scale)
            dvalues = xp.matmul(dropped(part, powers).mT, here)
            dpowers = dropped(part, xp.matmul(here, values[..., : part.keys, :].mT))
            dscores = powers * (dpowers - mean)
            query_gradients.append(xp.matmul(dscores, keys[..., : part.keys, :]) * factor)
            dkeys = xp.matmul(dscores.mT, queries[..., part.start : part.stop, :] * factor)
            key_gradient = _accumulated(xp, key_gradient, _of_group(xp, dkeys))
            value_gradient = _accumulated(xp, value_gradient, _of_group(xp, dvalues))
        dquery = _by_time(xp, _joined(xp, query_gradients))
        return dquery, _whole(xp, key_gradient, key), _whole(xp, value_gradient, value), None

    return _by_time(xp, y), vjp


def _blocks(queries: int, keys: int, block: int, causal: bool) -> Iterator[_Block]:
    """Every block; one that is empty if there are no queries."""
    for number, start in enumerate(range(0, max(queries, 1), block)):
        stop = min(start + block, queries)
        # No query of a causal block looks behind the block's end; one key at least keeps the shapes ordinary.
        yield _Block(number, start, stop, max(min(stop, keys), 1) if causal else keys)


def _by_head(xp: Any, x: Array, groups: int) -> Array:
    """(batch, time, heads, size) -> (batch, groups, heads of a group, time, size)."""
    batch, time, heads, size = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, groups, heads // groups, time, size))


def _by_time(xp: Any, x: Array) -> Array:
    """The inverse of `_by_head`."""
    batch, groups, members, time, size = x.shape
    return xp.permute_dims(xp.reshape(x, (batch, groups * members, time, size)), (0, 2, 1, 3))


def _joined(xp: Any, parts: list[Array]) -> Array:
    """The results of the blocks of queries, one after the other."""
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=3)


def _of_group(xp: Any, gradient: Array) -> Array:
    """The gradient of keys or values, which all query heads of a group share."""
    return gradient if gradient.shape[2] == 1 else xp.sum(gradient, axis=2, keepdims=True)


def _accumulated(xp: Any, total: Any, part: Array) -> Array:
    """total + part, along the keys; in causal attention a later block has more keys."""
    if total is None:
        return part
    known = total.shape[3]
    if known == part.shape[3]:
        return total + part
    return xp.concat([total + part[..., :known, :], part[..., known:, :]], axis=3)


def _whole(xp: Any, gradient: Array, like: Array) -> Array:
    """The gradient in the layout of keys or values; 0 for keys that lie behind the last causal query."""
    missing = like.shape[1] - gradient.shape[3]
    if missing:
        batch, groups, members, _, size = gradient.shape
        zeros = xp.zeros((batch, groups, members, missing, size), dtype=like.dtype, device=device(like))
        gradient = xp.concat([gradient, zeros], axis=3)
    return _by_time(xp, gradient)


def _may_look(xp: Any, part: _Block, allowed: Array | None, causal: bool, where: Any) -> Array | None:
    """Bools that broadcast to the scores of a block; None if every query may look at every key."""
    if allowed is not None:
        if allowed.shape[3] != 1:
            allowed = allowed[..., part.start : part.stop, :]
        if allowed.shape[4] != 1:
            allowed = allowed[..., : part.keys]
    if not causal:
        return allowed
    rows = xp.arange(part.start, part.stop, dtype=xp.int32, device=where)
    columns = xp.arange(0, part.keys, dtype=xp.int32, device=where)
    reached = xp.expand_dims(rows, axis=1) >= xp.expand_dims(columns, axis=0)
    return reached if allowed is None else allowed & reached


def _mask_by_head(xp: Any, mask: Array, query: Array, key: Array) -> Array:
    """The mask with five axes, as the scores have them; each of length 1 or in full. Raises if it does not fit."""
    batch, heads, queries, keys = check_mask(xp, mask, query, key)
    groups = key.shape[2]
    by_group = (1, 1) if heads == 1 else (groups, query.shape[2] // groups)
    return xp.reshape(mask, (batch, *by_group, queries, keys))


def check_mask(xp: Any, mask: Array, query: Array, key: Array) -> tuple[int, ...]:
    """The mask's shape with four axes, (batch, heads, queries, keys), each in full or of length 1.

    Raises ConfigError if it does not hold bools, and ShapeError if it does not fit.
    """
    if not xp.isdtype(mask.dtype, "bool"):
        raise ConfigError(
            f"attention: the mask has dtype {mask.dtype}; give bools, True where a query may look at a key (mask != 0)"
        )
    wanted = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    given: tuple[int, ...] = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if len(given) != 4 or any(length not in (1, full) for length, full in zip(given, wanted, strict=True)):
        raise ShapeError(
            f"attention: a mask of shape {tuple(mask.shape)} does not broadcast to (batch, heads, queries, keys) = "
            f"{wanted}; each of its axes, counted from the last, must have that length or 1"
        )
    return given


def check_shapes(query: Array, key: Array, value: Array) -> None:
    """Raise ShapeError unless queries, keys and values fit together."""
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ShapeError(f"attention: {shapes}; each must be (batch, time, heads, size)")
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ShapeError(f"attention: {shapes}; the batch, the first axis, must be the same")
    if tuple(key.shape[1:3]) != tuple(value.shape[1:3]):
        raise ShapeError(f"attention: {shapes}; there must be one value for each key, and as many heads of each")
    if query.shape[3] != key.shape[3]:
        raise ShapeError(f"attention: {shapes}; queries and keys, which are multiplied, must have one size")
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise ShapeError(f"attention: {shapes}; the query heads must be a multiple of the key heads")


def check_settings(dropout_key: RandomKey | None, dropout_rate: float, block: int) -> None:
    """Raise ConfigError if a setting makes no sense."""
    if not 0.0 <= dropout_rate < 1.0:
        raise ConfigError(f"attention: dropout_rate={dropout_rate!r}; give a probability in [0, 1)")
    if dropout_rate > 0.0 and dropout_key is None:
        raise ConfigError("attention: dropout_rate is not 0 and there is no dropout_key; give an xpnn.random.RandomKey")
    if block < 1:
        raise ConfigError(f"attention: block={block!r}; give an integer of at least 1")


def _without_keys(xp: Any, query: Array, key: Array, value: Array) -> tuple[Array, Vjp]:
    """The result where there is no key to look at: 0 for every query."""

    def vjp(dy: Array) -> tuple[Any, ...]:
        return xp.zeros_like(query), xp.zeros_like(key), xp.zeros_like(value), None

    shape = (*query.shape[:3], value.shape[3])
    return xp.zeros(shape, dtype=query.dtype, device=device(query)), vjp
