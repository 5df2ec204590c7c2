"""Adagrad and Adadelta: a step length for each parameter, from the history of its gradients."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.square_root import square_root_gradient


@op
def adagrad(
    theta: Array, gradient: Array, square_sum: Array, learning_rate: Any, epsilon: Any, *, donate: bool = False
) -> tuple[tuple[Array, Array], Vjp]:
    """Adagrad, diagonal form (Duchi, Hazan and Singer, JMLR 12, 2011).

        square_sum' = square_sum + gradient^2
        theta' = theta - learning_rate * gradient / (sqrt(square_sum') + epsilon)

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        square_sum: sum of all squared gradients so far, the same shape.
        learning_rate: a number, or a 0-d array; epsilon too.
        epsilon: added to the root, > 0.
        donate: True lets an accelerated body overwrite theta and square_sum; there is then no vjp.

    Returns:
        (theta', square_sum'), and vjp((dtheta', dsquare_sum')) -> gradients for (theta, gradient, square_sum).
    """
    xp = namespace(theta)
    new_sum = square_sum + gradient * gradient
    root = xp.sqrt(new_sum)
    direction = gradient / (root + epsilon)

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtheta, dsum = cotangents
        dgradient = dtheta * (-learning_rate) / (root + epsilon)
        dsum = dsum + square_root_gradient(xp, root, -dgradient * direction)
        return dtheta, dgradient + 2.0 * dsum * gradient, dsum

    return (theta - learning_rate * direction, new_sum), vjp


@op
def adadelta(
    theta: Array,
    gradient: Array,
    square_average: Array,
    square_step_average: Array,
    learning_rate: Any,
    rho: Any,
    epsilon: Any,
    *,
    donate: bool = False,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """Adadelta (Zeiler, arXiv:1212.5701, algorithm 1): the step has the unit of the parameter.

        square_average' = rho * square_average + (1 - rho) * gradient^2
        step = gradient * sqrt(square_step_average + epsilon) / sqrt(square_average' + epsilon)
        square_step_average' = rho * square_step_average + (1 - rho) * step^2
        theta' = theta - learning_rate * step

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        square_average: running mean of the squared gradient, the same shape; zeros at first.
        square_step_average: running mean of the squared step, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; 1 in the paper. The other settings too.
        rho: how much of the running means stays.
        epsilon: added under both roots, > 0.
        donate: True lets an accelerated body overwrite theta and the slots; there is then no vjp.

    Returns:
        (theta', square_average', square_step_average'), and vjp(cotangents of these) -> gradients for (theta, gradient,
        square_average, square_step_average).
    """
    xp = namespace(theta)
    new_average = rho * square_average + gradient * ((1.0 - rho) * gradient)
    gradient_size = xp.sqrt(new_average + epsilon)
    step_size = xp.sqrt(square_step_average + epsilon)
    ratio = step_size / gradient_size
    step = gradient * ratio
    new_step_average = rho * square_step_average + step * ((1.0 - rho) * step)

    def vjp(cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
        dtheta, daverage, dstep_average = cotangents
        dstep = dtheta * (-learning_rate) + dstep_average * (2.0 * (1.0 - rho)) * step
        # Both roots are at least sqrt(epsilon), so that nothing here is divided by zero.
        daverage = daverage - 0.5 * dstep * step / gradient_size / gradient_size
        dgradient = dstep * ratio + daverage * (2.0 * (1.0 - rho)) * gradient
        dold_step_average = rho * dstep_average + 0.5 * dstep * step / step_size / step_size
        return dtheta, dgradient, rho * daverage, dold_step_average

    return (theta - learning_rate * step, new_average, new_step_average), vjp
