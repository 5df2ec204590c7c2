"""Attention in half precision through cuDNN: the scores never leave the chip, forward or backward."""

from __future__ import annotations

import math
from typing import Any

import cupy

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn.ops.attention import BLOCK, check_settings, check_shapes
from xpnn_backends.cupy.cudnn_definitions import Attention, Ints
from xpnn_backends.cupy.cudnn_graphs import ALIGNMENT, plan, ready, why_not
from xpnn_backends.cupy.kernels import generic

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = []
"""None of its own."""

_DTYPES = ("float16", "bfloat16")
"""In float32 cuDNN has no backward pass."""


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
    """cuDNN's kernels for float16 and bfloat16, without a mask and without dropout; else the generic body.

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
        return generic("attention")(query, key, value, mask, **settings)

    if not _is_handled(query, key, value) or mask is not None or dropout_rate != 0.0:
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


def _is_handled(query: Any, key: Any, value: Any) -> bool:
    if query.dtype.name not in _DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
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


BODIES: dict[str, Body] = {"attention": attention}
