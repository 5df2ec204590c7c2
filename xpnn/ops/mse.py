"""Squared error."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.reduction import check_same_shape, reduce_loss


@op
def mse(prediction: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean") -> tuple[Array, Vjp]:
    """Squared error (prediction - target)^2, reduced to one number.

    With r = prediction - target and n numbers in it: "mean" is sum(r^2)/n with gradient 2r/n, "sum" is the squared
    norm with gradient 2r, "half_sum" is half of it with gradient r, "batch_mean" is the squared norm over the batch
    size, "half_batch_mean" half of that.

    Args:
        prediction: (batch, ...).
        target: the same shape.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        reduction: "mean", "sum", "half_sum", "batch_mean" or "half_batch_mean".

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprediction, dtarget, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("mse", prediction, target)
    xp = namespace(prediction)
    residual = prediction - target
    value, factor = reduce_loss(xp, residual * residual, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        dprediction = residual * (2.0 * dy * factor)
        return dprediction, -dprediction, None

    return value, vjp
