"""The body of attention for recorded arrays. See `recorded_bodies`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xpnn.ops.attention import BLOCK, check_settings, check_shapes
from xpnn.ops.random_mask import random_mask
from xpnn.random import mask_threshold
from xpnn_backends import fast
from xpnn_backends.kernels_attention import ATTENTION, ATTENTION_GRADIENT
from xpnn_backends.recorded_bodies import _body
from xpnn_backends.recording import RecordedArray, Recorder, constant


def _allowed(recorder: Recorder, mask: Any, batch: int, keys: int) -> Any:
    """Which keys count, flat; None for a mask that differs between heads or queries."""
    if mask is None:
        return constant(np.zeros(0, np.bool_))
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if mask.dtype != np.bool_ or shape != (batch, 1, 1, keys):
        return None
    return recorder.reshape(recorder.contiguous(mask), (batch * keys,))


@_body
def attention(
    recorder: Recorder,
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
) -> Any:
    """One kernel forward and one backward, each over all heads; with dropout, for each block. No masks of queries."""
    arrays = (query, key, value)
    if not all(isinstance(x, RecordedArray) and x.dtype == query.dtype and x.size for x in arrays):
        return None
    if query.dtype not in (np.float32, np.float64):
        return None
    check_shapes(query, key, value)
    check_settings(dropout_key, dropout_rate, block)
    (batch, queries, heads, size), keys = query.shape, key.shape[1]
    allowed = _allowed(recorder, mask, batch, keys)
    if allowed is None:
        return None
    query, key, value = (recorder.contiguous(x) for x in arrays)
    block = min(block, queries)
    factor = 1.0 / math.sqrt(size) if scale is None else float(scale)
    # The weights of a short sequence are kept; those of a long one are computed again, and memory stays linear.
    keeps = queries == block
    numbers = batch * heads * queries * keys if keeps else fast.most_parts() * block * keys
    weights, kept = recorder.empty((numbers,), query.dtype), recorder.empty((2 * batch * heads * queries,), query.dtype)
    y = recorder.empty((batch, queries, heads, value.shape[3]), query.dtype)
    settings = (int(causal), block, factor, int(keeps))
    block_numbers = fast.most_parts() * block * keys

    def pieces() -> Iterator[tuple[Any, ...]]:
        """(first query, last + 1, dropout's mask, its keys, its scale): all at once, or by blocks with dropout."""
        if not dropout_rate:
            yield 0, queries, constant(np.zeros(0, np.bool_)), keys, 1.0
            return
        scale = 65536.0 / (65536 - mask_threshold(dropout_rate))
        for number, start in enumerate(range(0, queries, block)):
            stop = min(start + block, queries)
            seen = max(min(stop, keys), 1) if causal else keys
            weights_of_block = recorder.empty((batch, heads, stop - start, seen), query.dtype)
            stream = dropout_key.stream + (number << 40)
            mask, _ = random_mask(weights_of_block, dropout_key._replace(stream=stream), dropout_rate)
            yield start, stop, mask, seen, scale

    for piece in pieces():
        room = recorder.empty((block_numbers if dropout_rate else 0,), query.dtype)
        recorder.call(ATTENTION, query, key, value, allowed, *settings, *piece, room, y, weights, kept)

    def vjp(dy: Any) -> tuple[Any, ...]:
        gradients = [recorder.empty(x.shape, x.dtype) for x in (query, key, value)]
        remembered = weights if keeps else constant(np.zeros(0, query.dtype))
        cotangent = recorder.contiguous(dy)
        for piece in pieces():
            room = recorder.empty((2 * block_numbers,), query.dtype)
            given = (query, key, value, allowed, *settings, *piece, remembered, kept, cotangent, room)
            recorder.call(ATTENTION_GRADIENT, *given, *gradients)
        return (*gradients, None)

    return y, vjp
