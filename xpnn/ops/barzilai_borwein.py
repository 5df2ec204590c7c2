"""The step length of Barzilai and Borwein, in two ops: products of each block, then the length from their sums."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op


@op
def secant_products(
    theta: Array, gradient: Array, previous_theta: Array, previous_gradient: Array
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """(s.s, s.y, y.y) for the change of theta, s, and the change of the gradient, y, in the last step.

    Args:
        theta: parameters, any shape.
        gradient: the gradient at theta, the same shape.
        previous_theta: parameters one step ago, the same shape.
        previous_gradient: the gradient there, the same shape.

    Returns:
        Three 0-d arrays, and vjp(cotangents of these) -> gradients for the four arguments.
    """
    xp = namespace(theta)
    s = theta - previous_theta
    y = gradient - previous_gradient

    def vjp(cotangents: tuple[Array, Array, Array]) -> tuple[Any, ...]:
        dss, dsy, dyy = cotangents
        ds = 2.0 * dss * s + dsy * y
        dy = 2.0 * dyy * y + dsy * s
        return ds, dy, -ds, -dy

    return (xp.sum(s * s), xp.sum(s * y), xp.sum(y * y)), vjp


@op
def barzilai_borwein(ss: Array, sy: Array, yy: Array, fallback: Any, *, long: bool = True) -> tuple[Array, Vjp]:
    """The step length for which one number imitates the inverse Hessian (Barzilai and Borwein, IMA J. Num. An., 1988).

        long (BB1): s.s / s.y        short (BB2): s.y / y.y

    On a quadratic with a positive definite Hessian, both lie between the inverses of its largest and its smallest
    eigenvalue. Where s.y is not positive (no step was taken yet, or the function is not convex between the two points)
    the length is `fallback`.

    Args:
        ss: s.s, a 0-d array as `secant_products` gives it; so are the next two.
        sy: s.y.
        yy: y.y.
        fallback: a number, or a 0-d array.
        long: which of the two lengths.

    Returns:
        The length, a 0-d array, and vjp(dlength) -> gradients for (ss, sy, yy).
    """
    xp = namespace(ss)
    numerator, denominator = (ss, sy) if long else (sy, yy)
    # A denominator that underflowed, or a quotient that would overflow, is no length either.
    smallest = float(xp.finfo(sy.dtype).smallest_normal)
    usable = xp.logical_and(sy > 0, denominator > numerator * smallest)
    safe = xp.where(usable, denominator, 1.0)
    quotient = xp.where(usable, numerator, 1.0) / safe

    def vjp(dlength: Array) -> tuple[Any, ...]:
        dnumerator = xp.where(usable, dlength / safe, 0.0)
        ddenominator = -dnumerator * quotient
        nothing = xp.zeros_like(dlength)
        if long:
            return dnumerator, ddenominator, nothing
        return nothing, dnumerator, ddenominator

    return xp.where(usable, quotient, fallback), vjp
