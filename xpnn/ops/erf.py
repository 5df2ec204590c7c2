"""The error function and the normal distribution function, which the array API standard leaves out."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op

_FARTHEST = 40.0
"""exp(-_FARTHEST**2 / 2) is 0 in float64: whatever lies beyond has the values of this point."""

# Coefficients of t^0, t^1, ... for (1 + 2a) exp(a^2) erfc(a) on all of a >= 0, with t = (a - 4) / (a + 4) in [-1, 1]:
# the Chebyshev series in t, computed with 50 digits, cut where the rest is below 5e-17 (float64) or 4e-9 (float32)
# and expanded in powers of t. The idea is that of Shepherd and Laframboise, Mathematics of Computation 36 (1981).
# The coefficients' absolute values add up to 1.8, so that Horner's rule loses nothing.
TAIL_FLOAT64 = (
    1.2329951186255526,
    -0.1396211168405623,
    0.015379652102610473,
    0.06809705425466908,
    -0.10103906603586531,
    0.0937328349990944,
    -0.06633036582031154,
    0.03716751552655567,
    -0.016197733981455194,
    0.005031970067657489,
    -0.000757773707063825,
    -0.00019925714661091188,
    0.00015062309720018628,
    -2.4397746422436416e-05,
    -1.1225101875659178e-05,
    5.706604414895734e-06,
    2.9801353803031333e-07,
    -8.210939042560568e-07,
    7.115337800585303e-08,
    1.0633855618594884e-07,
    -1.6371779763566967e-08,
    -1.234686604382353e-08,
    1.5738283774192037e-09,
    9.311744978232572e-10,
)
TAIL_FLOAT32 = (
    1.232995117439782,
    -0.13962108647903831,
    0.015379768723304961,
    0.06809617491082492,
    -0.10104094077093906,
    0.09374020549562148,
    -0.0663190440889797,
    0.03714045869415886,
    -0.016230391983383944,
    0.005082269577976419,
    -0.0007091327872478604,
    -0.0002484367302906832,
    0.0001142081728424009,
)

# Coefficients of s^0, s^1, ... for erf(a) / a on 0 <= a <= 1 with s = a^2, made in the same way.
_CENTER_FLOAT64 = (
    1.1283791670955126,
    -0.3761263890318375,
    0.11283791670954882,
    -0.026866170645077334,
    0.005223977624823223,
    -0.0008548326981129666,
    0.00012055331122299266,
    -1.4925595519506043e-05,
    1.6461004480962034e-06,
    -1.6350354461959655e-07,
    1.4660051998394848e-08,
    -1.1373902296430911e-09,
    5.958930743134941e-11,
)
_CENTER_FLOAT32 = (
    1.1283791658815026,
    -0.3761262690358044,
    0.11283597463488053,
    -0.026854328796067244,
    0.005189311942686617,
    -0.0008018854992786387,
    7.882497110086663e-05,
)


@op
def erf(x: Array) -> tuple[Array, Vjp]:
    """The error function 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, elementwise: dy/dx = 2/sqrt(pi) exp(-x^2).

    The error of a result is a few units of its own last place, for every x.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    distance = xp.minimum(xp.abs(x), _FARTHEST)
    bell = _exp_of_minus_square(xp, distance, 1.0)
    outer = 1.0 - bell * _scaled_erfc(xp, distance)
    # Near 0, 1 - erfc(a) would cancel: there, a polynomial gives erf itself.
    inside = xp.minimum(distance, 1.0)
    inner = inside * _polynomial(_center_coefficients(xp, x), inside * inside)
    y = xp.where(distance < 1, inner, outer)
    y = xp.where(x < 0, -y, y)

    def vjp(dy: Array) -> tuple[Array]:
        return (dy * (bell * (2.0 / math.sqrt(math.pi))),)

    return y, vjp


@op
def normal_cdf(x: Array) -> tuple[Array, Vjp]:
    """The distribution function of the standard normal distribution, Phi(x) = erfc(-x / sqrt(2)) / 2, elementwise.

    dy/dx is its density, exp(-x^2 / 2) / sqrt(2 pi). For negative x, Phi(x) is small and still right to a few units
    of its own last place, where (1 + erf(x / sqrt(2))) / 2 would cancel to nothing.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    distance = xp.minimum(xp.abs(x), _FARTHEST)
    bell = _exp_of_minus_square(xp, distance, 0.5)
    tail = 0.5 * bell * _scaled_erfc(xp, distance * math.sqrt(0.5))
    y = xp.where(x > 0, 1.0 - tail, tail)

    def vjp(dy: Array) -> tuple[Array]:
        return (dy * (bell * (1.0 / math.sqrt(2.0 * math.pi))),)

    return y, vjp


def _exp_of_minus_square(xp: Any, a: Array, factor: float) -> Array:
    """exp(-factor a^2) for 0 <= a <= 40 and factor 1 or 1/2.

    The rounding error of a^2 would become a relative error of a^2 eps. A multiple z of 1/16 near a has an exact
    square, and a^2 - z^2 = (a - z)(a + z) is small.
    """
    z = xp.round(a * 16.0) / 16.0
    return xp.exp(-factor * (z * z)) * xp.exp(-factor * ((a - z) * (a + z)))


def _scaled_erfc(xp: Any, a: Array) -> Array:
    """exp(a^2) erfc(a) for a >= 0."""
    coefficients = TAIL_FLOAT32 if a.dtype == xp.float32 else TAIL_FLOAT64
    t = 1.0 - 8.0 / (a + 4.0)
    return _polynomial(coefficients, t) / (1.0 + 2.0 * a)


def _center_coefficients(xp: Any, x: Array) -> tuple[float, ...]:
    return _CENTER_FLOAT32 if x.dtype == xp.float32 else _CENTER_FLOAT64


def _polynomial(coefficients: tuple[float, ...], t: Array) -> Array:
    """The sum of coefficients[k] t^k, by Horner's rule."""
    result = coefficients[-1] * t + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        result = result * t + coefficient
    return result
