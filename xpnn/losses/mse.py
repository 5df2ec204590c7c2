"""Squared error as a loss."""

from __future__ import annotations

from xpnn import ops
from xpnn.dispatch import Array, Vjp
from xpnn.losses.loss import Loss, check_reduction


class MSE(Loss):
    """Squared error; see `ops.mse` for what each reduction means.

    Args:
        reduction: "mean" (gradient 2r/n), "sum" (squared norm), "half_sum" (half of it), "batch_mean" or
            "half_batch_mean".
    """

    name = "mse"

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.mse(prediction, target, weight, reduction=self.reduction)
