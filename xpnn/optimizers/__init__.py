"""Every optimizer, and the names by which `fit` takes them."""

from xpnn.optimizers.adafactor import Adafactor
from xpnn.optimizers.adagrad import Adadelta, Adagrad
from xpnn.optimizers.adam import Adam, AdamW, AMSGrad, Nadam
from xpnn.optimizers.barzilai_borwein import BarzilaiBorwein
from xpnn.optimizers.by_parameter import ParameterOptimizer
from xpnn.optimizers.lamb import LAMB, LARS
from xpnn.optimizers.lbfgs import LBFGS
from xpnn.optimizers.lion import Lion
from xpnn.optimizers.muon import Muon
from xpnn.optimizers.optimizer import Optimizer
from xpnn.optimizers.rmsprop import RMSprop
from xpnn.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.name: optimizer
    for optimizer in (
        SGD,
        RMSprop,
        Adagrad,
        Adadelta,
        Adam,
        AMSGrad,
        AdamW,
        Nadam,
        Lion,
        BarzilaiBorwein,
        LAMB,
        LARS,
        Adafactor,
        Muon,
        LBFGS,
    )
}

__all__ = [
    "LAMB",
    "LARS",
    "LBFGS",
    "OPTIMIZERS",
    "SGD",
    "AMSGrad",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "BarzilaiBorwein",
    "Lion",
    "Muon",
    "Nadam",
    "Optimizer",
    "ParameterOptimizer",
    "RMSprop",
]
