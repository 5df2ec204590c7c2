"""Muon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

from xpnn import ops
from xpnn.config import check_integer, check_number
from xpnn.dispatch import Array
from xpnn.errors import ConfigError
from xpnn.layers.layer import Shape
from xpnn.ops.muon import COEFFICIENTS
from xpnn.optimizers.by_parameter import ParameterOptimizer
from xpnn.optimizers.optimizer import LearningRate, Options, check_memory, check_positive, one_minus_power
from xpnn.schedules import check_rate

_SCALES = ("original", "match_rms_adamw")


class Muon(ParameterOptimizer):
    """Momentum with orthogonal steps for matrices, and AdamW for all else (`xpnn.ops.muon`).

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. For a matrix:

        average <- momentum * average + (1 - momentum) * gradient
        direction = momentum * average + (1 - momentum) * gradient
        theta <- (1 - learning_rate * weight_decay) * theta - learning_rate * scale * orthogonalize(direction)

    where `xpnn.ops.orthogonalize` makes all singular values about 1, by matrix products alone. For matrices it takes
    the steps of PyTorch's Muon (which computes the products in bfloat16, where xpnn computes in the network's dtype).

    Every parameter with two or more dimensions is a matrix: the kernels of a convolution, (height, width, in, out),
    count as one with height * width * in rows and `out` columns. Biases and other parameters with fewer dimensions
    take AdamW's steps, with a learning rate that is `adam_factor` times this one's.

    Args:
        learning_rate: a number or a schedule.
        momentum: how much of the average stays, in [0, 1).
        nesterov: look ahead along the new average; False takes the average itself as the direction.
        iterations: of Newton and Schulz.
        coefficients: the three of the iteration.
        epsilon: a direction of a smaller norm is not scaled up, > 0.
        scale: "original" multiplies the step of a matrix with sqrt(max(1, columns / rows)); "match_rms_adamw" with
            0.2 * sqrt(max(rows, columns)), so that its elements are of about the size of AdamW's steps and AdamW's
            learning rates can be used (Liu et al., "Muon is scalable for LLM training", 2025).
        adam_factor: the learning rate of AdamW, in units of this one's.
        adam_beta1: AdamW's beta1, in [0, 1).
        adam_beta2: AdamW's beta2, in [0, 1).
        adam_epsilon: AdamW's epsilon, > 0.
        weight_decay: decoupled: theta shrinks by the factor 1 - learning rate * weight_decay.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "muon"

    def __init__(
        self,
        learning_rate: LearningRate = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        iterations: int = 5,
        coefficients: Sequence[float] = COEFFICIENTS,
        epsilon: float = 1e-7,
        scale: str = "original",
        adam_factor: float = 0.015,
        adam_beta1: float = 0.9,
        adam_beta2: float = 0.95,
        adam_epsilon: float = 1e-10,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.momentum = check_memory("momentum", momentum)
        self.nesterov = nesterov
        self.iterations = check_integer("iterations", iterations, minimum=0)
        self.coefficients = _three_numbers(coefficients)
        self.epsilon = check_positive("epsilon", epsilon)
        self.scale = scale
        self.adam_factor = check_rate("adam_factor", adam_factor)
        self.adam_beta1 = check_memory("adam_beta1", adam_beta1)
        self.adam_beta2 = check_memory("adam_beta2", adam_beta2)
        self.adam_epsilon = check_positive("adam_epsilon", adam_epsilon)
        if scale not in _SCALES:
            raise ConfigError(f"scale={scale!r} is unknown; give one of {', '.join(map(repr, _SCALES))}")

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "average", "first_moment", "second_moment"

    def slot_shape(self, slot: str, shape: Shape) -> Shape | None:
        return shape if (slot == "average") == (len(shape) >= 2) else None

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        count = step + 1
        return learning_rate, one_minus_power(self.adam_beta1, count), one_minus_power(self.adam_beta2, count)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        learning_rate, correction1, correction2 = numbers
        if theta.ndim < 2:
            first_moment, second_moment = slots
            rate = learning_rate * self.adam_factor
            betas = self.adam_beta1, self.adam_beta2, self.adam_epsilon, correction1, correction2
            return ops.adam(theta, gradient, first_moment, second_moment, rate, *betas, decay)[0]
        (average,) = slots
        return ops.muon(
            theta,
            gradient,
            average,
            learning_rate,
            self.momentum,
            self._scale_of(theta.shape),
            decay,
            nesterov=self.nesterov,
            iterations=self.iterations,
            coefficients=self.coefficients,
            epsilon=self.epsilon,
        )[0]

    def _scale_of(self, shape: Shape) -> float:
        """The factor of the step of a parameter of this shape."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        if self.scale == "original":
            return math.sqrt(max(1.0, columns / max(rows, 1)))
        return 0.2 * math.sqrt(max(rows, columns))


def _three_numbers(coefficients: Any) -> tuple[float, float, float]:
    try:
        a, b, c = coefficients
    except (TypeError, ValueError):
        raise ConfigError(f"coefficients={coefficients!r} makes no sense; give three numbers") from None
    numbers = [check_number("coefficients", each, "three finite numbers", math.isfinite) for each in (a, b, c)]
    return numbers[0], numbers[1], numbers[2]
