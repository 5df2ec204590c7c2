"""The parts of L-BFGS (Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp., 1980).

The method remembers its last steps s_i and the changes of the gradient y_i along them. `xpnn.optimizers.LBFGS` puts the
parts together: where a vector is held in several blocks, the products of its blocks are added up in between.

No value is read: a pair that is not there, or that is of no use, has weight 0.
"""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op

LEAST = 1e-10
"""A pair counts only if s.y is larger, as in PyTorch: else the function is not convex along s, or s is all rounding."""


@op
def inner_product(x: Array, y: Array) -> tuple[Array, Vjp]:
    """The sum of all products x * y.

    Args:
        x: any shape.
        y: the same shape.

    Returns:
        A 0-d array, and vjp(d) -> gradients for (x, y).
    """

    def vjp(d: Array) -> tuple[Array, Array]:
        return d * y, d * x

    return namespace(x).sum(x * y), vjp


@op
def add_multiple(x: Array, y: Array, factor: Any) -> tuple[Array, Vjp]:
    """x + factor * y.

    Args:
        x: any shape.
        y: the same shape.
        factor: a 0-d array, or a number.

    Returns:
        An array of x's shape, and vjp(d) -> gradients for (x, y, factor).
    """

    def vjp(d: Array) -> tuple[Array, Array, Array]:
        return d, factor * d, namespace(x).sum(d * y)

    return x + factor * y, vjp


@op
def multiple(x: Array, factor: Array) -> tuple[Array, Vjp]:
    """factor * x.

    Args:
        x: any shape.
        factor: a 0-d array.

    Returns:
        An array of x's shape, and vjp(d) -> gradients for (x, factor).
    """

    def vjp(d: Array) -> tuple[Array, Array]:
        return factor * d, namespace(x).sum(d * x)

    return factor * x, vjp


@op
def absolute_sum(x: Array) -> tuple[Array, Vjp]:
    """The sum of all |x|. The derivative of |x| at 0 is 0.

    Args:
        x: any shape.

    Returns:
        A 0-d array, and vjp(d) -> (dx,).
    """
    xp = namespace(x)

    def vjp(d: Array) -> tuple[Array]:
        return (d * xp.sign(x),)

    return xp.sum(xp.abs(x)), vjp


@op
def lbfgs_remember(curvature: Array, new: Array, *old: Array, least: float = LEAST) -> tuple[tuple[Array, ...], Vjp]:
    """The remembered vectors, newest first: with the new one, and without the oldest, if the new pair counts.

    Args:
        curvature: s.y of the new pair, a 0-d array; the pair counts if it is larger than `least`.
        new: its s, or its y; any shape.
        old: those that are remembered, newest first; the same shape.
        least: a number of at least 0.

    Returns:
        As many vectors as `old`, and vjp(cotangents) -> gradients for (None for the curvature, new, *old).
    """
    xp = namespace(new)
    counts = curvature > least

    def vjp(cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
        moved = [xp.where(counts, d, 0.0) for d in cotangents]
        stayed = [xp.where(counts, 0.0, d) for d in cotangents]
        older = [a + b for a, b in zip(stayed[:-1], moved[1:], strict=True)]
        return None, moved[0], *older, stayed[-1]

    return tuple(xp.where(counts, x, y) for x, y in zip((new, *old[:-1]), old, strict=True)), vjp


@op
def lbfgs_weight(curvature: Array, *, least: float = LEAST) -> tuple[Array, Vjp]:
    """1 / s.y for a pair that counts, else 0.

    Args:
        curvature: s.y, a 0-d array; the pair counts if it is larger than `least`.
        least: a number of at least 0.

    Returns:
        A 0-d array, and vjp(d) -> (gradient for the curvature,).
    """
    xp = namespace(curvature)
    counts = curvature > least
    inverse = 1.0 / xp.where(counts, curvature, 1.0)

    def vjp(d: Array) -> tuple[Array]:
        return (xp.where(counts, -d * inverse * inverse, 0.0),)

    return xp.where(counts, inverse, 0.0), vjp


@op
def lbfgs_scale(curvature: Array, squares: Array, otherwise: Array, *, least: float = LEAST) -> tuple[Array, Vjp]:
    """s.y / y.y for a pair that counts, else `otherwise`: one number that imitates the inverse Hessian.

    Args:
        curvature: s.y, a 0-d array; the pair counts if it is larger than `least`.
        squares: y.y, a 0-d array.
        otherwise: a 0-d array.
        least: a number of at least 0.

    Returns:
        A 0-d array, and vjp(d) -> gradients for the three arguments.
    """
    xp = namespace(curvature)
    # y.y of such a pair is positive, unless it underflowed.
    counts = xp.logical_and(curvature > least, squares > 0)
    inverse = 1.0 / xp.where(counts, squares, 1.0)
    scale = curvature * inverse

    def vjp(d: Array) -> tuple[Array, Array, Array]:
        used = xp.where(counts, d, 0.0)
        return used * inverse, -used * scale * inverse, xp.where(counts, 0.0, d)

    return xp.where(counts, scale, otherwise), vjp


@op
def lbfgs_length(total: Array, last_squares: Array, learning_rate: Any) -> tuple[Array, Vjp]:
    """How far to go along the direction: the learning rate; in the first step, whose direction has no scale yet, less.

        learning_rate * min(1, 1 / total)    in the first step, as in PyTorch

    Args:
        total: the sum of the gradient's absolute values, a 0-d array.
        last_squares: s.s for the last step, a 0-d array; 0 says that there was none.
        learning_rate: a number, or a 0-d array.

    Returns:
        The length, a 0-d array, and vjp(d) -> gradients for (total, None for `last_squares`).
    """
    xp = namespace(total)
    shorter = xp.logical_and(last_squares == 0, total > 1.0)
    inverse = 1.0 / xp.where(shorter, total, 1.0)

    def vjp(d: Array) -> tuple[Any, ...]:
        return xp.where(shorter, -d * learning_rate * inverse * inverse, 0.0), None

    return learning_rate * inverse, vjp
