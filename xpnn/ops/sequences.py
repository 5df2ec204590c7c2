"""Ops for sequences: which steps are padding, and steps as samples of their own."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import HALF_DTYPES, Array, Vjp, device, namespace, op
from xpnn.errors import ShapeError
from xpnn.half_precision import handles_half


@op
@handles_half
def padding_mask(x: Array, *, value: float = 0.0) -> tuple[Array, Vjp]:
    """Which steps of the sequences hold anything else than padding: True where a number of the step is not `value`.

    Args:
        x: (batch, time, ...).
        value: what padded steps are filled with.

    Returns:
        A bool array (batch, time), and vjp(dmask) -> (None,): the mask has no derivative.

    Raises:
        ShapeError: x has fewer than three axes.
    """
    if x.ndim < 3:
        raise ShapeError(f"padding_mask: x has shape {tuple(x.shape)}; wants sequences, (batch, time, features)")
    xp = namespace(x)
    padding: Any = value
    if x.dtype in HALF_DTYPES[type(x)]:
        # -999 is no number of bfloat16: what came in as that has been rounded, and so is what it is compared with.
        padding = xp.full((), value, dtype=x.dtype, device=device(x))
    mask = xp.any(x != padding, axis=tuple(range(2, x.ndim)))

    def vjp(dmask: Array) -> tuple[None]:
        return (None,)

    return mask, vjp


@op
def fold_time(x: Array) -> tuple[Array, Vjp]:
    """The steps of all sequences as samples of their own: (batch, time, ...) -> (batch * time, ...).

    Raises:
        ShapeError: x has fewer than two axes.
    """
    if x.ndim < 2:
        raise ShapeError(f"fold_time: x has shape {tuple(x.shape)}; wants sequences, (batch, time, ...)")
    xp = namespace(x)
    batch, time, *step = x.shape

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.reshape(dy, x.shape),)

    return xp.reshape(x, (batch * time, *step)), vjp


@op
def unfold_time(x: Array, batch: int, time: int) -> tuple[Array, Vjp]:
    """The inverse of `fold_time`: (batch * time, ...) -> (batch, time, ...).

    Raises:
        ShapeError: x does not have batch * time samples.
    """
    if x.ndim < 1 or x.shape[0] != batch * time:
        raise ShapeError(f"unfold_time: x of shape {tuple(x.shape)} is no {batch} sequences of {time} steps")
    xp = namespace(x)

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.reshape(dy, x.shape),)

    return xp.reshape(x, (batch, time, *x.shape[1:])), vjp
