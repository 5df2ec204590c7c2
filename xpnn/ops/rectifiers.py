"""Piecewise activations around zero: relu and its relatives."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.sigmoids import sigmoid

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


@op
def relu(x: Array) -> tuple[Array, Vjp]:
    """max(x, 0), elementwise; the derivative at 0 is taken as 0 (Nair and Hinton, ICML 2010)."""
    xp = namespace(x)
    y = xp.maximum(x, 0.0)

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(y > 0, dy, xp.zeros_like(dy)),)

    return y, vjp


@op
def leaky_relu(x: Array, negative_slope: float = 0.01) -> tuple[Array, Vjp]:
    """x for x > 0, negative_slope * x else, elementwise; the derivative at 0 is negative_slope.

    Source: Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    xp = namespace(x)
    y = xp.where(x > 0, x, negative_slope * xp.minimum(x, 0.0))

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(x > 0, dy, negative_slope * dy),)

    return y, vjp


@op
def prelu(x: Array, slope: Array) -> tuple[Array, Vjp]:
    """x for x > 0, slope * x else, with a slope that is learned; the derivative at 0 is the slope.

    Derivatives: dx = dy where x > 0, else slope * dy; dslope = sum of min(x, 0) dy over all elements that use it.
    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.

    Args:
        x: (..., features).
        slope: (features,), or (1,) for one slope that all features share.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dslope).

    Raises:
        ShapeError: slope has another shape.
    """
    xp = namespace(x)
    if x.ndim < 1 or tuple(slope.shape) not in ((1,), (x.shape[-1],)):
        raise ShapeError(
            f"prelu: slope has shape {tuple(slope.shape)} and x {tuple(x.shape)}; slope wants one entry, or one for "
            "each feature in the last axis of x"
        )
    below = xp.minimum(x, 0.0)
    y = xp.where(x > 0, x, slope * below)

    def vjp(dy: Array) -> tuple[Array, Array]:
        dx = xp.where(x > 0, dy, slope * dy)
        products = below * dy
        if slope.shape[0] != x.shape[-1]:
            return dx, xp.reshape(xp.sum(products), (1,))
        # One axis at a time: to sum over no axes, as for x of one axis, means different things in different libraries.
        for _ in range(x.ndim - 1):
            products = xp.sum(products, axis=0)
        return dx, products

    return y, vjp


@op
def elu(x: Array, alpha: float = 1.0) -> tuple[Array, Vjp]:
    """x for x > 0, alpha (exp(x) - 1) else, elementwise; the derivative at 0 is alpha.

    Source: Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear
    units", ICLR 2016.

    Args:
        x: any shape.
        alpha: a positive number; -alpha is the limit for x to minus infinity.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    below = xp.minimum(x, 0.0)
    y = xp.where(x > 0, x, alpha * xp.expm1(below))

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(x > 0, dy, dy * (alpha * xp.exp(below))),)

    return y, vjp


@op
def selu(x: Array) -> tuple[Array, Vjp]:
    """scale * elu(x, alpha) with scale = 1.0507... and alpha = 1.6733..., elementwise.

    With these two constants, and weights of variance 1/in, mean 0 and variance 1 pass from layer to layer unchanged.
    Source: Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017.
    """
    y, elu_vjp = elu(x, SELU_ALPHA)

    def vjp(dy: Array) -> tuple[Array]:
        (dx,) = elu_vjp(dy)
        return (SELU_SCALE * dx,)

    return SELU_SCALE * y, vjp


@op
def celu(x: Array, alpha: float = 1.0) -> tuple[Array, Vjp]:
    """x for x > 0, alpha (exp(x / alpha) - 1) else, elementwise; the derivative at 0 is 1 for every alpha.

    Source: Barron, "Continuously differentiable exponential linear units", arXiv:1704.07483, 2017.

    Args:
        x: any shape.
        alpha: a positive number; -alpha is the limit for x to minus infinity.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    # From -1000 alpha on, exp(x / alpha) is 0 in every dtype; without the bound, x / alpha could overflow.
    exponent = xp.maximum(xp.minimum(x, 0.0), -1000.0 * alpha) / alpha
    y = xp.where(x > 0, x, alpha * xp.expm1(exponent))

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(x > 0, dy, dy * xp.exp(exponent)),)

    return y, vjp


@op
def smelu(x: Array, beta: float = 1.0) -> tuple[Array, Vjp]:
    """Smooth ReLU: 0 for x <= -beta, (x + beta)^2 / (4 beta) between, x for x >= beta, elementwise.

    The derivative rises from 0 to 1 in a straight line, (x + beta) / (2 beta).
    Source: Shamir, Lin and Coviello, "Smooth activations and reproducibility in deep networks", arXiv:2010.09931, 2020.

    Args:
        x: any shape.
        beta: a positive number, half the width of the rounded part.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    slope = (xp.minimum(xp.maximum(x, -beta), beta) + beta) * (0.5 / beta)
    y = xp.where(x >= beta, x, beta * (slope * slope))

    def vjp(dy: Array) -> tuple[Array]:
        return (dy * slope,)

    return y, vjp


@op
def softplus(x: Array, beta: float = 1.0) -> tuple[Array, Vjp]:
    """log(1 + exp(beta x)) / beta, elementwise: dy/dx = sigmoid(beta x).

    Computed as max(x, 0) + log(1 + exp(-beta |x|)) / beta, which cannot overflow and needs no threshold.
    Source: Dugas, Bengio, Belisle, Nadeau and Garcia, "Incorporating second-order functional knowledge for better
    option pricing", NIPS 2000.

    Args:
        x: any shape.
        beta: a positive number: the larger, the closer to relu.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    # From 1000 / beta on, exp(-beta |x|) is 0 in every dtype; without the bound, beta * x could overflow.
    farthest = 1000.0 / beta
    distance = xp.minimum(xp.abs(x), farthest)
    y = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-beta * distance)) / beta

    def vjp(dy: Array) -> tuple[Array]:
        slope, _ = sigmoid(beta * xp.where(x < 0, -distance, distance))
        return (dy * slope,)

    return y, vjp
