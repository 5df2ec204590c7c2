"""Softmax and its logarithm."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError

_FARTHEST = 10000.0
"""exp(-_FARTHEST) is 0 in every dtype: what lies farther below the maximum may as well lie there."""


@op
def softmax(x: Array, axis: int = -1) -> tuple[Array, Vjp]:
    """y_i = exp(x_i) / sum over j of exp(x_j), along `axis`.

    Derivative: dx_i = y_i (dy_i - sum over j of dy_j y_j). The maximum is subtracted first, which changes nothing in
    the result and keeps exp from overflowing.
    Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.

    Args:
        x: any shape.
        axis: the axis along which the results add up to 1.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).

    Raises:
        ShapeError: x has no such axis.
    """
    xp = namespace(x)
    _check_axis(x, axis)
    if x.shape[axis] == 0:
        return _nothing(x)
    largest = xp.max(x, axis=axis, keepdims=True)
    # In halves, because the difference itself may overflow, as that of 3e38 and -3e38 does in float32.
    half_difference = xp.maximum(0.5 * x - 0.5 * largest, -0.5 * _FARTHEST)
    powers = xp.exp(2.0 * half_difference)
    y = powers / xp.sum(powers, axis=axis, keepdims=True)

    def vjp(dy: Array) -> tuple[Array]:
        return (y * (dy - xp.sum(dy * y, axis=axis, keepdims=True)),)

    return y, vjp


@op
def log_softmax(x: Array, axis: int = -1) -> tuple[Array, Vjp]:
    """y_i = x_i - log(sum over j of exp(x_j)), along `axis`: the logarithm of softmax, without its underflow.

    Derivative: dx_i = dy_i - exp(y_i) sum over j of dy_j. The maximum is subtracted first, as in softmax.

    Args:
        x: any shape.
        axis: the axis along which exp(y) adds up to 1.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).

    Raises:
        ShapeError: x has no such axis.
    """
    xp = namespace(x)
    _check_axis(x, axis)
    if x.shape[axis] == 0:
        return _nothing(x)
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    y = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))

    def vjp(dy: Array) -> tuple[Array]:
        return (dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True),)

    return y, vjp


def _check_axis(x: Array, axis: int) -> None:
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"softmax along axis {axis} of an array of shape {tuple(x.shape)}: there is no such axis")


def _nothing(x: Array) -> tuple[Array, Vjp]:
    """The result along an axis of length 0, which has no maximum."""

    def vjp(dy: Array) -> tuple[Array]:
        return (dy,)

    return namespace(x).zeros_like(x), vjp
