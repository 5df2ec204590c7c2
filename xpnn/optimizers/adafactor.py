"""Adafactor."""

from __future__ import annotations

import math
from typing import Any, Unpack

from xpnn import ops
from xpnn.config import check_number
from xpnn.dispatch import Array, backend_of, namespace
from xpnn.layers.layer import Shape
from xpnn.optimizers.by_parameter import ParameterOptimizer
from xpnn.optimizers.optimizer import LearningRate, Options, check_positive


class Adafactor(ParameterOptimizer):
    """Adam's denominator, remembered for a matrix by its rows and columns only (`xpnn.ops.adafactor_factored`).

    For a matrix of n x m numbers, the memory is n + m; for kernels of a convolution it is (in + out) for each place of
    the kernel. Steps are in proportion to the parameter's size. Shazeer and Stern, "Adafactor: adaptive learning rates
    with sublinear memory cost", ICML 2018, in the form of PyTorch's Adafactor.

    With t the number of the step, from 1:

        running means take t^beta2_decay from the new gradient, and the rest from what they were
        step = min(learning_rate, 1 / sqrt(t)) * max(epsilon2, rms(theta)) * (direction, cut to rms <= threshold)

    Args:
        learning_rate: a number or a schedule: the largest step, in units of the parameter's size.
        beta2_decay: how fast the memory grows longer, at most 0.
        epsilon1: the least denominator, > 0; None for the rounding unit of the dtype.
        epsilon2: the least size that a parameter counts for, > 0.
        threshold: where the size of the direction is cut off, > 0.
        weight_decay: decoupled: theta shrinks by the factor 1 - learning_rate * weight_decay.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "adafactor"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-2,
        beta2_decay: float = -0.8,
        epsilon1: float | None = None,
        epsilon2: float = 1e-3,
        threshold: float = 1.0,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.beta2_decay = check_number(
            "beta2_decay", beta2_decay, "a finite number of at most 0", lambda number: -math.inf < number <= 0.0
        )
        self.epsilon1 = None if epsilon1 is None else check_positive("epsilon1", epsilon1)
        self.epsilon2 = check_positive("epsilon2", epsilon2)
        self.threshold = check_positive("threshold", threshold)

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "variance", "row_variance", "column_variance"

    def slot_shape(self, slot: str, shape: Shape) -> Shape | None:
        if len(shape) < 2:
            return shape if slot == "variance" else None
        if slot == "row_variance":
            return (*shape[:-1], 1)
        return (*shape[:-2], 1, shape[-1]) if slot == "column_variance" else None

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        count = step + 1
        largest = count**-0.5
        first, second = (largest, learning_rate) if backend_of(learning_rate) is None else (learning_rate, largest)
        return learning_rate, namespace(first).minimum(first, second), count**self.beta2_decay

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        learning_rate, relative_rate, fresh = numbers
        epsilon1 = self.epsilon1
        if epsilon1 is None:
            epsilon1 = float(namespace(theta).finfo(theta.dtype).eps)
        update: Any = ops.adafactor if theta.ndim < 2 else ops.adafactor_factored
        new: tuple[Array, ...]
        new, _ = update(
            theta,
            gradient,
            *slots,
            learning_rate,
            relative_rate,
            fresh,
            epsilon1,
            self.epsilon2,
            self.threshold,
            decay,
        )
        return new
