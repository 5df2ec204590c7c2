"""Weight decay as a part of the gradient, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, op


@op
def add_weight_decay(gradient: Array, theta: Array, decay: Any) -> tuple[Array, Vjp]:
    """gradient + decay * theta: the gradient of the loss plus decay / 2 * |theta|^2 (L2 regularisation).

    Args:
        gradient: any shape.
        theta: parameters, the same shape.
        decay: a number, or one for each parameter as an array of the same shape.

    Returns:
        The new gradient, and vjp(dy) -> gradients for (gradient, theta, None for the decay).
    """

    def vjp(dy: Array) -> tuple[Any, ...]:
        return dy, decay * dy, None

    return gradient + decay * theta, vjp


@op
def moving_average(average: Array, value: Array, decay: Any, *, donate: bool = False) -> tuple[Array, Vjp]:
    """decay * average + (1 - decay) * value: the exponential moving average after one more value.

    Args:
        average: the average so far, any shape.
        value: the same shape.
        decay: a number in (0, 1), or a 0-d array.
        donate: True lets an accelerated body overwrite the average; there is then no vjp.

    Returns:
        The new average, and vjp(dy) -> gradients for (average, value).
    """

    def vjp(dy: Array) -> tuple[Any, ...]:
        return decay * dy, (1.0 - decay) * dy

    return decay * average + (1.0 - decay) * value, vjp
