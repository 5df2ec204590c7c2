"""Ops that move values and compute nothing: reshape, flatten, add, concatenate."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError


@op
def reshape(x: Array, shape: tuple[int, ...]) -> tuple[Array, Vjp]:
    """The values of x, in C order, as samples of shape `shape`: (batch, ...) -> (batch, *shape)."""
    xp = namespace(x)
    y = xp.reshape(x, (x.shape[0], *shape))

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.reshape(dy, x.shape),)

    return y, vjp


@op
def flatten(x: Array) -> tuple[Array, Vjp]:
    """Each sample as one row: (batch, ...) -> (batch, product of the rest)."""
    length = 1
    for size in x.shape[1:]:
        length *= size
    return reshape(x, (length,))


@op
def add(*arrays: Array) -> tuple[Array, Vjp]:
    """y = x1 + x2 + ..., all of one shape; the derivative with respect to each is dy."""
    for x in arrays[1:]:
        if x.shape != arrays[0].shape:
            raise ShapeError(f"add: shapes {arrays[0].shape} and {x.shape} differ; all must be the same")
    y = arrays[0]
    for x in arrays[1:]:
        y = y + x

    def vjp(dy: Array) -> tuple[Array, ...]:
        return (dy,) * len(arrays)

    return y, vjp


@op
def concatenate(*arrays: Array, axis: int = -1) -> tuple[Array, Vjp]:
    """The arrays one after the other along `axis`; all other lengths must be equal."""
    xp = namespace(arrays[0])
    y = xp.concat(arrays, axis=axis)
    axis = axis % y.ndim

    def vjp(dy: Array) -> tuple[Array, ...]:
        pieces: list[Any] = []
        start = 0
        for x in arrays:
            stop = start + x.shape[axis]
            pieces.append(dy[(slice(None),) * axis + (slice(start, stop), ...)])
            start = stop
        return tuple(pieces)

    return y, vjp
