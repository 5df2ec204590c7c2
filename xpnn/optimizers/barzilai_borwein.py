"""Gradient descent with the step length of Barzilai and Borwein."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.optimizers.optimizer import LearningRate, Optimizer, Options, Slots, copied
from xpnn.parameters import Layout, Vector


class BarzilaiBorwein(Optimizer):
    """Full-batch gradient descent whose step length imitates Newton's (Barzilai and Borwein, IMA J. Num. An., 1988).

    With s the last change of theta and y the last change of the gradient, over all parameters,

        theta <- theta - eta * gradient,   eta = s.s / s.y (long)   or   s.y / y.y (short)

    The first step, and any step where s.y is not positive, uses the learning rate. The function that is minimised must
    be the same in each step, so give `batch_size=None` and no dropout. The loss may rise in single steps.

    Args:
        learning_rate: a number or a schedule, for steps that have no length of their own.
        long: which of the two lengths.
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "barzilai_borwein"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-2,
        long: bool = True,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.long = long

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "previous_theta", "previous_gradient"

    def initial_slots(self, theta: Vector, layout: Layout) -> Slots:
        # With s = 0 the products vanish, which makes the first step use the learning rate.
        slots = super().initial_slots(theta, layout)
        slots["previous_theta"] = copied(theta)
        return slots

    def advance(
        self, theta: Vector, gradient: Vector, slots: Slots, step: Any, decays: tuple[Any, ...] | None, layout: Layout
    ) -> tuple[Vector, Slots]:
        """One step length for all blocks."""
        ss: Any = 0.0
        sy: Any = 0.0
        yy: Any = 0.0
        for arrays in zip(theta, gradient, slots["previous_theta"], slots["previous_gradient"], strict=True):
            (block_ss, block_sy, block_yy), _ = ops.secant_products(*arrays)
            ss, sy, yy = ss + block_ss, sy + block_sy, yy + block_yy
        length, _ = ops.barzilai_borwein(ss, sy, yy, self.rate(step, theta[0]), long=self.long)
        # theta is kept as a slot, so its memory is not given away.
        new_theta = tuple(
            ops.sgd(block, block_gradient, length)[0] for block, block_gradient in zip(theta, gradient, strict=True)
        )
        return new_theta, {"previous_theta": theta, "previous_gradient": gradient}
