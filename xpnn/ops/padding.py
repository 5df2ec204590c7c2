"""Zeros around the spatial axes of x (batch, *spatial, channels), and their ends cut off."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, op
from xpnn.errors import ShapeError
from xpnn.ops.windows import Pairs, crop_spatial, pad_spatial


@op
def pad(x: Array, *, padding: Pairs) -> tuple[Array, Vjp]:
    """x with zeros around it; the derivative is dy without its ends.

    Args:
        x: (batch, *spatial, channels).
        padding: how many zeros (before, after) for each spatial axis.

    Returns:
        y (batch, *(before + spatial + after), channels), and vjp(dy) -> (dx,).

    Raises:
        ShapeError: padding does not have one pair of numbers from 0 on for each spatial axis of x.
    """
    _check_pairs("pad", "padding", x, padding)

    def vjp(dy: Array) -> tuple[Array]:
        return (crop_spatial(dy, padding),)

    return pad_spatial(x, padding), vjp


@op
def crop(x: Array, *, cropping: Pairs) -> tuple[Array, Vjp]:
    """x without its ends; the derivative is dy with zeros there.

    Args:
        x: (batch, *spatial, channels).
        cropping: how many positions are cut off (before, after) for each spatial axis.

    Returns:
        y (batch, *(spatial - before - after), channels), and vjp(dy) -> (dx,).

    Raises:
        ShapeError: cropping does not have one pair of numbers from 0 on for each spatial axis of x, or cuts off more
            than there is.
    """
    _check_pairs("crop", "cropping", x, cropping)
    if any(sum(pair) > length for pair, length in zip(cropping, x.shape[1:-1], strict=True)):
        raise ShapeError(f"crop: cropping={cropping} cuts off more than x of shape {tuple(x.shape)} has")

    def vjp(dy: Array) -> tuple[Array]:
        return (pad_spatial(dy, cropping),)

    return crop_spatial(x, cropping), vjp


def _check_pairs(op_name: str, name: str, x: Array, pairs: Pairs) -> None:
    """Raise ShapeError unless there is a pair of numbers from 0 on for each spatial axis of x."""
    if len(pairs) != x.ndim - 2 or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ShapeError(
            f"{op_name}: {name}={pairs} does not fit x of shape {tuple(x.shape)}; give a pair (before, after) of "
            "integers from 0 on for each axis between the first and the last"
        )
