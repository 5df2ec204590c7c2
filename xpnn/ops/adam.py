"""Adam and its relatives AMSGrad, AdamW and Nadam.

All keep a running mean of the gradient (first moment) and of its square (second moment). Both start at zero, so after
t steps they are too small by the factors 1 - beta1^t and 1 - beta2^t: the corrections, which the caller computes.
"""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.square_root import square_root_gradient


@op
def adam(
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
    donate: bool = False,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1), with decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

        first_moment' = beta1 * first_moment + (1 - beta1) * gradient
        second_moment' = beta2 * second_moment + (1 - beta2) * gradient^2
        denominator = sqrt(second_moment' / correction2) + epsilon
        theta' = (1 - learning_rate * decay) * theta - learning_rate * (first_moment' / correction1) / denominator

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        first_moment: running mean of the gradient, the same shape; zeros at first.
        second_moment: running mean of its square, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too.
        beta1: how much of the first moment stays.
        beta2: how much of the second moment stays.
        epsilon: added to the root, > 0.
        correction1: 1 - beta1^t, where t counts the steps from 1.
        correction2: 1 - beta2^t.
        decay: weight decay; a number, or one for each parameter as an array of theta's shape.
        donate: True lets an accelerated body overwrite theta and the moments; there is then no vjp.

    Returns:
        (theta', first_moment', second_moment'), and vjp(cotangents of these) -> gradients for (theta, gradient,
        first_moment, second_moment, None for the decay).
    """
    xp = namespace(theta)
    new_first = beta1 * first_moment + (1.0 - beta1) * gradient
    # g * ((1 - beta2) * g) is finite for some g whose plain square is not.
    new_second = beta2 * second_moment + gradient * ((1.0 - beta2) * gradient)
    root = xp.sqrt(new_second)
    scale = namespace(correction2).sqrt(correction2)
    denominator = root / scale + epsilon
    direction = new_first / denominator
    rate = learning_rate / correction1
    new_theta = shrink(theta, learning_rate, decay) - rate * direction

    def vjp(cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
        dtheta, dfirst, dsecond = cotangents
        dnumerator = dtheta * (-rate) / denominator
        dsecond = dsecond + square_root_gradient(xp, root, -dnumerator * direction / scale)
        dfirst = dfirst + dnumerator
        dgradient = (1.0 - beta1) * dfirst + dsecond * (2.0 * (1.0 - beta2)) * gradient
        return shrink(dtheta, learning_rate, decay), dgradient, beta1 * dfirst, beta2 * dsecond, None

    return (new_theta, new_first, new_second), vjp


@op
def amsgrad(
    theta: Array,
    gradient: Array,
    first_moment: Array,
    second_moment: Array,
    largest_second_moment: Array,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> tuple[tuple[Array, Array, Array, Array], Vjp]:
    """AMSGrad (Reddi, Kale and Kumar, ICLR 2018): Adam whose denominator never shrinks, with PyTorch's corrections.

        largest_second_moment' = max(largest_second_moment, second_moment')
        denominator = sqrt(largest_second_moment' / correction2) + epsilon

    and otherwise as `adam`. Where the two are equal, the derivative goes to both in equal parts.

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        first_moment: running mean of the gradient, the same shape; zeros at first.
        second_moment: running mean of its square, the same shape; zeros at first.
        largest_second_moment: the largest second moment so far, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too.
        beta1: how much of the first moment stays.
        beta2: how much of the second moment stays.
        epsilon: added to the root, > 0.
        correction1: 1 - beta1^t, where t counts the steps from 1.
        correction2: 1 - beta2^t.
        decay: weight decay; a number, or one for each parameter as an array of theta's shape.
        donate: True lets an accelerated body overwrite theta and the moments; there is then no vjp.

    Returns:
        (theta', first_moment', second_moment', largest_second_moment'), and vjp(cotangents of these) -> gradients for
        (theta, gradient, first_moment, second_moment, largest_second_moment, None for the decay).
    """
    xp = namespace(theta)
    new_first = beta1 * first_moment + (1.0 - beta1) * gradient
    new_second = beta2 * second_moment + gradient * ((1.0 - beta2) * gradient)
    new_largest = xp.maximum(largest_second_moment, new_second)
    root = xp.sqrt(new_largest)
    scale = namespace(correction2).sqrt(correction2)
    denominator = root / scale + epsilon
    direction = new_first / denominator
    rate = learning_rate / correction1
    new_theta = shrink(theta, learning_rate, decay) - rate * direction

    def vjp(cotangents: tuple[Array, Array, Array, Array]) -> tuple[Any, ...]:
        dtheta, dfirst, dsecond, dlargest = cotangents
        dnumerator = dtheta * (-rate) / denominator
        dlargest = dlargest + square_root_gradient(xp, root, -dnumerator * direction / scale)
        tie = new_second == largest_second_moment
        share = xp.where(tie, 0.5 * dlargest, xp.where(new_second > largest_second_moment, dlargest, 0.0))
        dsecond = dsecond + share
        dfirst = dfirst + dnumerator
        dgradient = (1.0 - beta1) * dfirst + dsecond * (2.0 * (1.0 - beta2)) * gradient
        dtheta = shrink(dtheta, learning_rate, decay)
        return dtheta, dgradient, beta1 * dfirst, beta2 * dsecond, dlargest - share, None

    return (new_theta, new_first, new_second, new_largest), vjp


@op
def nadam(
    theta: Array,
    gradient: Array,
    first_moment: Array,
    second_moment: Array,
    gradient_rate: Any,
    moment_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction2: Any,
    *,
    donate: bool = False,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """Adam with Nesterov's momentum (Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016).

        first_moment' = beta1 * first_moment + (1 - beta1) * gradient
        second_moment' = beta2 * second_moment + (1 - beta2) * gradient^2
        denominator = sqrt(second_moment' / correction2) + epsilon
        theta' = theta - (gradient_rate * gradient + moment_rate * first_moment') / denominator

    Args:
        theta: parameters, any shape.
        gradient: the same shape.
        first_moment: running mean of the gradient, the same shape; zeros at first.
        second_moment: running mean of its square, the same shape; zeros at first.
        gradient_rate: learning_rate * (1 - mu_t) / (1 - mu_1 ... mu_t), a number or a 0-d array; mu_t is the momentum
            of step t.
        moment_rate: learning_rate * mu_{t+1} / (1 - mu_1 ... mu_{t+1}).
        beta1: how much of the first moment stays.
        beta2: how much of the second moment stays.
        epsilon: added to the root, > 0.
        correction2: 1 - beta2^t, where t counts the steps from 1.
        donate: True lets an accelerated body overwrite theta and the moments; there is then no vjp.

    Returns:
        (theta', first_moment', second_moment'), and vjp(cotangents of these) -> gradients for (theta, gradient,
        first_moment, second_moment).
    """
    xp = namespace(theta)
    new_first = beta1 * first_moment + (1.0 - beta1) * gradient
    new_second = beta2 * second_moment + gradient * ((1.0 - beta2) * gradient)
    root = xp.sqrt(new_second)
    scale = namespace(correction2).sqrt(correction2)
    denominator = root / scale + epsilon
    step = (gradient_rate * gradient + moment_rate * new_first) / denominator

    def vjp(cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
        dtheta, dfirst, dsecond = cotangents
        dnumerator = -dtheta / denominator
        dsecond = dsecond + square_root_gradient(xp, root, -dnumerator * step / scale)
        dfirst = dfirst + moment_rate * dnumerator
        dgradient = gradient_rate * dnumerator + (1.0 - beta1) * dfirst
        dgradient = dgradient + dsecond * (2.0 * (1.0 - beta2)) * gradient
        return dtheta, dgradient, beta1 * dfirst, beta2 * dsecond

    return (theta - step, new_first, new_second), vjp


def shrink(theta: Array, learning_rate: Any, decay: Any) -> Array:
    """(1 - learning_rate * decay) * theta: decoupled weight decay."""
    if isinstance(decay, float) and decay == 0.0:
        return theta
    return (1.0 - learning_rate * decay) * theta
