"""The Kullback-Leibler divergence as a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.dispatch import Array, Vjp
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import probability_rows, same_shape


class KLDivergence(Loss):
    """Divergence of predicted log-probabilities from target probabilities; see `ops.kl_divergence`.

    Args:
        log_target: True if the targets are log-probabilities too.
        reduction: "batch_mean" is the divergence of a sample; "mean" divides by the number of classes as well.
    """

    name = "kl_divergence"
    expects = "log_probabilities"
    instead: ClassVar[Mapping[str, str]] = {
        "probabilities": "a LogSoftmax layer in the place of the Softmax",
        "sigmoid": "a LogSoftmax layer in the place of the Sigmoid",
    }

    def __init__(self, log_target: bool = False, reduction: str = "batch_mean") -> None:
        self.log_target = log_target
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        name = type(self).__name__
        targets = same_shape(name, targets, output_shape, backend, dtype)
        advice = "for plain probabilities, write log_target=False" if self.log_target else ""
        return probability_rows(name, targets, backend, self.log_target, advice)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.kl_divergence(prediction, target, weight, log_target=self.log_target, reduction=self.reduction)
