"""Step-like activations, smooth and straight: sigmoid, tanh and their relatives."""

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


@op
def log_sigmoid(x: Array) -> tuple[Array, Vjp]:
    """log(sigmoid(x)) = -log(1 + exp(-x)), elementwise: dy/dx = sigmoid(-x).

    Computed as min(x, 0) - log(1 + exp(-|x|)), which cannot overflow.
    """
    xp = namespace(x)
    y = xp.minimum(x, 0.0) - xp.log1p(xp.exp(-xp.abs(x)))

    def vjp(dy: Array) -> tuple[Array]:
        slope, _ = sigmoid(-x)
        return (dy * slope,)

    return y, vjp


@op
def hard_sigmoid(x: Array) -> tuple[Array, Vjp]:
    """min(max(x + 3, 0), 6) / 6, elementwise: 0 up to -3, 1 from 3 on, a straight line between.

    The derivative at -3 and at 3 is taken as 0. The definition (there are others) is PyTorch's.
    """
    xp = namespace(x)
    y = xp.minimum(xp.maximum(x + 3.0, 0.0), 6.0) / 6.0

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(xp.abs(x) < 3, dy / 6.0, xp.zeros_like(dy)),)

    return y, vjp


@op
def softsign(x: Array) -> tuple[Array, Vjp]:
    """x / (1 + |x|), elementwise: dy/dx = 1 / (1 + |x|)^2.

    Like tanh, it goes from -1 to 1, but reaches them slowly (Glorot and Bengio, AISTATS 2010).
    """
    xp = namespace(x)
    size = 1.0 + xp.abs(x)
    y = x / size

    def vjp(dy: Array) -> tuple[Array]:
        # Divided twice, because the square of a large x would overflow.
        return (dy / size / size,)

    return y, vjp
