"""Muon: momentum whose matrices are made orthogonal."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.adam import shrink
from xpnn.ops.clipping import global_norm

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan et al.: they lift small singular values fast, and leave all of them between about 0.7 and 1.2."""


@op
def orthogonalize(
    x: Array,
    *,
    iterations: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    epsilon: float = 1e-7,
) -> tuple[Array, Vjp]:
    """A matrix with about the singular vectors of x, and singular values near 1, by Newton and Schulz's iteration.

        X_0 = x / max(norm(x), epsilon)
        A = X X^T,    X <- a X + (b A + c A^2) X

    Only matrix products are needed, no decomposition. With the coefficients of Jordan et al. ("Muon: an optimizer for
    hidden layers in neural networks", 2024) five iterations bring singular values from 0.002 up to about 1; they do not
    converge to 1. With (15/8, -5/4, 3/8) they converge, but from below more slowly.

    Args:
        x: a matrix, (rows, columns).
        iterations: how many.
        coefficients: (a, b, c).
        epsilon: a matrix of a smaller (Frobenius) norm is not scaled up to norm 1.

    Returns:
        The matrix, of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    norm, norm_vjp = global_norm(x)
    denominator = xp.maximum(norm, epsilon)
    start = x / denominator
    # The product with the transpose is the smaller one of the two; both give the same result.
    current = xp.matrix_transpose(start) if tall else start
    known: list[tuple[Array, Array, Array]] = []
    for _ in range(iterations):
        square = xp.matmul(current, xp.matrix_transpose(current))
        factor = b * square + c * xp.matmul(square, square)
        known.append((current, square, factor))
        current = a * current + xp.matmul(factor, current)

    def vjp(dy: Array) -> tuple[Array]:
        d = xp.matrix_transpose(dy) if tall else dy
        for before, square, factor in reversed(known):
            dfactor = xp.matmul(d, xp.matrix_transpose(before))
            # The square is symmetric, and so is the factor.
            dsquare = b * dfactor + c * (xp.matmul(dfactor, square) + xp.matmul(square, dfactor))
            d = a * d + xp.matmul(factor, d) + xp.matmul(dsquare + xp.matrix_transpose(dsquare), before)
        if tall:
            d = xp.matrix_transpose(d)
        d = d / denominator
        dnorm = xp.where(norm > epsilon, -xp.sum(d * start), 0.0)
        return (d + norm_vjp(dnorm)[0],)

    return xp.matrix_transpose(current) if tall else current, vjp


@op
def muon(
    theta: Array,
    gradient: Array,
    average: Array,
    learning_rate: Any,
    momentum: Any,
    scale: Any = 1.0,
    decay: Any = 0.0,
    *,
    nesterov: bool = True,
    iterations: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    epsilon: float = 1e-7,
) -> tuple[tuple[Array, Array], Vjp]:
    """Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024), as PyTorch has it.

        average' = momentum * average + (1 - momentum) * gradient
        direction = momentum * average' + (1 - momentum) * gradient     (without Nesterov's look ahead: average')
        theta' = (1 - learning_rate * decay) * theta - learning_rate * scale * orthogonalize(direction)

    An array of more than two axes counts as a matrix (all axes but the last, last axis): the kernels of a convolution
    become (height * width * in, out).

    Args:
        theta: one parameter, (..., columns), at least two axes.
        gradient: the same shape.
        average: running mean of the gradient, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the three settings behind it too.
        momentum: how much of the average stays.
        scale: a factor of the step, for the shape of the matrix.
        decay: weight decay.
        nesterov: look ahead along the new average.
        iterations: those of `orthogonalize`.
        coefficients: those of `orthogonalize`.
        epsilon: that of `orthogonalize`.

    Returns:
        (theta', average'), and vjp(cotangents of these) -> gradients for (theta, gradient, average).
    """
    xp = namespace(theta)
    new_average = momentum * average + (1.0 - momentum) * gradient
    direction = momentum * new_average + (1.0 - momentum) * gradient if nesterov else new_average
    matrix = xp.reshape(direction, (math.prod(theta.shape[:-1]), theta.shape[-1]))
    orthogonal, orthogonal_vjp = orthogonalize(
        matrix, iterations=iterations, coefficients=coefficients, epsilon=epsilon
    )
    rate = learning_rate * scale

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtheta, daverage = cotangents
        (dmatrix,) = orthogonal_vjp(xp.reshape(-rate * dtheta, matrix.shape))
        ddirection = xp.reshape(dmatrix, theta.shape)
        if nesterov:
            daverage = daverage + momentum * ddirection
            dgradient = (1.0 - momentum) * (ddirection + daverage)
        else:
            daverage = daverage + ddirection
            dgradient = (1.0 - momentum) * daverage
        return shrink(dtheta, learning_rate, decay), dgradient, momentum * daverage

    return (shrink(theta, learning_rate, decay) - rate * xp.reshape(orthogonal, theta.shape), new_average), vjp
