"""Adagrad and Adadelta."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.dispatch import Array, namespace
from xpnn.optimizers.optimizer import (
    LearningRate,
    Optimizer,
    Options,
    Slots,
    check_memory,
    check_positive,
)
from xpnn.parameters import Layout, Vector
from xpnn.schedules import check_rate


class Adagrad(Optimizer):
    """The gradient divided by the root of the sum of all its squares (`xpnn.ops.adagrad`; Duchi et al., JMLR 2011).

    Args:
        learning_rate: a number or a schedule.
        learning_rate_decay: the rate is divided by 1 + step * learning_rate_decay.
        initial_accumulator: the first value of the sum of squares.
        epsilon: added to the root, > 0.
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "adagrad"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-2,
        learning_rate_decay: float = 0.0,
        initial_accumulator: float = 0.0,
        epsilon: float = 1e-10,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.learning_rate_decay = check_rate("learning_rate_decay", learning_rate_decay)
        self.initial_accumulator = check_rate("initial_accumulator", initial_accumulator)
        self.epsilon = check_positive("epsilon", epsilon)

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("square_sum",)

    def initial_slots(self, theta: Vector, layout: Layout) -> Slots:
        slots = super().initial_slots(theta, layout)
        if self.initial_accumulator:
            slots["square_sum"] = tuple(namespace(x).full_like(x, self.initial_accumulator) for x in theta)
        return slots

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        if not self.learning_rate_decay:
            return (learning_rate,)
        return (learning_rate / (1.0 + step * self.learning_rate_decay),)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        (square_sum,), (learning_rate,) = slots, numbers
        new, _ = ops.adagrad(theta, gradient, square_sum, learning_rate, self.epsilon, donate=True)
        return new


class Adadelta(Optimizer):
    """Steps of the size of earlier steps, needing no learning rate (`xpnn.ops.adadelta`; Zeiler, arXiv:1212.5701).

    Args:
        learning_rate: a number or a schedule; 1 is the paper's method.
        rho: how much of the running means stays, in [0, 1).
        epsilon: added under the roots, > 0.
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "adadelta"

    def __init__(
        self,
        learning_rate: LearningRate = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.rho = check_memory("rho", rho)
        self.epsilon = check_positive("epsilon", epsilon)

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "square_average", "square_step_average"

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        square_average, square_step_average = slots
        (learning_rate,) = numbers
        new, _ = ops.adadelta(
            theta, gradient, square_average, square_step_average, learning_rate, self.rho, self.epsilon, donate=True
        )
        return new
