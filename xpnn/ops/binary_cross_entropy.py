"""Binary cross-entropy: each output is a yes-or-no question of its own."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.ops.logarithm import bounded_log, bounded_log_complement
from xpnn.ops.reduction import check_same_shape, reduce_loss


@op
def binary_cross_entropy(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    positive_weight: float | tuple[float, ...] = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """Sigmoid and binary cross-entropy in one: a y softplus(-z) + (1 - y) softplus(z), elementwise.

    That is -a y log p - (1 - y) log(1 - p) with p = sigmoid(z), and a the weight of the positive labels. The gradient
    is (1 - y) p - a y (1 - p), which is p - y for a = 1 (Bishop, "Pattern Recognition and Machine Learning", 2006,
    section 4.3.2). With e = exp(-|z|), softplus(z) = max(z, 0) + log(1 + e): nothing overflows or cancels.

    Args:
        logits: (batch, ...).
        labels: the same shape and dtype, numbers in [0, 1].
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        positive_weight: a, one number, or one for each output (the last axis).
        reduction: as for `mse`; positive_weight does not change what "mean" divides by.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlogits, None, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("binary_cross_entropy", logits, labels)
    xp = namespace(logits)
    scale: Any = positive_weight
    if not isinstance(scale, (int, float)):
        scale = xp.asarray(scale, dtype=logits.dtype, device=device(logits))
    positive = labels * scale
    negative = 1.0 - labels
    decay = xp.exp(-xp.abs(logits))
    losses = positive * xp.maximum(-logits, 0.0) + negative * xp.maximum(logits, 0.0)
    losses = losses + (positive + negative) * xp.log1p(decay)
    value, factor = reduce_loss(xp, losses, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        large = 1.0 / (1.0 + decay)
        small = decay * large
        above = logits >= 0
        slope = negative * xp.where(above, large, small) - positive * xp.where(above, small, large)
        return slope * (factor * dy), None, None

    return value, vjp


@op
def binary_cross_entropy_from_probabilities(
    probabilities: Array, labels: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Vjp]:
    """-y log p - (1 - y) log(1 - p), elementwise, for a network that ends in a sigmoid.

    `binary_cross_entropy` of the logits is exact where p rounds to 1; use it where you can. The derivative is
    -y / p + (1 - y) / (1 - p). Below a floor each logarithm goes on as its tangent: log p below 2^-120 in float32
    (2^-1016 in float64), log(1 - p) below half the spacing of the numbers at 1, 2^-24 (2^-53). So p = 0 for y = 1
    costs about 84 (705), p = 1 for y = 0 about 17.6 (37.7), and the derivatives are finite.

    Args:
        probabilities: (batch, ...), numbers in [0, 1]. That is not checked.
        labels: the same shape and dtype, numbers in [0, 1].
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        reduction: as for `mse`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprobabilities, None, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("binary_cross_entropy_from_probabilities", probabilities, labels)
    xp = namespace(probabilities)
    log_yes, slope_yes = bounded_log(xp, probabilities)
    log_no, slope_no = bounded_log_complement(xp, probabilities)
    losses = -(labels * log_yes + (1.0 - labels) * log_no)
    value, factor = reduce_loss(xp, losses, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        # the factor goes to the labels first: it may be small where a slope is near the largest number
        scale = -(factor * dy)
        return (labels * scale) * slope_yes + ((1.0 - labels) * scale) * slope_no, None, None

    return value, vjp
