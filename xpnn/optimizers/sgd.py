"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.dispatch import Array, namespace
from xpnn.errors import ConfigError
from xpnn.optimizers.optimizer import LearningRate, Optimizer, Options, Slots, check_memory
from xpnn.parameters import Layout, Vector
from xpnn.schedules import check_rate


class SGD(Optimizer):
    """Gradient descent: theta <- theta - learning_rate * gradient.

    With momentum (`xpnn.ops.sgd_momentum`):

        velocity <- momentum * velocity + (1 - dampening) * gradient        (the first step: velocity <- gradient)
        theta <- theta - learning_rate * velocity

    Nesterov's momentum steps along gradient + momentum * velocity instead. The conventions are those of PyTorch's SGD.

    Args:
        learning_rate: a number or a schedule.
        momentum: how much of the velocity stays, in [0, 1); 0 keeps no velocity.
        nesterov: look ahead along the velocity.
        dampening: the part of the gradient that does not enter the velocity.
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "sgd"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.momentum = check_memory("momentum", momentum)
        self.nesterov = nesterov
        self.dampening = check_rate("dampening", dampening)
        if nesterov and (not self.momentum or self.dampening):
            raise ConfigError("nesterov=True needs momentum > 0 and dampening=0; give SGD(..., momentum=0.9)")

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def advance(
        self, theta: Vector, gradient: Vector, slots: Slots, step: Any, decays: tuple[Any, ...] | None, layout: Layout
    ) -> tuple[Vector, Slots]:
        """Without momentum there are no slots to look after: this is the step of small networks, where calls count."""
        if self.momentum:
            return super().advance(theta, gradient, slots, step, decays, layout)
        rate = self.rate(step, theta[0])
        blocks = zip(theta, gradient, strict=True)
        return tuple([ops.sgd(block, block_gradient, rate, donate=True)[0] for block, block_gradient in blocks]), {}

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        if not self.dampening:
            return learning_rate, 1.0
        # The velocity starts as the whole gradient. 0 * step makes numbers for an int, arrays for an array.
        weight = 1.0 - self.dampening + 0.0 * step
        return learning_rate, namespace(step).where(step > 0, weight, 1.0)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        (velocity,), (learning_rate, gradient_weight) = slots, numbers
        new, _ = ops.sgd_momentum(
            theta,
            gradient,
            velocity,
            learning_rate,
            self.momentum,
            gradient_weight,
            nesterov=self.nesterov,
            donate=True,
        )
        return new
