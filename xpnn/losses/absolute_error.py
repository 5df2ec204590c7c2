"""Absolute error and Huber's loss as losses."""

from __future__ import annotations

import math

from xpnn import ops
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError
from xpnn.losses.loss import Loss, check_reduction


class MAE(Loss):
    """Absolute error; see `ops.mae`.

    Args:
        reduction: as for `MSE`.
    """

    name = "mae"

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.mae(prediction, target, weight, reduction=self.reduction)


class Huber(Loss):
    """Squared error near the target, absolute error far from it; see `ops.huber`.

    Args:
        delta: where the one becomes the other; positive.
        reduction: as for `MSE`.
    """

    name = "huber"

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        if not 0.0 < delta < math.inf:
            raise ConfigError(f"Huber: delta={delta!r}; give a positive number")
        self.delta = float(delta)
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.huber(prediction, target, weight, delta=self.delta, reduction=self.reduction)
