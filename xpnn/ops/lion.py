"""Lion: steps of one length, in the direction of a sign."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.adam import shrink


@op
def lion(
    theta: Array,
    gradient: Array,
    momentum: Array,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> tuple[tuple[Array, Array], Vjp]:
    """Lion (Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, algorithm 2).

        theta' = (1 - learning_rate * decay) * theta - learning_rate * sign(beta1 * momentum + (1 - beta1) * gradient)
        momentum' = beta2 * momentum + (1 - beta2) * gradient

    The derivative of the sign is 0 everywhere.

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        momentum: running mean of the gradient, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too.
        beta1: the weight of the momentum in the step.
        beta2: how much of the momentum stays.
        decay: weight decay; a number, or one for each parameter as an array of theta's shape.
        donate: True lets an accelerated body overwrite theta and momentum; there is then no vjp.

    Returns:
        (theta', momentum'), and vjp((dtheta', dmomentum')) -> gradients for (theta, gradient, momentum, None for the
        decay).
    """
    xp = namespace(theta)
    direction = xp.sign(beta1 * momentum + (1.0 - beta1) * gradient)
    new_momentum = beta2 * momentum + (1.0 - beta2) * gradient

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtheta, dmomentum = cotangents
        return shrink(dtheta, learning_rate, decay), (1.0 - beta2) * dmomentum, beta2 * dmomentum, None

    return (shrink(theta, learning_rate, decay) - learning_rate * direction, new_momentum), vjp
