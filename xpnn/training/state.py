"""What a training needs to be continued."""

from __future__ import annotations

from typing import NamedTuple

from xpnn.dispatch import Array
from xpnn.losses.loss import Loss
from xpnn.metrics import Metric
from xpnn.optimizers.optimizer import Optimizer, Slots


class TrainingState(NamedTuple):
    """The state of a training between two epochs; `fit(..., resume=True)` goes on from it, and model files carry it.

    Attributes:
        optimizer: its settings.
        loss: the loss that is trained on.
        metrics: what is watched besides.
        slots: the optimizer's memory, vectors of the layout of the network's parameters.
        step: how many steps were taken.
        epoch: how many epochs were completed.
        scaling: after a training in float16, the loss scale (a `xpnn.training.precision.Scaling`); else ().
    """

    optimizer: Optimizer
    loss: Loss
    metrics: tuple[Metric, ...]
    slots: Slots
    step: int
    epoch: int
    scaling: tuple[Array, ...] = ()
