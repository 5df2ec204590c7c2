"""Larger images from small ones: each spatial axis of x (batch, *spatial, channels) becomes `factor` times as long."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.sweep import part
from xpnn.ops.windows import Ints


@op
def upsample_nearest(x: Array, *, factor: Ints) -> tuple[Array, Vjp]:
    """Every value `factor` times along each spatial axis: position i of y holds position floor(i / factor) of x.

    The derivative with respect to a value is the sum of dy over its copies.

    Args:
        x: (batch, *spatial, channels).
        factor: a positive integer for each spatial axis.

    Returns:
        y (batch, *(spatial * factor), channels), and vjp(dy) -> (dx,).

    Raises:
        ShapeError: factor does not have one positive integer for each spatial axis of x.
    """
    _check_factor("upsample_nearest", x, factor)
    xp = namespace(x)
    lengths = tuple(x.shape[1:-1])
    each_value = tuple(number for length in lengths for number in (length, 1))
    copies = tuple(number for pair in zip(lengths, factor, strict=True) for number in pair)
    batch, channels = x.shape[0], x.shape[-1]
    repeated = xp.broadcast_to(xp.reshape(x, (batch, *each_value, channels)), (batch, *copies, channels))
    larger = tuple(length * times for length, times in zip(lengths, factor, strict=True))
    y = xp.reshape(repeated, (batch, *larger, channels))

    def vjp(dy: Array) -> tuple[Array]:
        if not factor:
            return (dy,)
        of_copies = tuple(range(2, 2 + 2 * len(factor), 2))
        return (xp.sum(xp.reshape(dy, (batch, *copies, channels)), axis=of_copies),)

    return y, vjp


@op
def upsample_bilinear(x: Array, *, factor: Ints) -> tuple[Array, Vjp]:
    """Straight lines between the values of x, along each spatial axis in turn: linear, bilinear, trilinear.

    Pixels are squares and their values belong to their centres: the centre of position i of y lies at
    (i + 1/2) / factor - 1/2 of x, and outside of the outermost centres y is constant. PyTorch's interpolate does the
    same with align_corners=False.

    Args:
        x: (batch, *spatial, channels).
        factor: a positive integer for each spatial axis.

    Returns:
        y (batch, *(spatial * factor), channels), and vjp(dy) -> (dx,).

    Raises:
        ShapeError: factor does not have one positive integer for each spatial axis of x.
    """
    _check_factor("upsample_bilinear", x, factor)
    y = x
    vjps: list[Vjp] = []
    for axis, times in enumerate(factor, start=1):
        if times > 1 and x.shape[axis] > 0:
            y, vjp_along = _upsample_linear_along(y, axis, times)
            vjps.append(vjp_along)

    def vjp(dy: Array) -> tuple[Array]:
        for vjp_along in reversed(vjps):
            (dy,) = vjp_along(dy)
        return (dy,)

    return y, vjp


def _upsample_linear_along(x: Array, axis: int, factor: int) -> tuple[Array, Vjp]:
    """`upsample_bilinear` along one axis that is not empty.

    The `factor` new values of position q lie at q + offset, with the same offsets in (-1/2, 1/2) for every q. They mix
    x[q] with x[q - 1] where the offset is negative, with x[q + 1] where it is positive; beyond an end lies x[q] itself.
    """
    xp = namespace(x)
    length = x.shape[axis]
    offsets = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
    first, last = part(x, axis, 0, 1), part(x, axis, length - 1, length)
    previous = xp.concat([first, part(x, axis, 0, length - 1)], axis=axis)
    following = xp.concat([part(x, axis, 1, length), last], axis=axis)
    phases: list[Array] = []
    for offset in offsets:
        neighbour = previous if offset < 0 else following
        phases.append(x if offset == 0 else (1.0 - abs(offset)) * x + abs(offset) * neighbour)
    interlaced = (*x.shape[:axis], length * factor, *x.shape[axis + 1 :])
    y = xp.reshape(xp.stack(phases, axis=axis + 1), interlaced)

    def vjp(dy: Array) -> tuple[Array]:
        by_phase = xp.reshape(dy, (*x.shape[:axis], length, factor, *x.shape[axis + 1 :]))
        shares = [by_phase[(slice(None),) * (axis + 1) + (phase, ...)] for phase in range(factor)]
        dx = to_previous = to_following = xp.zeros_like(shares[0])
        for offset, share in zip(offsets, shares, strict=True):
            dx = dx + (1.0 - abs(offset)) * share
            if offset < 0:
                to_previous = to_previous + abs(offset) * share
            elif offset > 0:
                to_following = to_following + abs(offset) * share
        # What goes to the position before the first, or behind the last, goes to that one itself.
        at_first, to_others_before = part(to_previous, axis, 0, 1), part(to_previous, axis, 1, length)
        to_others_behind, at_last = (
            part(to_following, axis, 0, length - 1),
            part(to_following, axis, length - 1, length),
        )
        for pieces in (
            [to_others_before, xp.zeros_like(at_first)],
            [at_first, xp.zeros_like(to_others_before)],
            [xp.zeros_like(at_last), to_others_behind],
            [xp.zeros_like(to_others_behind), at_last],
        ):
            dx = dx + xp.concat(pieces, axis=axis)
        return (dx,)

    return y, vjp


def _check_factor(name: str, x: Array, factor: Ints) -> None:
    if len(factor) != x.ndim - 2 or min(factor, default=1) < 1:
        raise ShapeError(
            f"{name}: factor={factor} does not fit x of shape {tuple(x.shape)}; give a positive integer for each axis "
            "between the first and the last"
        )
