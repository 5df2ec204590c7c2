"""Absolute error, and Huber's mixture of squared and absolute error."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.reduction import check_same_shape, reduce_loss


@op
def mae(prediction: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean") -> tuple[Array, Vjp]:
    """Absolute error |prediction - target|; the derivative is the sign of the difference, 0 where there is none.

    Args:
        prediction: (batch, ...).
        target: the same shape.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        reduction: as for `mse`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprediction, dtarget, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("mae", prediction, target)
    xp = namespace(prediction)
    residual = prediction - target
    value, factor = reduce_loss(xp, xp.abs(residual), weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        dprediction = xp.sign(residual) * (factor * dy)
        return dprediction, -dprediction, None

    return value, vjp


@op
def huber(
    prediction: Array, target: Array, weight: Array | None = None, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Array, Vjp]:
    """Huber's loss of r = prediction - target: r^2 / 2 where |r| <= delta, else delta (|r| - delta / 2).

    The derivative is r, cut to [-delta, delta] (Huber, "Robust Estimation of a Location Parameter", Annals of
    Mathematical Statistics 35, 1964).

    Args:
        prediction: (batch, ...).
        target: the same shape.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        delta: where the parabola becomes a straight line; positive.
        reduction: as for `mse`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprediction, dtarget, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("huber", prediction, target)
    xp = namespace(prediction)
    residual = prediction - target
    size = xp.abs(residual)
    # with a = min(|r|, delta), both pieces are a (|r| - a / 2), and no large r is squared
    cut = xp.minimum(size, delta)
    value, factor = reduce_loss(xp, cut * (size - 0.5 * cut), weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        dprediction = xp.maximum(xp.minimum(residual, delta), -delta) * (factor * dy)
        return dprediction, -dprediction, None

    return value, vjp
