"""Adafactor: the mean squares of a matrix's gradient, kept for its rows and its columns only.

Both ops are of one parameter at a time. The conventions are those of PyTorch's Adafactor.
"""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.adam import shrink
from xpnn.ops.clipping import global_norm
from xpnn.ops.square_root import square_root_gradient


@op
def adafactor(
    theta: Array,
    gradient: Array,
    variance: Array,
    learning_rate: Any,
    relative_rate: Any,
    fresh: Any,
    epsilon1: Any,
    epsilon2: Any,
    threshold: Any,
    decay: Any = 0.0,
) -> tuple[tuple[Array, Array], Vjp]:
    """Adafactor for a parameter that is no matrix (Shazeer and Stern, ICML 2018, algorithm 5).

        variance' = (1 - fresh) * variance + fresh * gradient^2
        direction = gradient / max(sqrt(variance'), epsilon1)
        step = relative_rate * max(epsilon2, rms(theta)) * direction / max(1, rms(direction) / threshold)
        theta' = (1 - learning_rate * decay) * theta - step

    where rms is the root of the mean of all squares.

    Args:
        theta: one parameter, any shape.
        gradient: the same shape.
        variance: running mean of the gradient's square, the same shape; zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too. It is for the weight decay alone.
        relative_rate: the step's size in units of theta's.
        fresh: the weight of this gradient in the running mean.
        epsilon1: the least denominator, > 0.
        epsilon2: the least size that theta counts for.
        threshold: where the size of the direction is cut off, > 0.
        decay: weight decay.

    Returns:
        (theta', variance'), and vjp(cotangents of these) -> gradients for (theta, gradient, variance).
    """
    new_variance = (1.0 - fresh) * variance + gradient * (fresh * gradient)
    settings = learning_rate, relative_rate, epsilon1, epsilon2, threshold, decay
    new_theta, step_vjp = _step(theta, gradient, new_variance, *settings)

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtheta, dvariance = cotangents
        dtheta, dgradient, destimate = step_vjp(dtheta)
        dvariance = dvariance + destimate
        return dtheta, dgradient + (2.0 * fresh) * dvariance * gradient, (1.0 - fresh) * dvariance

    return (new_theta, new_variance), vjp


@op
def adafactor_factored(
    theta: Array,
    gradient: Array,
    row_variance: Array,
    column_variance: Array,
    learning_rate: Any,
    relative_rate: Any,
    fresh: Any,
    epsilon1: Any,
    epsilon2: Any,
    threshold: Any,
    decay: Any = 0.0,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """Adafactor for a matrix (Shazeer and Stern, ICML 2018, algorithm 4), or an array of matrices in its last two axes.

        row_variance' = (1 - fresh) * row_variance + fresh * (mean of gradient^2 over each row)
        column_variance' = (1 - fresh) * column_variance + fresh * (mean of gradient^2 over each column)
        variance = row_variance' column_variance' / max(mean of row_variance', epsilon1)

    and from there on as `adafactor`. Where the mean of the row variances is below epsilon1, it is a constant to the
    derivative.

    Args:
        theta: one parameter, (..., rows, columns).
        gradient: the same shape.
        row_variance: (..., rows, 1); zeros at first.
        column_variance: (..., 1, columns); zeros at first.
        learning_rate: a number, or a 0-d array; the other settings too. It is for the weight decay alone.
        relative_rate: the step's size in units of theta's.
        fresh: the weight of this gradient in the running means.
        epsilon1: the least denominator, > 0.
        epsilon2: the least size that theta counts for.
        threshold: where the size of the direction is cut off, > 0.
        decay: weight decay.

    Returns:
        (theta', row_variance', column_variance'), and vjp(cotangents of these) -> gradients for (theta, gradient,
        row_variance, column_variance).
    """
    xp = namespace(theta)
    rows, columns = theta.shape[-2:]
    squares = gradient * (fresh * gradient)
    new_row = (1.0 - fresh) * row_variance + xp.sum(squares, axis=-1, keepdims=True) / max(columns, 1)
    new_column = (1.0 - fresh) * column_variance + xp.sum(squares, axis=-2, keepdims=True) / max(rows, 1)
    mean = xp.sum(new_row, axis=-2, keepdims=True) / max(rows, 1)
    denominator = xp.maximum(mean, epsilon1)
    share = new_row / denominator
    settings = learning_rate, relative_rate, epsilon1, epsilon2, threshold, decay
    new_theta, step_vjp = _step(theta, gradient, share * new_column, *settings)

    def vjp(cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
        dtheta, drow, dcolumn = cotangents
        dtheta, dgradient, destimate = step_vjp(dtheta)
        dcolumn = dcolumn + xp.sum(destimate * share, axis=-2, keepdims=True)
        dshare = xp.sum(destimate * new_column, axis=-1, keepdims=True) / denominator
        dmean = -xp.sum(dshare * share, axis=-2, keepdims=True) / max(rows, 1)
        drow = drow + dshare + xp.where(mean > epsilon1, dmean, 0.0)
        dsquares = drow / max(columns, 1) + dcolumn / max(rows, 1)
        dgradient = dgradient + (2.0 * fresh) * dsquares * gradient
        return dtheta, dgradient, (1.0 - fresh) * drow, (1.0 - fresh) * dcolumn

    return (new_theta, new_row, new_column), vjp


def _step(
    theta: Array,
    gradient: Array,
    variance: Array,
    learning_rate: Any,
    relative_rate: Any,
    epsilon1: Any,
    epsilon2: Any,
    threshold: Any,
    decay: Any,
) -> tuple[Array, Vjp]:
    """theta after the step that both ops take, and vjp(dtheta') -> gradients for (theta, gradient, variance)."""
    xp = namespace(theta)
    root_of_size = math.sqrt(max(math.prod(theta.shape), 1))
    root = xp.sqrt(variance)
    # The root is bounded, not what is under it: the square of epsilon1 may be too small a number for float32.
    denominator = xp.maximum(root, epsilon1)
    direction = gradient / denominator
    norm, norm_vjp = global_norm(direction)
    excess = norm / (root_of_size * threshold)
    too_long = excess > 1.0
    cut = xp.where(too_long, excess, 1.0)
    length, length_vjp = global_norm(theta)
    size = length / root_of_size
    large = size > epsilon2
    rate = relative_rate * xp.where(large, size, epsilon2)
    factor = rate / cut

    def vjp(dtheta: Array) -> tuple[Array, Array, Array]:
        dfactor = -xp.sum(dtheta * direction)
        dnorm = xp.where(too_long, -dfactor * factor / cut / (root_of_size * threshold), 0.0)
        ddirection = -factor * dtheta + norm_vjp(dnorm)[0]
        dlength = xp.where(large, dfactor / cut * relative_rate / root_of_size, 0.0)
        dgradient = ddirection / denominator
        droot = xp.where(root > epsilon1, -dgradient * direction, 0.0)
        dvariance = square_root_gradient(xp, root, droot)
        return shrink(dtheta, learning_rate, decay) + length_vjp(dlength)[0], dgradient, dvariance

    return shrink(theta, learning_rate, decay) - factor * direction, vjp
