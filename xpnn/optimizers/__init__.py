"""Every optimizer, and the names by which `fit` takes them."""

from xpnn.optimizers.optimizer import Optimizer
from xpnn.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {optimizer.name: optimizer for optimizer in (SGD,)}

__all__ = ["OPTIMIZERS", "SGD", "Optimizer"]
