"""Cross-entropy: of logits (fused with the softmax), of probabilities, of log-probabilities."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.labels import label_masses, log_likelihood
from xpnn.ops.logarithm import bounded_log
from xpnn.ops.reduction import across_classes, reduce_loss


@op
def cross_entropy(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """Softmax and cross-entropy in one: -log p_y with p = softmax(z), for logits z and label y.

    In full, a row loses -sum_k m_k log p_k with the masses m_k of `xpnn.ops.labels.label_masses`: m_k = [k = y] for a
    plain label. Its gradient with respect to z is p sum_k m_k - m: (p - y) / n for the mean of n one-hot rows
    (Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.3.4). Label smoothing: Szegedy, Vanhoucke,
    Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.

    The largest logit is subtracted first, so that no exponential overflows; log p is never formed from p.

    Args:
        logits: (batch, ..., classes).
        labels: integers (batch, ...), each in [0, classes) or ignore_index; or soft labels (batch, ..., classes), which
            are probabilities. What another integer does is not defined: check labels where data come in.
        weight: (batch,), one factor per sample, or None.
        class_weights: one factor per class, or None.
        label_smoothing: s in [0, 1]: labels become (1 - s) y + s / classes.
        ignore_index: an integer label that adds nothing and does not count, or None.
        reduction: "mean" divides by the sum of what the rows count: their sample weight, times the class weight of an
            integer label, 0 for an ignored one (the loss is 0 if nothing counts). "sum", "half_sum", "batch_mean"
            and "half_batch_mean" as for `mse`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlogits, None, None).
    """
    xp = namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    powers = xp.exp(shifted)
    normalizer = xp.sum(powers, axis=-1, keepdims=True)
    masses = label_masses(xp, logits, labels, class_weights, label_smoothing, ignore_index)
    # -log p_k = log(normalizer) - shifted_k: two numbers >= 0, so that nothing cancels
    log_normalizer = xp.squeeze(xp.log(normalizer) * masses.total, axis=-1)
    losses = log_normalizer - log_likelihood(xp, masses.by_class, shifted)
    value, factor = reduce_loss(xp, losses, weight, reduction, masses.counts)

    def vjp(dy: Any) -> tuple[Any, ...]:
        by_row = powers * (masses.total / normalizer) - masses.by_class
        return by_row * across_classes(xp, factor * dy), None, None

    return value, vjp


@op
def cross_entropy_from_probabilities(
    probabilities: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """Cross-entropy of probabilities p: -log p_y, for a network that ends in a softmax.

    `cross_entropy` of the logits is faster, and exact where p underflows; use it where you can. The derivative is
    -m_k / p_k. Below a floor (2^-120, about 8e-37, in float32; 2^-1016 in float64) the logarithm goes on as its
    tangent: a probability of 0 costs about 84 (float32) or 705 (float64), with the finite derivative -1 / floor.

    Args:
        probabilities: (batch, ..., classes); each row >= 0 with sum 1. That is not checked.
        labels: as for `cross_entropy`.
        weight: as for `cross_entropy`.
        class_weights: as for `cross_entropy`.
        label_smoothing: as for `cross_entropy`.
        ignore_index: as for `cross_entropy`.
        reduction: as for `cross_entropy`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprobabilities, None, None).
    """
    xp = namespace(probabilities)
    masses = label_masses(xp, probabilities, labels, class_weights, label_smoothing, ignore_index)
    logarithms, slopes = bounded_log(xp, probabilities)
    losses = -log_likelihood(xp, masses.by_class, logarithms)
    value, factor = reduce_loss(xp, losses, weight, reduction, masses.counts)

    def vjp(dy: Any) -> tuple[Any, ...]:
        return masses.by_class * across_classes(xp, -(factor * dy)) * slopes, None, None

    return value, vjp


@op
def nll(
    log_probabilities: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """Negative log-likelihood: -l_y for log-probabilities l and label y; the gradient is -[k = y].

    Args:
        log_probabilities: (batch, ..., classes), as a log-softmax gives them.
        labels: as for `cross_entropy`.
        weight: as for `cross_entropy`.
        class_weights: as for `cross_entropy`.
        ignore_index: as for `cross_entropy`.
        reduction: as for `cross_entropy`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlog_probabilities, None, None).
    """
    xp = namespace(log_probabilities)
    masses = label_masses(xp, log_probabilities, labels, class_weights, 0.0, ignore_index)
    losses = -log_likelihood(xp, masses.by_class, log_probabilities)
    value, factor = reduce_loss(xp, losses, weight, reduction, masses.counts)

    def vjp(dy: Any) -> tuple[Any, ...]:
        return masses.by_class * across_classes(xp, -(factor * dy)), None, None

    return value, vjp
