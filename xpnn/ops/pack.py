"""Arrays side by side in one vector: how gradients become the vector that optimizers work on."""

from __future__ import annotations

import math

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.half_precision import handles_half


@op
@handles_half
def pack(*arrays: Array, starts: tuple[int, ...], size: int) -> tuple[Array, Vjp]:
    """A vector of length `size` that holds array number i, in C order, from `starts[i]` on, and zeros between.

    Args:
        arrays: of any shapes and one dtype.
        starts: where each begins; ascending, without overlap.
        size: the length of the vector.

    Returns:
        The vector, and vjp(dy) -> one gradient for each array, the part of dy where it lies.
    """
    xp = namespace(arrays[0])
    pieces: list[Array] = []
    position = 0
    for x, start in zip((*arrays, None), (*starts, size), strict=True):
        if start > position:
            pieces.append(xp.zeros((start - position,), dtype=arrays[0].dtype, device=device(arrays[0])))
        if x is not None:
            position = start + math.prod(x.shape)
            pieces.append(xp.reshape(x, (position - start,)))
    packed = xp.concat(pieces)

    def vjp(dy: Array) -> tuple[Array, ...]:
        return tuple(
            xp.reshape(dy[start : start + math.prod(x.shape)], x.shape) for x, start in zip(arrays, starts, strict=True)
        )

    return packed, vjp
