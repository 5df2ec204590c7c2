"""Every loss, and the names by which `fit` takes them."""

from xpnn.losses.loss import Loss
from xpnn.losses.mse import MSE

LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (MSE,)}

__all__ = ["LOSSES", "MSE", "Loss"]
