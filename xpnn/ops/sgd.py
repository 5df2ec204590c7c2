"""Gradient descent, with and without momentum."""

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
    """

    def vjp(dy: Array) -> tuple[Any, ...]:
        return dy, dy * (-learning_rate)

    return theta - gradient * learning_rate, vjp
