"""RMSprop: the gradient divided by its running root mean square, or by its running standard deviation."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.square_root import square_root_gradient


@op
def rmsprop(
    theta: Array,
    gradient: Array,
    square_average: Array,
    velocity: Array | None,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any = 0.0,
    *,
    donate: bool = False,
) -> tuple[tuple[Array, ...], Vjp]:
    """RMSprop (Tieleman and Hinton, Coursera lecture 6.5, 2012).

        square_average' = alpha * square_average + (1 - alpha) * gradient^2
        direction = gradient / (sqrt(square_average') + epsilon)
        theta' = theta - learning_rate * direction

    With a velocity, velocity' = momentum * velocity + direction takes the place of the direction.

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        square_average: running mean of the squared gradient, the same shape; zeros at first.
        velocity: running sum of directions, the same shape, or None for no momentum.
        learning_rate: a number, or a 0-d array; the other settings too.
        alpha: how much of the running mean stays.
        epsilon: added to the root, > 0.
        momentum: how much of the velocity stays.
        donate: True lets an accelerated body overwrite theta and the slots; there is then no vjp.

    Returns:
        (theta', square_average'), with velocity' at the end if there is a velocity; and vjp(cotangents of these) ->
        gradients for (theta, gradient, square_average, velocity).
    """
    xp = namespace(theta)
    # g * ((1 - alpha) * g) is finite for some g whose plain square is not.
    new_average = alpha * square_average + gradient * ((1.0 - alpha) * gradient)
    root = xp.sqrt(new_average)
    direction = gradient / (root + epsilon)
    moved = _move(theta, direction, velocity, learning_rate, momentum)

    def vjp(cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
        dtheta, daverage, *rest = cotangents
        ddirection, dvelocity = _move_vjp(dtheta, rest, learning_rate, momentum)
        dgradient = ddirection / (root + epsilon)
        daverage = daverage + square_root_gradient(xp, root, -dgradient * direction)
        dgradient = dgradient + daverage * (2.0 * (1.0 - alpha)) * gradient
        return dtheta, dgradient, alpha * daverage, dvelocity

    return (moved[0], new_average, *moved[1:]), vjp


@op
def rmsprop_centered(
    theta: Array,
    gradient: Array,
    variance: Array,
    average: Array,
    velocity: Array | None,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any = 0.0,
    *,
    donate: bool = False,
) -> tuple[tuple[Array, ...], Vjp]:
    """RMSprop that divides by the gradient's running standard deviation (Graves, arXiv:1308.0850, section 4.2).

        variance' = alpha * variance + alpha * (1 - alpha) * (gradient - average)^2
        average' = average + (1 - alpha) * (gradient - average)
        direction = gradient / (sqrt(variance') + epsilon)

    and on as in `rmsprop`. The textbook's variance is the running mean of the squares minus the square of the running
    mean. This is the same number, but as a sum of squares: it cannot become negative when the gradient hardly varies.

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        variance: running variance of the gradient, the same shape; zeros at first.
        average: running mean of the gradient, the same shape; zeros at first.
        velocity: running sum of directions, the same shape, or None for no momentum.
        learning_rate: a number, or a 0-d array; the other settings too.
        alpha: how much of the running means stays.
        epsilon: added to the root, > 0.
        momentum: how much of the velocity stays.
        donate: True lets an accelerated body overwrite theta and the slots; there is then no vjp.

    Returns:
        (theta', variance', average'), with velocity' at the end if there is a velocity; and vjp(cotangents of these)
        -> gradients for (theta, gradient, variance, average, velocity).
    """
    xp = namespace(theta)
    offset = gradient - average
    new_variance = alpha * variance + offset * ((alpha * (1.0 - alpha)) * offset)
    new_average = average + (1.0 - alpha) * offset
    root = xp.sqrt(new_variance)
    direction = gradient / (root + epsilon)
    moved = _move(theta, direction, velocity, learning_rate, momentum)

    def vjp(cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
        dtheta, dvariance, daverage, *rest = cotangents
        ddirection, dvelocity = _move_vjp(dtheta, rest, learning_rate, momentum)
        dgradient = ddirection / (root + epsilon)
        dvariance = dvariance + square_root_gradient(xp, root, -dgradient * direction)
        doffset = (1.0 - alpha) * daverage + dvariance * (2.0 * alpha * (1.0 - alpha)) * offset
        return dtheta, dgradient + doffset, alpha * dvariance, daverage - doffset, dvelocity

    return (moved[0], new_variance, new_average, *moved[1:]), vjp


def _move(theta: Array, direction: Array, velocity: Array | None, rate: Any, momentum: Any) -> tuple[Array, ...]:
    """(theta',) one step along the direction, or (theta', velocity') with momentum."""
    if velocity is None:
        return (theta - rate * direction,)
    velocity = momentum * velocity + direction
    return theta - rate * velocity, velocity


def _move_vjp(dtheta: Array, rest: list[Array], rate: Any, momentum: Any) -> tuple[Array, Array | None]:
    """The gradients of `_move` for the direction and the old velocity; `rest` holds dvelocity', if there is one."""
    ddirection = dtheta * (-rate)
    if not rest:
        return ddirection, None
    ddirection = ddirection + rest[0]
    return ddirection, momentum * ddirection
