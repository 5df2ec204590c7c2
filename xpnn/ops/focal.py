"""Focal losses: cross-entropies in which what is classified well counts little."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ConfigError
from xpnn.ops.labels import label_masses, log_likelihood
from xpnn.ops.reduction import across_classes, check_same_shape, reduce_loss

_FARTHEST = 10000.0
"""exp(-_FARTHEST) is 0 in every dtype."""


@op
def binary_focal(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """-a (1 - p)^gamma y log p - (1 - a) p^gamma (1 - y) log(1 - p), elementwise, with p = sigmoid(z).

    Source: Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017. With
    q = 1 - p, the derivative of -q^gamma log p is -q^gamma (q - gamma p log p); the other half is its mirror image.
    Both logarithms are softplus functions of the logit, and so are those of p^gamma and q^gamma: nothing overflows.

    Args:
        logits: (batch, ...).
        labels: the same shape and dtype, numbers in [0, 1].
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        gamma: not negative: 0 is the binary cross-entropy, and the larger, the less easy examples count.
        alpha: a, in [0, 1], how much label 1 counts against label 0; None for a factor of 1 on both.
        reduction: as for `mse`; alpha does not change what "mean" divides by.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlogits, None, None).

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: gamma is negative.
    """
    check_same_shape("binary_focal", logits, labels)
    _check_gamma("binary_focal", gamma)
    xp = namespace(logits)
    yes = labels if alpha is None else alpha * labels
    no = 1.0 - labels if alpha is None else (1.0 - alpha) * (1.0 - labels)
    decay = xp.exp(-xp.abs(logits))
    rest = xp.log1p(decay)
    surprise_yes = xp.maximum(-logits, 0.0) + rest  # -log p
    surprise_no = xp.maximum(logits, 0.0) + rest  # -log(1 - p)
    factor_yes, factor_no = _power(xp, surprise_no, gamma), _power(xp, surprise_yes, gamma)
    losses = yes * factor_yes * surprise_yes + no * factor_no * surprise_no
    value, factor = reduce_loss(xp, losses, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        large = 1.0 / (1.0 + decay)
        small = decay * large
        p, q = xp.where(logits >= 0, large, small), xp.where(logits >= 0, small, large)
        slope_yes = -factor_yes * (q + gamma * p * surprise_yes)
        slope_no = factor_no * (p + gamma * q * surprise_no)
        return (yes * slope_yes + no * slope_no) * (factor * dy), None, None

    return value, vjp


@op
def focal(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    gamma: float = 2.0,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """-(1 - p_y)^gamma log p_y with p = softmax(z), for logits z and label y: cross-entropy for gamma = 0.

    In full, a row loses sum_k m_k f(l_k) with l = log p, f(l) = -(1 - e^l)^gamma l, and the masses m_k of
    `xpnn.ops.labels.label_masses`. Its derivative is m_j f'(l_j) - p_j sum_k m_k f'(l_k), with
    f'(l) = -(1 - p)^gamma (1 - gamma p l / (1 - p)), in which l / (1 - p) has the limit -1 for p = 1. Source: Lin,
    Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, whose alpha for each class is
    here `class_weights`.

    Args:
        logits: (batch, ..., classes).
        labels: as for `cross_entropy`.
        weight: as for `cross_entropy`.
        gamma: not negative: the larger, the less easy examples count.
        class_weights: as for `cross_entropy`.
        ignore_index: as for `cross_entropy`.
        reduction: as for `cross_entropy`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlogits, None, None).

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: gamma is negative, or there are not as many class weights as classes.
    """
    _check_gamma("focal", gamma)
    xp = namespace(logits)
    masses = label_masses(xp, logits, labels, class_weights, 0.0, ignore_index)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    log_probabilities = shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    others = -xp.expm1(log_probabilities)  # 1 - p, without cancellation
    factors = xp.ones_like(others) if gamma == 0.0 else xp.pow(others, gamma)
    losses = -log_likelihood(xp, masses.by_class * factors, log_probabilities)
    value, factor = reduce_loss(xp, losses, weight, reduction, masses.counts)

    def vjp(dy: Any) -> tuple[Any, ...]:
        probabilities = xp.exp(log_probabilities)
        minus_one = -xp.ones_like(others)
        ratios = xp.where(others > 0, log_probabilities / xp.where(others > 0, others, -minus_one), minus_one)
        slopes = -masses.by_class * factors * (1.0 - gamma * probabilities * ratios)
        by_row = slopes - probabilities * xp.sum(slopes, axis=-1, keepdims=True)
        return by_row * across_classes(xp, factor * dy), None, None

    return value, vjp


def _power(xp: Any, surprise: Array, gamma: float) -> Array:
    """p^gamma for the probability p whose -log p is given."""
    if gamma == 0.0:
        return xp.ones_like(surprise)
    return xp.exp(-gamma * xp.minimum(surprise, _FARTHEST / gamma))


def _check_gamma(name: str, gamma: float) -> None:
    if not gamma >= 0.0:
        raise ConfigError(f"{name}: gamma={gamma!r}; give a number >= 0")
