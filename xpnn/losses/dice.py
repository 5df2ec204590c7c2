"""The Dice loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.config import check_number
from xpnn.dispatch import Array, Vjp
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import class_targets, in_unit_interval, same_shape


class Dice(Loss):
    """One minus the Dice coefficient of each class, for the segmentation of images and the like; see `ops.dice`.

    The last layer is a Softmax, or a Sigmoid where regions may overlap: (batch, ..., classes). Targets are integer
    labels (samples, ...), or masks of the output's shape that hold 0, 1 or numbers between.

    Args:
        smooth: what is added to numerator and denominator; positive.
        squared: True for the sums of squares in the denominator.
        reduction: as for `MSE`; "mean" is over samples and classes.

    Raises:
        ConfigError: smooth is not positive, or the reduction is unknown.
    """

    name = "dice"
    expects = "probabilities"
    instead: ClassVar[Mapping[str, str]] = {"log_probabilities": "a Softmax layer in the place of the LogSoftmax"}

    def __init__(self, smooth: float = 1.0, squared: bool = False, reduction: str = "mean") -> None:
        self.smooth = check_number("smooth", smooth, "a finite number > 0", lambda x: 0.0 < x < math.inf)
        self.squared = bool(squared)
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        name = type(self).__name__
        if output_shape[-1:] != (1,) and tuple(targets.shape[1:]) == tuple(output_shape[:-1]):
            return class_targets(name, targets, output_shape, backend, dtype)
        targets = same_shape(name, targets, output_shape, backend, dtype)
        return in_unit_interval(name, targets, backend, "scale the masks (from 0 to 255: y / 255)")

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.dice(prediction, target, weight, smooth=self.smooth, squared=self.squared, reduction=self.reduction)
