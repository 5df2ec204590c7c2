"""The quantile function of the normal distribution."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op

# Numerator and denominator of three rational approximations, constant terms first: PPND16 of algorithm AS 241.
_CENTRE = (
    (
        3.3871328727963666080,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL = (
    (
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_FAR_TAIL = (
    (
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)


@op
def normal_quantile(p: Array) -> tuple[Array, Vjp]:
    """z with P(Z <= z) = p for a standard normal Z, elementwise: the inverse of the normal distribution function.

    dz/dp = sqrt(2 pi) exp(z^2 / 2), one over the density at z. The relative error in float64 is about 1e-16
    (Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37, 1988).

    Args:
        p: probabilities, any shape; 0 gives -inf, 1 gives inf, and what is no probability NaN.

    Returns:
        z of p's shape, and vjp(dz) -> (dp,).
    """
    xp = namespace(p)
    q = p - 0.5
    # Each approximation sees only numbers of its own range, clamped, so that the branches not taken stay finite.
    central = xp.minimum(xp.maximum(q, -0.425), 0.425)
    z_central = central * _ratio(_CENTRE, 0.180625 - central * central)

    tail = xp.minimum(p, 1.0 - p)
    inside = tail > 0.0
    r = xp.sqrt(-xp.log(xp.where(inside, tail, 0.5)))
    near = _ratio(_TAIL, xp.minimum(r, 5.0) - 1.6)
    far = _ratio(_FAR_TAIL, xp.maximum(r, 5.0) - 5.0)
    size = xp.where(r <= 5.0, near, far)
    # Outside of (0, 1) the size of z is infinite at the ends, and NaN beyond them.
    size = xp.where(inside, size, xp.where(tail == 0.0, math.inf, xp.full_like(p, math.nan)))
    z = xp.where(xp.abs(q) <= 0.425, z_central, xp.where(q < 0.0, -size, size))

    def vjp(dz: Array) -> tuple[Array]:
        return (dz * (math.sqrt(2.0 * math.pi) * xp.exp(0.5 * z * z)),)

    return z, vjp


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """P(x) / Q(x), by Horner's rule."""
    numerator, denominator = (_polynomial(row, x) for row in coefficients)
    return numerator / denominator


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Any:
    total: Any = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total
