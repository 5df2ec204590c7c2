"""L-BFGS."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import namespace
from xpnn.ops.lbfgs import LEAST
from xpnn.optimizers.optimizer import LearningRate, Optimizer, Options, Slots, check_positive
from xpnn.parameters import Layout, Vector


class LBFGS(Optimizer):
    """Newton's method for full batches, with a Hessian learned from the last steps (Nocedal, Math. Comp., 1980).

    For the last `history_size` steps s_i and the changes of the gradient y_i along them, the direction is the gradient
    times the matrix that BFGS would have made of these pairs, found without any matrix: for the pairs from the newest
    to the oldest, with the gradient as d,

        alpha_i = s_i.d / s_i.y_i,    d <- d - alpha_i y_i

    then d <- (s.y / y.y of the newest pair) d, and from the oldest to the newest

        beta = y_i.d / s_i.y_i,    d <- d + (alpha_i - beta) s_i

    A pair counts only if s_i.y_i > least_curvature. The first step is learning_rate * min(1, 1 / sum of |gradient|)
    times the gradient; from then on, theta <- theta - learning_rate * d. The steps are those of PyTorch's LBFGS with
    max_iter=1 and no line search.

    There is no line search: it would need the loss at several points, and a training step knows it at one. Learning
    rate 1 is Newton's step and right near a minimum; where the loss rises, take a smaller one. The function that is
    minimised must be the same in each step, so give `batch_size=None` and no dropout. The memory is that of
    2 * history_size + 2 vectors.

    Args:
        learning_rate: a number or a schedule.
        history_size: how many pairs are remembered.
        least_curvature: pairs with a smaller product s.y are not remembered, > 0. With PyTorch's 1e-10 nothing more
            is learned where steps get shorter than about 1e-5; to reach a minimum to more digits, give 1e-20.
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "lbfgs"

    def __init__(
        self,
        learning_rate: LearningRate = 1.0,
        history_size: int = 10,
        least_curvature: float = LEAST,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.history_size = check_integer("history_size", history_size)
        self.least_curvature = check_positive("least_curvature", least_curvature)

    @property
    def _step_names(self) -> list[str]:
        """The slots of the s_i, newest first."""
        return [f"step_{age}" for age in range(self.history_size)]

    @property
    def _change_names(self) -> list[str]:
        """The slots of the y_i, newest first."""
        return [f"change_{age}" for age in range(self.history_size)]

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "last_step", "last_gradient", *self._step_names, *self._change_names

    def advance(
        self, theta: Vector, gradient: Vector, slots: Slots, step: Any, decays: tuple[Any, ...] | None, layout: Layout
    ) -> tuple[Vector, Slots]:
        """The products of the vectors are over all blocks."""
        last_step = slots["last_step"]
        change = _added(gradient, slots["last_gradient"], -1.0)
        curvature = _product(change, last_step)
        steps = _remembered(curvature, last_step, [slots[name] for name in self._step_names], self.least_curvature)
        changes = _remembered(curvature, change, [slots[name] for name in self._change_names], self.least_curvature)
        direction = _direction(gradient, steps, changes, self.least_curvature)
        total: Any = 0.0
        for block in gradient:
            total = total + ops.absolute_sum(block)[0]
        length, _ = ops.lbfgs_length(total, _product(last_step, last_step), self.rate(step, theta[0]))
        new_step = tuple(ops.multiple(block, -length)[0] for block in direction)
        new_theta = tuple(ops.add(block, change)[0] for block, change in zip(theta, new_step, strict=True))
        memory = zip((*self._step_names, *self._change_names), (*steps, *changes), strict=True)
        return new_theta, {"last_step": new_step, "last_gradient": gradient, **dict(memory)}


def _product(x: Vector, y: Vector) -> Any:
    """The inner product of two vectors."""
    total: Any = 0.0
    for block, other in zip(x, y, strict=True):
        total = total + ops.inner_product(block, other)[0]
    return total


def _added(x: Vector, y: Vector, factor: Any) -> Vector:
    """x + factor * y."""
    return tuple(ops.add_multiple(block, other, factor)[0] for block, other in zip(x, y, strict=True))


def _remembered(curvature: Any, new: Vector, old: list[Vector], least: float) -> list[Vector]:
    """The vectors that are remembered after a step, newest first."""
    blocks = [ops.lbfgs_remember(curvature, *versions, least=least)[0] for versions in zip(new, *old, strict=True)]
    return list(zip(*blocks, strict=True))


def _direction(gradient: Vector, steps: list[Vector], changes: list[Vector], least: float) -> Vector:
    """The gradient times the inverse Hessian that the pairs make, by the two loops of the method."""
    curvatures = [_product(step, change) for step, change in zip(steps, changes, strict=True)]
    weights = [ops.lbfgs_weight(curvature, least=least)[0] for curvature in curvatures]
    direction = gradient
    alphas = []
    for step, change, weight in zip(steps, changes, weights, strict=True):
        alpha = weight * _product(step, direction)
        direction = _added(direction, change, -alpha)
        alphas.append(alpha)
    scale = namespace(curvatures[0]).ones_like(curvatures[0])
    # From the oldest to the newest: the newest pair that counts has the last word.
    for change, curvature in zip(reversed(changes), reversed(curvatures), strict=True):
        scale, _ = ops.lbfgs_scale(curvature, _product(change, change), scale, least=least)
    direction = tuple(ops.multiple(block, scale)[0] for block in direction)
    for step, change, weight, alpha in reversed(list(zip(steps, changes, weights, alphas, strict=True))):
        beta = weight * _product(change, direction)
        direction = _added(direction, step, alpha - beta)
    return direction
