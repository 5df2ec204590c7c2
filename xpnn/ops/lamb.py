"""LAMB and LARS: steps whose length, for each parameter, follows the length of the parameter itself.

Both are ops of one parameter at a time: the norms are those of all elements of their arguments.
"""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.clipping import global_norm
from xpnn.ops.square_root import square_root_gradient


@op
def lamb(
    theta: Array,
    gradient: Array,
    first_moment: Array,
    second_moment: Array,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any = 0.0,
    *,
    adapt: bool = True,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """LAMB (You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020).

        first_moment' = beta1 * first_moment + (1 - beta1) * gradient
        second_moment' = beta2 * second_moment + (1 - beta2) * gradient^2
        direction = (first_moment' / correction1) / (sqrt(second_moment' / correction2) + epsilon) + decay * theta
        theta' = theta - learning_rate * (norm(theta) / norm(direction)) * direction

    This is algorithm 2 of the paper, with phi(z) = z. Where one of the norms is 0, their ratio counts as 1.

    Args:
        theta: one parameter, any shape.
        gradient: the same shape.
        first_moment: running mean of the gradient, the same shape; zeros at first.
        second_moment: running mean of its square, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too.
        beta1: how much of the first moment stays.
        beta2: how much of the second moment stays.
        epsilon: added to the root, > 0.
        correction1: 1 - beta1^t, where t counts the steps from 1.
        correction2: 1 - beta2^t.
        decay: weight decay.
        adapt: False takes 1 for the ratio of the norms.

    Returns:
        (theta', first_moment', second_moment'), and vjp(cotangents of these) -> gradients for (theta, gradient,
        first_moment, second_moment).
    """
    xp = namespace(theta)
    new_first = beta1 * first_moment + (1.0 - beta1) * gradient
    # g * ((1 - beta2) * g) is finite for some g whose plain square is not.
    new_second = beta2 * second_moment + gradient * ((1.0 - beta2) * gradient)
    root = xp.sqrt(new_second)
    scale = namespace(correction2).sqrt(correction2)
    denominator = root / scale + epsilon
    quotient = new_first / denominator / correction1
    direction = quotient + decay * theta
    step, step_vjp = _with_length_of(theta, direction) if adapt else (direction, None)

    def vjp(cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
        dtheta, dfirst, dsecond = cotangents
        dstep = dtheta * (-learning_rate)
        if step_vjp is None:
            ddirection = dstep
        else:
            dlength, ddirection = step_vjp(dstep)
            dtheta = dtheta + dlength
        dtheta = dtheta + decay * ddirection
        dnumerator = ddirection / denominator / correction1
        dsecond = dsecond + square_root_gradient(xp, root, -ddirection * quotient / denominator / scale)
        dfirst = dfirst + dnumerator
        dgradient = (1.0 - beta1) * dfirst + dsecond * (2.0 * (1.0 - beta2)) * gradient
        return dtheta, dgradient, beta1 * dfirst, beta2 * dsecond

    return (theta - learning_rate * step, new_first, new_second), vjp


@op
def lars(
    theta: Array,
    gradient: Array,
    velocity: Array,
    learning_rate: Any,
    momentum: Any,
    trust: Any,
    decay: Any = 0.0,
    *,
    adapt: bool = True,
) -> tuple[tuple[Array, Array], Vjp]:
    """LARS (You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017, algorithm 1).

        local_rate = trust * norm(theta) / (norm(gradient) + decay * norm(theta))
        velocity' = momentum * velocity + learning_rate * local_rate * (gradient + decay * theta)
        theta' = theta - velocity'

    Where one of the norms is 0, the local rate is 1.

    Args:
        theta: one parameter, any shape.
        gradient: the same shape.
        velocity: running sum of steps, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too.
        momentum: how much of the velocity stays.
        trust: how far, in units of its own norm, a parameter may go in a step of learning rate 1.
        decay: weight decay.
        adapt: False takes 1 for the local rate.

    Returns:
        (theta', velocity'), and vjp(cotangents of these) -> gradients for (theta, gradient, velocity).
    """
    xp = namespace(theta)
    direction = gradient + decay * theta
    step = direction
    if adapt:
        length, length_vjp = global_norm(theta)
        slope, slope_vjp = global_norm(gradient)
        usable = xp.logical_and(length > 0, slope > 0)
        denominator = xp.where(usable, slope + decay * length, 1.0)
        numerator = xp.where(usable, trust * length, 1.0)
        # Divided first, a short gradient cannot make the quotient of the norms overflow.
        step = (direction / denominator) * numerator
    new_velocity = momentum * velocity + learning_rate * step

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtheta, dvelocity = cotangents
        dvelocity = dvelocity - dtheta
        ddirection = dstep = learning_rate * dvelocity
        dgradient = 0.0
        if adapt:
            ddirection = (dstep / denominator) * numerator
            dnumerator = xp.sum(dstep * direction) / denominator
            ddenominator = -dnumerator * numerator / denominator
            dlength = xp.where(usable, trust * dnumerator + decay * ddenominator, 0.0)
            dtheta = dtheta + length_vjp(dlength)[0]
            dgradient = slope_vjp(xp.where(usable, ddenominator, 0.0))[0]
        return dtheta + decay * ddirection, dgradient + ddirection, momentum * dvelocity

    return (theta - new_velocity, new_velocity), vjp


def _with_length_of(theta: Array, direction: Array) -> tuple[Array, Vjp]:
    """direction * norm(theta) / norm(direction), or the direction as it is where one of the norms is 0; and its vjp."""
    xp = namespace(theta)
    length, length_vjp = global_norm(theta)
    size, size_vjp = global_norm(direction)
    usable = xp.logical_and(length > 0, size > 0)
    denominator = xp.where(usable, size, 1.0)
    numerator = xp.where(usable, length, 1.0)
    # Divided first, a short direction cannot make the quotient of the norms overflow.
    unit = direction / denominator

    def vjp(dstep: Array) -> tuple[Array, Array]:
        along = xp.where(usable, xp.sum(dstep * unit), 0.0)
        ddirection = (dstep / denominator) * numerator + size_vjp(-along * numerator / denominator)[0]
        return length_vjp(along)[0], ddirection

    return unit * numerator, vjp
