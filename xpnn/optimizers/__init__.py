"""Every optimizer, and the names by which `fit` takes them."""

from xpnn.optimizers.adagrad import Adadelta, Adagrad
from xpnn.optimizers.adam import Adam, AdamW, AMSGrad, Nadam
from xpnn.optimizers.barzilai_borwein import BarzilaiBorwein
from xpnn.optimizers.lion import Lion
from xpnn.optimizers.optimizer import Optimizer
from xpnn.optimizers.rmsprop import RMSprop
from xpnn.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.name: optimizer
    for optimizer in (SGD, RMSprop, Adagrad, Adadelta, Adam, AMSGrad, AdamW, Nadam, Lion, BarzilaiBorwein)
}

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AMSGrad",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "BarzilaiBorwein",
    "Lion",
    "Nadam",
    "Optimizer",
    "RMSprop",
]
