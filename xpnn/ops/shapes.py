"""Ops that move values and compute next to nothing: reshape, flatten, add, concatenate."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError


@op
def reshape(x: Array, shape: tuple[int, ...]) -> tuple[Array, Vjp]:
    """The values of x, in C order, as samples of shape `shape`: (batch, ...) -> (batch, *shape).

    Args:
        x: (batch, ...).
        shape: of one sample of the result; no -1 (with an empty batch, nothing says what it would mean).

    Raises:
        ShapeError: a sample of x has another number of elements.
    """
    sample = tuple(x.shape[1:])
    if x.ndim == 0 or math.prod(sample) != math.prod(shape) or any(length < 0 for length in shape):
        raise ShapeError(f"reshape: x of shape {tuple(x.shape)} does not hold samples of shape {tuple(shape)}")
    xp = namespace(x)
    y = xp.reshape(x, (x.shape[0], *shape))

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.reshape(dy, x.shape),)

    return y, vjp


@op
def flatten(x: Array) -> tuple[Array, Vjp]:
    """Each sample as one row: (batch, ...) -> (batch, product of the rest)."""
    return reshape(x, (math.prod(x.shape[1:]),))


@op
def add(*arrays: Array) -> tuple[Array, Vjp]:
    """y = x1 + x2 + ..., all of one shape; the derivative with respect to each is dy.

    Raises:
        ShapeError: the shapes differ (there is no broadcasting).
    """
    for position, x in enumerate(arrays):
        if x.shape != arrays[0].shape:
            raise ShapeError(
                f"add: array {position} has shape {tuple(x.shape)}, array 0 {tuple(arrays[0].shape)}; all must have "
                "the same shape"
            )
    y = arrays[0]
    for x in arrays[1:]:
        y = y + x

    def vjp(dy: Array) -> tuple[Array, ...]:
        return (dy,) * len(arrays)

    return y, vjp


@op
def concatenate(*arrays: Array, axis: int = -1) -> tuple[Array, Vjp]:
    """The arrays one after the other along `axis`; each gets back its own part of dy.

    Raises:
        ShapeError: there is no such axis, or the arrays differ in another one.
    """
    first = tuple(arrays[0].shape)
    if not -len(first) <= axis < len(first):
        raise ShapeError(f"concatenate: axis {axis} does not exist in arrays of shape {first}")
    axis = axis % len(first)
    for position, x in enumerate(arrays):
        shape = tuple(x.shape)
        if len(shape) != len(first) or (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
            raise ShapeError(
                f"concatenate: array {position} has shape {shape}, array 0 {first}; they may differ in axis {axis} only"
            )
    y = namespace(arrays[0]).concat(arrays, axis=axis)

    def vjp(dy: Array) -> tuple[Array, ...]:
        pieces: list[Any] = []
        start = 0
        for x in arrays:
            stop = start + x.shape[axis]
            pieces.append(dy[(slice(None),) * axis + (slice(start, stop), ...)])
            start = stop
        return tuple(pieces)

    return y, vjp
