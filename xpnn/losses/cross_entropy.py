"""The cross-entropies as losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.dispatch import OPS, Array, Vjp, namespace
from xpnn.errors import ConfigError
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import class_targets
from xpnn.ops.labels import label_counts


class _ClassLoss(Loss):
    """What the losses with class labels share: how targets come in, and what they count."""

    class_weights: tuple[float, ...] | None
    ignore_index: int | None
    reduction: str

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        weights = self.class_weights
        if weights is not None and output_shape and len(weights) != output_shape[-1]:
            raise ConfigError(
                f"{type(self).__name__}: class_weights has {len(weights)} numbers, and the network has "
                f"{output_shape[-1]} outputs; give one weight per output"
            )
        return class_targets(type(self).__name__, targets, output_shape, backend, dtype, self.ignore_index)

    def total_weight(self, target: Array, weight: Array | None, like: Array | None = None) -> Any:
        if self.class_weights is None and self.ignore_index is None:
            return super().total_weight(target, weight, like)
        xp = namespace(target)
        # the other means divide by the batch, and rows of soft labels count 1
        if self.reduction != "mean" or not xp.isdtype(target.dtype, "integral"):
            return super().total_weight(target, weight, like)
        given = like if like is not None else weight
        dtype = xp.float32 if given is None else given.dtype
        counts = label_counts(xp, target, dtype, self.class_weights, self.ignore_index)
        if counts is None:
            return super().total_weight(target, weight, like)
        if weight is not None:
            counts = counts * xp.reshape(weight, (weight.shape[0],) + (1,) * (counts.ndim - 1))
        return xp.sum(counts)


class _SmoothedClassLoss(_ClassLoss):
    """What the losses that can smooth labels share; each is made of the op of its own name."""

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        self.class_weights = check_class_weights(class_weights)
        self.label_smoothing = _check_smoothing(label_smoothing)
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return OPS[self.name].function(
            prediction,
            target,
            weight,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class CrossEntropy(_SmoothedClassLoss):
    """Cross-entropy of logits: the last layer has no activation; see `ops.cross_entropy`.

    Targets are integer labels (samples, ...) or one-hot or soft labels (samples, ..., classes).

    Args:
        class_weights: one factor per class, or None. The mean of integer labels divides by the sum of the factors of
            the labels, that of one-hot and soft labels by their number, as in PyTorch.
        label_smoothing: s in [0, 1]: labels become (1 - s) y + s / classes.
        ignore_index: an integer label that adds nothing and does not count, or None.
        reduction: "mean", "sum", or another of `MSE`.
    """

    name = "cross_entropy"
    expects = "logits"
    instead: ClassVar[Mapping[str, str]] = {
        "probabilities": 'loss="cross_entropy_from_probabilities", or remove the Softmax layer (better: it is faster '
        "and more exact)",
        "log_probabilities": 'loss="nll", or remove the LogSoftmax layer (better: it is faster)',
        "sigmoid": 'loss="binary_cross_entropy_from_probabilities" if several classes may be right at once, else '
        "remove the Sigmoid layer",
    }


class CrossEntropyFromProbabilities(_SmoothedClassLoss):
    """Cross-entropy of probabilities: the last layer is a Softmax; see `ops.cross_entropy_from_probabilities`.

    Args:
        class_weights: as for `CrossEntropy`.
        label_smoothing: as for `CrossEntropy`.
        ignore_index: as for `CrossEntropy`.
        reduction: as for `CrossEntropy`.
    """

    name = "cross_entropy_from_probabilities"
    expects = "probabilities"
    instead: ClassVar[Mapping[str, str]] = {
        "log_probabilities": 'loss="nll", or remove the LogSoftmax layer and use loss="cross_entropy"',
        "sigmoid": 'loss="binary_cross_entropy_from_probabilities", or a Softmax layer in the place of the Sigmoid',
    }


class NLL(_ClassLoss):
    """Negative log-likelihood: the last layer is a LogSoftmax; see `ops.nll`.

    Args:
        class_weights: as for `CrossEntropy`.
        ignore_index: as for `CrossEntropy`.
        reduction: as for `CrossEntropy`.
    """

    name = "nll"
    expects = "log_probabilities"
    instead: ClassVar[Mapping[str, str]] = {
        "probabilities": 'loss="cross_entropy_from_probabilities", or remove the Softmax layer and use '
        'loss="cross_entropy" (better: it is faster and more exact)',
        "sigmoid": 'loss="binary_cross_entropy_from_probabilities", or a LogSoftmax layer in the place of the Sigmoid',
    }

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        self.class_weights = check_class_weights(class_weights)
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.nll(
            prediction,
            target,
            weight,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


def check_class_weights(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """The weights as a tuple of floats. Raises ConfigError if they are no finite numbers >= 0."""
    if weights is None:
        return None
    numbers = tuple(float(weight) for weight in weights)
    if not numbers or not all(0.0 <= number < math.inf for number in numbers):
        raise ConfigError(f"class_weights={weights!r}; give one finite number >= 0 per class")
    return numbers


def _check_smoothing(smoothing: float) -> float:
    if not 0.0 <= smoothing <= 1.0:
        raise ConfigError(f"label_smoothing={smoothing!r}; give a number from 0 to 1")
    return float(smoothing)


def check_ignore_index(index: int | None) -> int | None:
    """`index` itself. Raises ConfigError if it is neither an integer nor None."""
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise ConfigError(f"ignore_index={index!r}; give the integer label to ignore, or None")
    return index
