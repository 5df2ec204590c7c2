"""Kernels of attention. See `kernels` for what a kernel is.

Arrays are (batch, time, heads, size) in C order. `allowed` says which keys count, (batch, keys); it is empty where all
do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnn_backends.kernels import multiplies
from xpnn_backends.recording import Kernel


def _weights(
    query: Any, key: Any, allowed: Any, sample: slice, start: int, stop: int, causal: int, scale: float
) -> tuple[Any, Any, Any]:
    """(weights, largest scores, 1 / sums) of some queries of some samples, each (samples, heads, queries, keys)."""
    keys, members = key.shape[1], query.shape[2] // key.shape[2]
    rows = query[sample, start:stop].transpose(0, 2, 1, 3)
    columns = key[sample].transpose(0, 2, 3, 1)
    if members > 1:
        columns = np.repeat(columns, members, 1)
    scores = np.matmul(rows, columns)
    np.multiply(scores, query.dtype.type(scale), out=scores)
    if allowed.size:
        np.copyto(scores, -np.inf, where=~allowed.reshape(-1, keys)[sample, None, None, :])
    if causal:
        hidden = np.arange(start, stop)[:, None] < np.arange(keys)
        np.copyto(scores, -np.inf, where=hidden)
    largest = np.maximum(np.maximum.reduce(scores, -1, keepdims=True), np.finfo(query.dtype).min)
    np.subtract(scores, largest, out=scores)
    np.exp(scores, out=scores)
    total = np.add.reduce(scores, -1, keepdims=True)
    inverse = 1.0 / np.where(total != 0, total, total.dtype.type(1))
    np.multiply(scores, inverse, out=scores)
    return scores, largest, inverse


def _pieces(query: Any, keys: int, block: int, begin: int, end: int) -> Any:
    """(samples, first query, last + 1): so few that their weights stay in the cache."""
    batch, _, heads = query.shape[:3]
    together = max(1, (1 << 18) // max(heads * min(block, end - begin) * keys, 1))
    for first in range(0, batch, together):
        for start in range(begin, end, block):
            yield slice(first, min(first + together, batch)), start, min(start + block, end)


def _dropped(weights: Any, sample: slice, dropout_mask: Any, mask_keys: int, dropout_scale: float) -> Any:
    """What dropout leaves of the weights, or of their gradient, of the one block that there is."""
    if not dropout_mask.size:
        return weights
    heads, rows = weights.shape[1:3]
    made = np.zeros_like(weights)
    keep = dropout_mask.reshape(-1, heads, rows, mask_keys)[sample]
    scale = weights.dtype.type(dropout_scale)
    np.multiply(weights[..., :mask_keys], scale, out=made[..., :mask_keys], where=keep)
    return made


def _attention(query: Any, key: Any, value: Any, allowed: Any, *rest: Any) -> None:
    causal, block, scale, keeps, begin, end, *dropout, _, y, weights, kept = rest
    batch, queries, heads = query.shape[:3]
    members, keys = heads // key.shape[2], key.shape[1]
    stored = weights.reshape(batch, heads, queries, keys) if keeps else None
    remembered = kept.reshape(batch, heads, queries, 2)
    for sample, start, stop in _pieces(query, keys, block, begin, end):
        made, largest, inverse = _weights(query, key, allowed, sample, start, stop, causal, scale)
        remembered[sample, :, start:stop, :1], remembered[sample, :, start:stop, 1:] = largest, inverse
        if stored is not None:
            stored[sample, :, start:stop] = made
        values = value[sample].transpose(0, 2, 1, 3)
        if members > 1:
            values = np.repeat(values, members, 1)
        used = _dropped(made, sample, *dropout)
        y[sample, start:stop] = np.matmul(used, values).transpose(0, 2, 1, 3)


def _by_group(gradient: Any, members: int) -> Any:
    """(samples, heads, keys, size) -> (samples, keys, groups, size): the heads of a group are added up."""
    samples, heads, keys, size = gradient.shape
    if members > 1:
        gradient = np.add.reduce(gradient.reshape(samples, heads // members, members, keys, size), 2)
    return gradient.transpose(0, 2, 1, 3)


def _gradient(query: Any, key: Any, value: Any, allowed: Any, *rest: Any) -> None:
    causal, block, scale, keeps, begin, end, *dropout, weights, _, dy, _, dquery, dkey, dvalue = rest
    batch, queries, heads = query.shape[:3]
    members, keys = heads // key.shape[2], key.shape[1]
    stored = weights.reshape(batch, heads, queries, keys) if keeps else None
    if begin == 0:
        dkey[...] = 0.0
        dvalue[...] = 0.0
    for sample, start, stop in _pieces(query, keys, block, begin, end):
        if stored is not None:
            made = stored[sample, :, start:stop]
        else:
            made, _, _ = _weights(query, key, allowed, sample, start, stop, causal, scale)
        keys_of, values = (x[sample].transpose(0, 2, 1, 3) for x in (key, value))
        if members > 1:
            keys_of, values = np.repeat(keys_of, members, 1), np.repeat(values, members, 1)
        cotangent = dy[sample, start:stop].transpose(0, 2, 1, 3)
        used = _dropped(made, sample, *dropout)
        dvalue[sample] += _by_group(np.matmul(used.transpose(0, 1, 3, 2), cotangent), members)
        derivative = _dropped(np.matmul(cotangent, values.transpose(0, 1, 3, 2)), sample, *dropout)
        mean = np.einsum("bhij,bhij->bhi", made, derivative)[..., None]
        np.subtract(derivative, mean, out=derivative)
        np.multiply(derivative, made, out=derivative)
        np.multiply(derivative, query.dtype.type(scale), out=derivative)
        dquery[sample, start:stop] = np.matmul(derivative, keys_of).transpose(0, 2, 1, 3)
        rows = query[sample, start:stop].transpose(0, 2, 1, 3)
        dkey[sample] += _by_group(np.matmul(derivative.transpose(0, 1, 3, 2), rows), members)


def _native(name: str) -> Any:
    """The native kernel gets the product's address and the lengths besides."""

    def native(query: Any, key: Any, value: Any, allowed: Any, causal: int, *rest: Any) -> Any:
        address = multiplies(query.dtype)
        batch, queries, heads, size = query.shape
        lengths = (batch, queries, key.shape[1], heads, key.shape[2], size, value.shape[3])
        return (name, (address, query, key, value, allowed, *lengths, causal, *rest)) if address else None

    return native


ATTENTION = Kernel("attention", _attention, _native("attention"), (-4, -3, -2, -1))
"""attention(query, key, value, allowed, causal, block, scale, keeps, begin, end, dropout_mask, mask_keys,
dropout_scale, room, y, weights, kept), for queries from `begin` to `end` - 1."""

ATTENTION_GRADIENT = Kernel("attention_gradient", _gradient, _native("attention_gradient"), (-4, -3, -2, -1))
"""attention_gradient(query, key, value, allowed, causal, block, scale, keeps, begin, end, dropout_mask, mask_keys,
dropout_scale, weights, kept, dy, room, dquery, dkey, dvalue)."""
