"""Binary cross-entropy as a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import in_unit_interval, same_shape

_FIX = "recode the labels as 0 and 1 (from -1 and +1: (y + 1) / 2)"


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of logits: the last layer has no activation; see `ops.binary_cross_entropy`.

    Targets are 0 and 1, or numbers between, one for each output.

    Args:
        positive_weight: how much a label 1 counts against a label 0, for one class that is rare; one number, or one
            for each output.
        reduction: as for `MSE`.
    """

    name = "binary_cross_entropy"
    expects = "logits"
    instead: ClassVar[Mapping[str, str]] = {
        "probabilities": 'loss="binary_cross_entropy_from_probabilities" behind a Sigmoid, '
        '"cross_entropy_from_probabilities" behind a Softmax, or remove that layer (better: it is faster and more '
        "exact)",
        "sigmoid": 'loss="binary_cross_entropy_from_probabilities", or remove the Sigmoid layer (better: it is faster '
        "and more exact)",
        "log_probabilities": 'loss="nll", or remove the LogSoftmax layer',
    }

    def __init__(self, positive_weight: float | Sequence[float] = 1.0, reduction: str = "mean") -> None:
        self.positive_weight = _check_positive_weight(positive_weight)
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        weights = self.positive_weight
        if isinstance(weights, tuple) and (not output_shape or len(weights) != output_shape[-1]):
            raise ConfigError(
                f"BinaryCrossEntropy: positive_weight has {len(weights)} numbers, and a sample of the network's output "
                f"has shape {output_shape}; give one weight, or one for each entry of the last axis"
            )
        targets = same_shape(type(self).__name__, targets, output_shape, backend, dtype)
        return in_unit_interval(type(self).__name__, targets, backend, _FIX)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.binary_cross_entropy(
            prediction, target, weight, positive_weight=self.positive_weight, reduction=self.reduction
        )


class BinaryCrossEntropyFromProbabilities(Loss):
    """Binary cross-entropy of probabilities: the last layer is a Sigmoid.

    See `ops.binary_cross_entropy_from_probabilities`.

    Args:
        reduction: as for `MSE`.
    """

    name = "binary_cross_entropy_from_probabilities"
    expects = "probabilities"
    instead: ClassVar[Mapping[str, str]] = {
        "log_probabilities": 'loss="nll", or remove the LogSoftmax layer and use loss="binary_cross_entropy"'
    }

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        targets = same_shape(type(self).__name__, targets, output_shape, backend, dtype)
        return in_unit_interval(type(self).__name__, targets, backend, _FIX)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.binary_cross_entropy_from_probabilities(prediction, target, weight, reduction=self.reduction)


def _check_positive_weight(weight: float | Sequence[float]) -> float | tuple[float, ...]:
    numbers = (weight,) if isinstance(weight, (int, float)) else tuple(weight)
    if not numbers or not all(0.0 < number < math.inf for number in numbers):
        raise ConfigError(f"positive_weight={weight!r}; give a positive number, or one for each output")
    return float(weight) if isinstance(weight, (int, float)) else tuple(float(number) for number in numbers)
