"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.optimizers.optimizer import Optimizer


class SGD(Optimizer):
    """theta <- theta - learning_rate * gradient."""

    name = "sgd"

    def __init__(self, learning_rate: Any = 0.01) -> None:
        self.learning_rate = learning_rate

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], learning_rate: Any, step: Any
    ) -> tuple[Array, ...]:
        theta, _ = ops.sgd(theta, gradient, learning_rate, donate=True)
        return (theta,)
