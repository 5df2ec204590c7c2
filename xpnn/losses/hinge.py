"""Hinge losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.dispatch import Array, Vjp
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import class_targets, labels_of_rows, same_shape, signs

_SCORES: Mapping[str, str] = {
    "probabilities": "the network without its Softmax (or Sigmoid) layer: the loss wants scores of any size",
    "sigmoid": "the network without its Sigmoid layer: the loss wants scores of any size",
    "log_probabilities": "the network without its LogSoftmax layer: the loss wants scores of any size",
}


class Hinge(Loss):
    """Hinge loss of one score per yes-or-no question; see `ops.hinge`.

    Targets are -1 and +1, or 0 and 1 (0 is taken as -1). A score above 0 says yes.

    Args:
        reduction: as for `MSE`.
    """

    name = "hinge"
    expects = "logits"
    instead: ClassVar[Mapping[str, str]] = _SCORES

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        name = type(self).__name__
        return signs(name, same_shape(name, targets, output_shape, backend, dtype), backend)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.hinge(prediction, target, weight, reduction=self.reduction)


class CategoricalHinge(Loss):
    """Hinge loss of one score per class, after Crammer and Singer; see `ops.categorical_hinge`.

    Targets are integer labels (samples, ...) or one-hot rows (samples, ..., classes).

    Args:
        reduction: as for `MSE`; "mean" is over the rows.
    """

    name = "categorical_hinge"
    expects = "logits"
    instead: ClassVar[Mapping[str, str]] = _SCORES

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        targets = class_targets(type(self).__name__, targets, output_shape, backend, dtype)
        return labels_of_rows(type(self).__name__, targets, backend)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.categorical_hinge(prediction, target, weight, reduction=self.reduction)
