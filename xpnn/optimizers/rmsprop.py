"""RMSprop."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.optimizers.optimizer import LearningRate, Optimizer, Options, check_memory, check_positive


class RMSprop(Optimizer):
    """The gradient divided by its running root mean square (`xpnn.ops.rmsprop`; Tieleman and Hinton, 2012).

    Args:
        learning_rate: a number or a schedule.
        alpha: how much of the running mean of the squares stays, in [0, 1).
        epsilon: added to the root, > 0.
        momentum: how much of the velocity stays, in [0, 1); 0 keeps no velocity.
        centered: divide by the running standard deviation instead (`xpnn.ops.rmsprop_centered`; Graves, 2013).
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "rmsprop"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-2,
        alpha: float = 0.99,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.alpha = check_memory("alpha", alpha)
        self.epsilon = check_positive("epsilon", epsilon)
        self.momentum = check_memory("momentum", momentum)
        self.centered = centered

    @property
    def slot_names(self) -> tuple[str, ...]:
        names = ("variance", "average") if self.centered else ("square_average",)
        return (*names, "velocity") if self.momentum else names

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        settings = (*numbers, self.alpha, self.epsilon, self.momentum)
        *averages, velocity = slots if self.momentum else (*slots, None)
        if self.centered:
            variance, average = averages
            return ops.rmsprop_centered(theta, gradient, variance, average, velocity, *settings, donate=True)[0]
        (square_average,) = averages
        return ops.rmsprop(theta, gradient, square_average, velocity, *settings, donate=True)[0]
