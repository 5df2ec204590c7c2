"""Activations that multiply x by a gate between 0 and 1: y = x g(x), so dy/dx = g(x) + x g'(x)."""

from __future__ import annotations

import math

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ConfigError
from xpnn.ops.erf import normal_cdf
from xpnn.ops.sigmoids import sigmoid

GELU_FORMS = ("none", "tanh")


@op
def gelu(x: Array, approximate: str = "none") -> tuple[Array, Vjp]:
    """x Phi(x), elementwise, with Phi the distribution function of the standard normal distribution.

    "tanh" is `gelu_tanh`, an approximation. Both are right, relatively, for negative x too, where 1 + erf and 1 + tanh
    would cancel.
    Source: Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415, 2016.

    Args:
        x: any shape.
        approximate: "none" or "tanh".

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).

    Raises:
        ConfigError: approximate is neither.
    """
    if approximate == "tanh":
        return gelu_tanh(x)
    if approximate != "none":
        raise ConfigError(f"gelu: approximate={approximate!r} is unknown; known: {', '.join(map(repr, GELU_FORMS))}")
    gate, gate_vjp = normal_cdf(x)

    def vjp(dy: Array) -> tuple[Array]:
        (through_gate,) = gate_vjp(dy)
        return (dy * gate + x * through_gate,)

    return x * gate, vjp


@op
def gelu_tanh(x: Array) -> tuple[Array, Vjp]:
    """x (1 + tanh(u)) / 2 = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3), elementwise.

    `gelu` with its factor Phi(x) off by less than 0.0005; it has a name of its own so that `linear` can take it as its
    activation. Source: Hendrycks and Gimpel, as for `gelu`.
    """
    gate, gate_vjp = _approximate_normal_cdf(x)

    def vjp(dy: Array) -> tuple[Array]:
        (through_gate,) = gate_vjp(dy)
        return (dy * gate + x * through_gate,)

    return x * gate, vjp


def _approximate_normal_cdf(x: Array) -> tuple[Array, Vjp]:
    """sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    xp = namespace(x)
    # At +-30, sigmoid(2u) is 1 or 0 in every dtype; without the bound, x^3 could overflow.
    near = xp.minimum(xp.maximum(x, -30.0), 30.0)
    square = near * near
    factor = 2.0 * math.sqrt(2.0 / math.pi)
    gate, sigmoid_vjp = sigmoid(factor * (near * (1.0 + 0.044715 * square)))

    def vjp(dy: Array) -> tuple[Array]:
        (through_sigmoid,) = sigmoid_vjp(dy)
        return (through_sigmoid * (factor * (1.0 + (3.0 * 0.044715) * square)),)

    return gate, vjp


@op
def silu(x: Array) -> tuple[Array, Vjp]:
    """x sigmoid(x), elementwise; also called swish.

    Source: Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", Neural Networks 107 (2018).
    """
    gate, gate_vjp = sigmoid(x)

    def vjp(dy: Array) -> tuple[Array]:
        (through_gate,) = gate_vjp(dy)
        return (dy * gate + x * through_gate,)

    return x * gate, vjp


@op
def mish(x: Array) -> tuple[Array, Vjp]:
    """x tanh(softplus(x)), elementwise.

    With v = exp(x), tanh(log(1 + v)) = v (v + 2) / (v (v + 2) + 2), whose derivative with respect to x is
    4 v (v + 1) / (v (v + 2) + 2)^2. For x > 0 both are written in exp(-x), so that nothing overflows.
    Source: Misra, "Mish: a self regularized non-monotonic activation function", BMVC 2020.
    """
    xp = namespace(x)
    decay = xp.exp(-xp.abs(x))
    positive = x >= 0
    numerator = xp.where(positive, 1.0 + 2.0 * decay, decay * (decay + 2.0))
    rest = xp.where(positive, 2.0 * decay * decay, xp.full_like(decay, 2.0))
    gate = numerator / (numerator + rest)

    def vjp(dy: Array) -> tuple[Array]:
        slope = 4.0 * decay * (1.0 + decay) * xp.where(positive, decay, xp.ones_like(decay))
        total = numerator + rest
        return (dy * gate + x * (dy * (slope / (total * total))),)

    return x * gate, vjp


@op
def hard_swish(x: Array) -> tuple[Array, Vjp]:
    """x hard_sigmoid(x) = x min(max(x + 3, 0), 6) / 6, elementwise.

    The derivative is 0 up to -3, x/3 + 1/2 between, 1 from 3 on.
    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """
    xp = namespace(x)
    gate = xp.minimum(xp.maximum(x + 3.0, 0.0), 6.0) / 6.0

    def vjp(dy: Array) -> tuple[Array]:
        near = xp.minimum(xp.maximum(x, -3.0), 3.0)
        slope = xp.where(x >= 3, xp.ones_like(x), near / 3.0 + 0.5)
        return (xp.where(x > -3, dy * slope, xp.zeros_like(dy)),)

    return x * gate, vjp
