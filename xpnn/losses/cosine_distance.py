"""One minus the cosine of the angle between prediction and target."""

from __future__ import annotations

import math

from xpnn import ops
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError
from xpnn.losses.loss import Loss, check_reduction


class CosineDistance(Loss):
    """1 - cos(prediction, target) along the last axis; see `ops.cosine_distance`.

    Args:
        eps: the smallest length that counts as one; positive.
        reduction: as for `MSE`; "mean" is over the vectors.
    """

    name = "cosine"

    def __init__(self, eps: float = 1e-8, reduction: str = "mean") -> None:
        if not 0.0 < eps < math.inf:
            raise ConfigError(f"CosineDistance: eps={eps!r}; give a positive number")
        self.eps = float(eps)
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.cosine_distance(prediction, target, weight, eps=self.eps, reduction=self.reduction)
