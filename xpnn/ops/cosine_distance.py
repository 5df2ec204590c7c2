"""The angle between prediction and target as a loss."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.reduction import across_classes, check_same_shape, reduce_loss


@op
def cosine_distance(
    prediction: Array, target: Array, weight: Array | None = None, *, eps: float = 1e-8, reduction: str = "mean"
) -> tuple[Array, Vjp]:
    """1 - cos(x, t) along the last axis, with cos(x, t) = x . t / (max(|x|, eps) max(|t|, eps)): one number a row.

    With u and v the vectors divided by those lengths and c = u . v, the derivative of c with respect to x is
    (v - c u) / |x|, and v / eps where |x| <= eps. A vector of zeros has the distance 1.

    Args:
        prediction: (batch, ..., features).
        target: the same shape.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        eps: the smallest length that counts as one; positive.
        reduction: as for `mse`, with rows for elements.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprediction, dtarget, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("cosine_distance", prediction, target)
    xp = namespace(prediction)
    prediction_length = vector_length(xp, prediction)
    target_length = vector_length(xp, target)
    prediction_scale = xp.maximum(prediction_length, eps)
    target_scale = xp.maximum(target_length, eps)
    u = prediction / prediction_scale
    v = target / target_scale
    cosine = xp.sum(u * v, axis=-1, keepdims=True)
    value, factor = reduce_loss(xp, 1.0 - xp.squeeze(cosine, axis=-1), weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        scale = across_classes(xp, -(factor * dy))
        nothing = xp.zeros_like(u)
        along_u = xp.where(prediction_length > eps, cosine * u, nothing)
        along_v = xp.where(target_length > eps, cosine * v, nothing)
        return (v - along_u) / prediction_scale * scale, (u - along_v) / target_scale * scale, None

    return value, vjp


def vector_length(xp: Any, x: Array) -> Array:
    """The Euclidean length along the last axis, which is kept; the largest entry is divided out before squaring."""
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    divisor = xp.where(largest > 0, largest, xp.ones_like(largest))
    scaled = x / divisor
    return largest * xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
