"""Hinge losses: those of support vector machines."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.labels import one_hot
from xpnn.ops.reduction import across_classes, check_same_shape, reduce_loss


@op
def hinge(scores: Array, labels: Array, weight: Array | None = None, *, reduction: str = "mean") -> tuple[Array, Vjp]:
    """max(0, 1 - y f), elementwise, for scores f and labels y of -1 or +1.

    The derivative is -y where y f < 1, else 0, at the kink too (Cortes and Vapnik, "Support-Vector Networks",
    Machine Learning 20, 1995).

    Args:
        scores: (batch, ...).
        labels: the same shape and dtype, -1 or +1.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        reduction: as for `mse`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dscores, None, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("hinge", scores, labels)
    xp = namespace(scores)
    margins = 1.0 - labels * scores
    value, factor = reduce_loss(xp, xp.maximum(margins, 0.0), weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        slopes = xp.where(margins > 0, -labels, xp.zeros_like(labels))
        return slopes * (factor * dy), None, None

    return value, vjp


@op
def categorical_hinge(
    scores: Array, labels: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Vjp]:
    """max(0, 1 + max over k != y of f_k - f_y), for scores f and label y: one number for each row.

    Where it is positive, the derivative is +1 for the best wrong class (the first of equal ones) and -1 for the right
    one (Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", Journal of
    Machine Learning Research 2, 2001).

    Args:
        scores: (batch, ..., classes), two classes at least.
        labels: integers (batch, ...).
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        reduction: as for `mse`, with rows for elements.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dscores, None, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    if tuple(labels.shape) != tuple(scores.shape[:-1]):
        raise ShapeError(
            f"categorical_hinge: labels of shape {tuple(labels.shape)} do not fit scores of shape "
            f"{tuple(scores.shape)}; give one integer label for each row, {tuple(scores.shape[:-1])}"
        )
    xp = namespace(scores)
    zeros = xp.zeros_like(scores)
    is_label = one_hot(xp, labels, scores.shape[-1])
    wrong = xp.where(is_label, xp.full_like(scores, float("-inf")), scores)
    right_score = xp.sum(xp.where(is_label, scores, zeros), axis=-1)
    margins = 1.0 + (xp.max(wrong, axis=-1) - right_score)
    value, factor = reduce_loss(xp, xp.maximum(margins, 0.0), weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        best = xp.argmax(wrong, axis=-1, keepdims=True)
        is_best = best == xp.arange(scores.shape[-1], dtype=best.dtype, device=device(scores))
        ones = xp.ones_like(scores)
        slopes = xp.where(is_best, ones, zeros) - xp.where(is_label, ones, zeros)
        slopes = xp.where(xp.expand_dims(margins > 0, axis=-1), slopes, zeros)
        return slopes * across_classes(xp, factor * dy), None, None

    return value, vjp
