"""Focal losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.config import check_number
from xpnn.dispatch import Array, Vjp
from xpnn.losses.cross_entropy import _ClassLoss, check_class_weights, check_ignore_index
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import in_unit_interval, same_shape

_LOGITS: Mapping[str, str] = {
    "probabilities": "the network without its Softmax layer: the loss wants logits",
    "log_probabilities": "the network without its LogSoftmax layer: the loss wants logits",
    "sigmoid": "the network without its Sigmoid layer: the loss wants logits",
}


class Focal(_ClassLoss):
    """Cross-entropy of logits times (1 - p)^gamma: what is classified well counts little; see `ops.focal`.

    Targets are as for `CrossEntropy`, which this is for gamma = 0.

    Args:
        gamma: not negative.
        class_weights: one factor per class (the paper's alpha), or None.
        ignore_index: as for `CrossEntropy`.
        reduction: as for `CrossEntropy`.

    Raises:
        ConfigError: a setting makes no sense.
    """

    name = "focal"
    expects = "logits"
    instead: ClassVar[Mapping[str, str]] = _LOGITS

    def __init__(
        self,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        self.gamma = _check_gamma(gamma)
        self.class_weights = check_class_weights(class_weights)
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.focal(
            prediction,
            target,
            weight,
            gamma=self.gamma,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class BinaryFocal(Loss):
    """Binary cross-entropy of logits with the factor of the focal loss, for each output; see `ops.binary_focal`.

    Targets are 0 and 1, or numbers between, one for each output.

    Args:
        gamma: not negative.
        alpha: how much label 1 counts, in [0, 1]; label 0 counts 1 - alpha. None: both count 1.
        reduction: as for `MSE`.

    Raises:
        ConfigError: a setting makes no sense.
    """

    name = "binary_focal"
    expects = "logits"
    instead: ClassVar[Mapping[str, str]] = _LOGITS

    def __init__(self, gamma: float = 2.0, alpha: float | None = 0.25, reduction: str = "mean") -> None:
        self.gamma = _check_gamma(gamma)
        self.alpha = (
            None if alpha is None else check_number("alpha", alpha, "a number from 0 to 1", lambda x: 0.0 <= x <= 1.0)
        )
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        targets = same_shape(type(self).__name__, targets, output_shape, backend, dtype)
        return in_unit_interval(type(self).__name__, targets, backend, "recode the labels as 0 and 1")

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.binary_focal(
            prediction, target, weight, gamma=self.gamma, alpha=self.alpha, reduction=self.reduction
        )


def _check_gamma(gamma: float) -> float:
    return check_number("gamma", gamma, "a finite number >= 0", lambda x: 0.0 <= x < math.inf)
