"""Smooth step-like activations: sigmoid, tanh and their relatives."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op


@op
def tanh(x: Array) -> tuple[Array, Vjp]:
    """Hyperbolic tangent, elementwise: dy/dx = 1 - y^2."""
    xp = namespace(x)
    y = xp.tanh(x)

    def vjp(dy: Array) -> tuple[Array]:
        return (dy * (1.0 - y * y),)

    return y, vjp


@op
def sigmoid(x: Array) -> tuple[Array, Vjp]:
    """1 / (1 + exp(-x)), elementwise: dy/dx = y (1 - y).

    Computed from exp(-|x|), which cannot overflow, with 1 - y as sigmoid(-x), which does not cancel.
    """
    xp = namespace(x)
    decay = xp.exp(-xp.abs(x))
    small = decay / (1.0 + decay)
    large = 1.0 / (1.0 + decay)
    positive = x >= 0
    y = xp.where(positive, large, small)

    def vjp(dy: Array) -> tuple[Array]:
        return (dy * (large * small),)

    return y, vjp
