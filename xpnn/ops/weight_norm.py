"""A weight as a length times a direction."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError


@op
def weight_norm(direction: Array, magnitude: Array, *, axis: int = -1) -> tuple[Array, Vjp]:
    """w = g v / |v| for each output channel: the slice of v at each position of `axis` gets the length g.

    Derivatives, with u = v / |v| and sums over all axes but `axis`: dg = sum of dw u; dv = g (dw - u dg) / |v|.
    Source: Salimans and Kingma, "Weight normalization", NeurIPS 2016, section 2.

    A slice of zeros has no direction: its w is 0, and it is treated as if its length were 1. |v| is kept as the largest
    number of the slice times the length of what is left when it is divided out, so that no finite v overflows.

    Args:
        direction: v, any shape.
        magnitude: g, (length of `axis`,).
        axis: the axis that stays; the last one holds the output channels of dense and convolution layers.

    Returns:
        w of v's shape, and vjp(dw) -> (dv, dg).

    Raises:
        ShapeError: v has no such axis, or g another length.
    """
    if not -direction.ndim <= axis < direction.ndim:
        raise ShapeError(f"weight_norm: axis {axis} does not exist in a direction of shape {tuple(direction.shape)}")
    channels = direction.shape[axis]
    if tuple(magnitude.shape) != (channels,):
        raise ShapeError(
            f"weight_norm: the magnitude has shape {tuple(magnitude.shape)}; a direction of shape "
            f"{tuple(direction.shape)} needs one number for each position of axis {axis}: ({channels},)"
        )
    xp = namespace(direction)
    kept = axis % direction.ndim
    others = tuple(each for each in range(direction.ndim) if each != kept)
    along_axis = tuple(channels if each == kept else 1 for each in range(direction.ndim))
    largest = xp.abs(direction)
    if others and 0 not in direction.shape:
        largest = xp.max(largest, axis=others, keepdims=True)
    largest = xp.where(largest == 0, 1.0, largest)
    scaled = direction / largest
    length = xp.abs(scaled) if not others else xp.sqrt(xp.sum(scaled * scaled, axis=others, keepdims=True))
    length = xp.where(length == 0, 1.0, length)
    unit = scaled / length
    factor = xp.reshape(magnitude, along_axis)

    def vjp(dw: Array) -> tuple[Array, Array]:
        along = dw * unit
        if others:
            along = xp.sum(along, axis=others, keepdims=True)
        return factor * (dw - unit * along) / length / largest, xp.reshape(along, magnitude.shape)

    return factor * unit, vjp
