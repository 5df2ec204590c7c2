"""Gradient descent, with and without momentum.

In every optimizer update, theta, the gradient and the optimizer's slots are arrays of one shape; the settings after
them are Python floats or 0-d arrays and have no derivative. `donate=True` lets an accelerated body overwrite theta and
the slots; there is then no vjp.
"""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, op


@op
def sgd(theta: Array, gradient: Array, learning_rate: Any, *, donate: bool = False) -> tuple[Array, Vjp]:
    """theta - learning_rate * gradient (Cauchy, 1847).

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        learning_rate: a number, or a 0-d array.
        donate: True lets an accelerated body overwrite theta; there is then no vjp.

    Returns:
        The new theta, and vjp(dy) -> gradients for (theta, gradient).
    """

    def vjp(dy: Array) -> tuple[Any, ...]:
        return dy, dy * (-learning_rate)

    return theta - gradient * learning_rate, vjp


@op
def sgd_momentum(
    theta: Array,
    gradient: Array,
    velocity: Array,
    learning_rate: Any,
    momentum: Any,
    gradient_weight: Any = 1.0,
    *,
    nesterov: bool = False,
    donate: bool = False,
) -> tuple[tuple[Array, Array], Vjp]:
    """Gradient descent with momentum (Polyak, 1964), in the form of Sutskever et al. (ICML 2013) that PyTorch uses.

        velocity' = momentum * velocity + gradient_weight * gradient
        theta' = theta - learning_rate * velocity'

    With Nesterov's momentum, the step is taken along gradient + momentum * velocity' instead.

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        velocity: running sum of gradients, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too.
        momentum: how much of the velocity stays.
        gradient_weight: 1 - dampening.
        nesterov: look ahead along the new velocity.
        donate: True lets an accelerated body overwrite theta and velocity; there is then no vjp.

    Returns:
        (theta', velocity'), and vjp((dtheta', dvelocity')) -> gradients for (theta, gradient, velocity).
    """
    new_velocity = momentum * velocity + gradient_weight * gradient
    direction = gradient + momentum * new_velocity if nesterov else new_velocity
    new_theta = theta - learning_rate * direction

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtheta, dvelocity = cotangents
        ddirection = dtheta * (-learning_rate)
        if nesterov:
            dvelocity = dvelocity + momentum * ddirection
            dgradient = ddirection + gradient_weight * dvelocity
        else:
            dvelocity = dvelocity + ddirection
            dgradient = gradient_weight * dvelocity
        return dtheta, dgradient, momentum * dvelocity

    return (new_theta, new_velocity), vjp
