"""The Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.reduction import check_same_shape, reduce_loss


@op
def kl_divergence(
    log_probabilities: Array,
    target: Array,
    weight: Array | None = None,
    *,
    log_target: bool = False,
    reduction: str = "batch_mean",
) -> tuple[Array, Vjp]:
    """t (log t - l), elementwise, for target probabilities t and predicted log-probabilities l.

    Its sum over the classes is the divergence of the prediction from the target (Kullback and Leibler, "On
    Information and Sufficiency", Annals of Mathematical Statistics 22, 1951), so "batch_mean" is the divergence of a
    sample; "mean" divides by the number of classes as well. Derivatives: -t for l, log t + 1 - l for t; where t = 0
    the loss is 0 and both derivatives are taken as 0. With `log_target`, t = exp(s) for the given s, and the
    derivative for s is t (s - l + 1).

    Args:
        log_probabilities: (batch, ..., classes), as a log-softmax gives them.
        target: the same shape: probabilities, or with `log_target` their logarithms.
        weight: (batch,), one factor per sample, or None; means divide by the sum of the weights.
        log_target: True if the target is given as logarithms.
        reduction: as for `mse`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlog_probabilities, dtarget, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("kl_divergence", log_probabilities, target)
    xp = namespace(log_probabilities)
    if log_target:
        probabilities = xp.exp(target)
        difference = target - log_probabilities
    else:
        probabilities = target
        present = target > 0
        zeros = xp.zeros_like(target)
        logarithms = xp.log(xp.where(present, target, xp.ones_like(target)))
        difference = xp.where(present, logarithms - log_probabilities, zeros)
    value, factor = reduce_loss(xp, probabilities * difference, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        scale = factor * dy
        slope = difference + 1.0
        dtarget = probabilities * slope if log_target else xp.where(present, slope, zeros)
        return probabilities * (-scale), dtarget * scale, None

    return value, vjp
