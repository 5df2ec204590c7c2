"""LAMB and LARS, for large batches."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.optimizers.by_parameter import ParameterOptimizer
from xpnn.optimizers.optimizer import LearningRate, Options, check_memory, check_positive, one_minus_power


class LAMB(ParameterOptimizer):
    """Adam's direction, for each parameter with a length in proportion to the parameter's (`xpnn.ops.lamb`).

        direction = Adam's quotient + weight_decay * theta
        theta <- theta - learning_rate * norm(theta) / norm(direction) * direction

    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020.

    Args:
        learning_rate: a number or a schedule.
        beta1: how much of the mean of the gradient stays, in [0, 1).
        beta2: how much of the mean of its square stays, in [0, 1).
        epsilon: added to the root, > 0.
        weight_decay: added to the direction times theta.
        adapt_biases: True as the paper's algorithm has it. False takes Adam's steps for parameters with fewer than two
            dimensions: biases start at zero, and steps in proportion to their size would keep them there.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "lamb"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        adapt_biases: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.beta1 = check_memory("beta1", beta1)
        self.beta2 = check_memory("beta2", beta2)
        self.epsilon = check_positive("epsilon", epsilon)
        self.adapt_biases = adapt_biases

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "first_moment", "second_moment"

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        count = step + 1
        return learning_rate, one_minus_power(self.beta1, count), one_minus_power(self.beta2, count)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        learning_rate, correction1, correction2 = numbers
        first_moment, second_moment = slots
        new, _ = ops.lamb(
            theta,
            gradient,
            first_moment,
            second_moment,
            learning_rate,
            self.beta1,
            self.beta2,
            self.epsilon,
            correction1,
            correction2,
            decay,
            adapt=self.adapt_biases or theta.ndim >= 2,
        )
        return new


class LARS(ParameterOptimizer):
    """Gradient descent with momentum, for each parameter with steps in proportion to its size (`xpnn.ops.lars`).

        local_rate = trust * norm(theta) / (norm(gradient) + weight_decay * norm(theta))
        velocity <- momentum * velocity + learning_rate * local_rate * (gradient + weight_decay * theta)
        theta <- theta - velocity

    You, Gitman and Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017.

    Args:
        learning_rate: a number or a schedule. At rate 1 a step is `trust` times as long as the parameter.
        momentum: how much of the velocity stays, in [0, 1).
        trust: the paper's trust coefficient, > 0.
        weight_decay: added to the gradient times theta.
        adapt_biases: True as the paper's algorithm has it. False takes 1 for the local rate of parameters with fewer
            than two dimensions: biases start at zero, and steps in proportion to their size would keep them there.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "lars"

    def __init__(
        self,
        learning_rate: LearningRate = 1.0,
        momentum: float = 0.9,
        trust: float = 1e-3,
        weight_decay: float = 5e-4,
        adapt_biases: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.momentum = check_memory("momentum", momentum)
        self.trust = check_positive("trust", trust)
        self.adapt_biases = adapt_biases

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("velocity",)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        (velocity,), (learning_rate,) = slots, numbers
        adapt = self.adapt_biases or theta.ndim >= 2
        return ops.lars(theta, gradient, velocity, learning_rate, self.momentum, self.trust, decay, adapt=adapt)[0]
