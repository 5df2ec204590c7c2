"""Elementary functions that a compiler turns into vector code: no branch, no table, no call.

Numba's own calls the C library, number by number. Use these in kernels as plain functions of one number:

    from xpnn_backends.native.elementary import exp, log
    power = exp(logits[i, j] - largest)     # a float32 for a float32, a float64 for a float64

An integer or a Python float is no argument for them. All take every number: infinities and NaN give what NumPy gives,
and so do the numbers below the normal ones.

Methods: exp and log by reduction to a small interval with ln 2 in two parts (Cody and Waite, "Software Manual for the
Elementary Functions", 1980; Muller, "Elementary Functions: Algorithms and Implementation", 3rd edition, 2016, chapter
11), and a polynomial there. The polynomials are Chebyshev series, computed with 50 digits, cut where the rest is below
2^-26 (float32) or 2^-56 (float64) of the result, and expanded in powers. There is no fused multiplication and addition,
so that all machines give the same bits. The rest is made of these two.

Errors are stated in units of the result's last place, the worst that was found on some millions of random arguments
all over the range, against numbers with a mantissa of 64 bits or more.
"""

# Functions are compiled for the type that they are called with.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from xpnn.ops.erf import TAIL_FLOAT32, TAIL_FLOAT64
from xpnn_backends.native.intrinsics import always_inline, polynomial, split_power_of_two, times_power_of_two


class _Format(NamedTuple):
    """What depends on the type of float.

    Attributes:
        real: the type.
        shift: 1.5 2^digits: x + shift - shift is x rounded to a whole number, whose bits end the sum.
        ln2_high: the first digits of ln 2, so few that all its multiples by an exponent are exact.
        ln2_low: the rest of ln 2.
        exp_bounds: from the first down, exp is 0; from the second up, it is infinite.
        exp_tail: q with exp(r) = 1 + r + r^2 q(r) for |r| <= ln(2) / 2.
        log_tail: p with log((1 + s) / (1 - s)) = 2 s + s^3 p(s^2), for 1 / sqrt(2) <= (1 + s) / (1 - s) <= sqrt(2).
    """

    real: Any
    shift: float
    ln2_high: float
    ln2_low: float
    exp_bounds: tuple[float, float]
    exp_tail: Any
    log_tail: Any


_FLOAT32 = _Format(
    np.float32,
    1.5 * 2.0**23,
    0.693145751953125,
    1.4286068203094173e-06,
    (-104.0, 89.0),
    polynomial(0.5, 0.16666576266288757, 0.04166646674275398, 0.008363181725144386, 0.0013933652080595493),
    polynomial(0.6666666865348816, 0.4000012278556824, 0.28550776839256287, 0.23331482708454132),
)
_FLOAT64 = _Format(
    np.float64,
    1.5 * 2.0**52,
    0.693147180559663,
    2.8235290563031577e-13,
    (-746.0, 710.0),
    polynomial(
        0.5,
        0.1666666666666667,
        0.04166666666662412,
        0.008333333333326134,
        0.0013888888917215586,
        0.00019841269874822307,
        2.4801521293463862e-05,
        2.755725539833871e-06,
        2.762008948195459e-07,
        2.5105217695684516e-08,
    ),
    polynomial(
        0.666666666666667,
        0.39999999999898944,
        0.2857142862620096,
        0.22222211101577205,
        0.1818289133623783,
        0.1533165379922582,
        0.14617229114009048,
    ),
)


def _for_both(name: Callable[..., Any]) -> Callable[[Callable[[_Format], Any]], Callable[[_Format], Any]]:
    """make(format) makes the function that `name` stands for, for each of the two types of float."""

    def declare(make: Callable[[_Format], Any]) -> Callable[[_Format], Any]:
        made = {types.float32: make(_FLOAT32), types.float64: make(_FLOAT64)}

        @overload(name, jit_options={"error_model": "numpy"})
        def choose(x):
            return made.get(x)

        return make

    return declare


def exp(x):
    """e^x.

    x = n ln 2 + r with a whole n and |r| <= ln(2) / 2; then e^x = 2^n (1 + r + r^2 q(r)).
    Worst error: 1.02 units (float32), 1.11 (float64).
    """


@_for_both(exp)
def _make_exp(given):
    real, tail = given.real, given.exp_tail
    one, shift, per_ln2 = real(1.0), real(given.shift), real(1.4426950408889634)
    ln2_high, ln2_low = real(given.ln2_high), real(given.ln2_low)
    lowest, highest = map(real, given.exp_bounds)

    def exp(x):
        x = lowest if x < lowest else x
        x = highest if x > highest else x
        shifted = x * per_ln2 + shift
        n = shifted - shift
        r = (x - n * ln2_high) - n * ln2_low
        return times_power_of_two(one + (r + r * r * tail(r)), shifted, shift)

    return exp


def log(x):
    """The natural logarithm.

    x = 2^k (1 + f) with 1 / sqrt(2) <= 1 + f < sqrt(2). With s = f / (2 + f), log(1 + f) = 2 s + s^3 p(s^2); and
    2 s = f - s f = f - f^2 / 2 + s f^2 / 2, so that f, which is exact, is added last.
    Worst error: 0.84 units (float32), 0.83 (float64). Of a negative number it is NaN, of 0 minus infinity.
    """


@_for_both(log)
def _make_log(given):
    real, tail = given.real, given.log_tail
    zero, half, one, two = real(0.0), real(0.5), real(1.0), real(2.0)
    shift, low = real(given.shift), real(np.sqrt(real(0.5)))
    ln2_high, ln2_low = real(given.ln2_high), real(given.ln2_low)
    smallest = np.finfo(real).smallest_normal
    lift, lift_exponent = real(2.0**54), real(54.0)
    infinity, nan = real(np.inf), real(np.nan)

    def log(x):
        tiny = x < smallest
        m, k = split_power_of_two(x * lift if tiny else x, low, shift)
        k = k - lift_exponent if tiny else k
        f = m - one
        s = f / (two + f)
        z = s * s
        half_square = half * f * f
        y = k * ln2_high - ((half_square - (s * (half_square + z * tail(z)) + k * ln2_low)) - f)
        y = y if x < infinity else x
        y = -infinity if x == zero else y
        return nan if x < zero else y

    return log


def expm1(x):
    """e^x - 1, right for small x too.

    With p = e^r - 1 it is 2^n p + (2^n - 1), which is p itself for n = 0; in halves, so that 2^n stays finite.
    Worst error: 1.73 units (float32), 1.91 (float64).
    """


@_for_both(expm1)
def _make_expm1(given):
    real, tail = given.real, given.exp_tail
    half, two, shift, per_ln2 = real(0.5), real(2.0), real(given.shift), real(1.4426950408889634)
    ln2_high, ln2_low = real(given.ln2_high), real(given.ln2_low)
    # The result is -1 long before the first bound.
    lowest, highest = real(-80.0), real(given.exp_bounds[1])

    def expm1(x):
        x = lowest if x < lowest else x
        x = highest if x > highest else x
        shifted = x * per_ln2 + shift
        n = shifted - shift
        r = (x - n * ln2_high) - n * ln2_low
        half_power = times_power_of_two(half, shifted, shift)
        return two * (half_power * (r + r * r * tail(r)) + (half_power - half))

    return expm1


def log1p(x):
    """log(1 + x), right for small x too: log(u) + (x - (u - 1)) / u, where u is 1 + x as it is rounded.

    Worst error: 1.44 units (both).
    """


@_for_both(log1p)
def _make_log1p(given):
    one, zero, infinity = given.real(1.0), given.real(0.0), given.real(np.inf)

    def log1p(x):
        always_inline()
        u = one + x
        lost = (x - (u - one)) / u
        y = log(u)
        # Not where u is 0 or infinite: the logarithm is right there, and what was lost is NaN.
        return y + lost if (u > zero) & (u < infinity) else y

    return log1p


def tanh(x):
    """The hyperbolic tangent: -t / (2 + t) with t = exp(-2 |x|) - 1, and the sign of x.

    Worst error: 2.5 units (float32), 2.7 (float64).
    """


@_for_both(tanh)
def _make_tanh(given):
    zero, two = given.real(0.0), given.real(2.0)

    def tanh(x):
        always_inline()
        t = expm1(-two * abs(x))
        y = t / (two + t)
        # -y for a positive x; t is never positive.
        return y if x < zero else zero - y

    return tanh


def sigmoid(x):
    """1 / (1 + exp(-x)), by exp(-|x|), which cannot overflow.

    Worst error: 2.4 units (both).
    """


@_for_both(sigmoid)
def _make_sigmoid(given):
    zero, one = given.real(0.0), given.real(1.0)

    def sigmoid(x):
        always_inline()
        decay = exp(-abs(x))
        return (one if x >= zero else decay) / (one + decay)

    return sigmoid


def normal_cdf_and_density(x):
    """(Phi(x), phi(x)) of the standard normal distribution, as `xpnn.ops.normal_cdf` computes them.

    In exp(-x^2 / 2), the square is the sum of an exact one and a small rest, and both parts are reduced together.
    Worst error of Phi: 7.5 units (both), near x = 0, as of the op; 5 where Phi is small.
    """


@_for_both(normal_cdf_and_density)
def _make_normal_cdf(given):
    real, exp_tail = given.real, given.exp_tail
    zero, half, one, two, four, eight = map(real, (0.0, 0.5, 1.0, 2.0, 4.0, 8.0))
    shift, per_ln2, sixteen, sixteenth = real(given.shift), real(1.4426950408889634), real(16.0), real(0.0625)
    ln2_high, ln2_low = real(given.ln2_high), real(given.ln2_low)
    # Beyond, the density is 0.
    farthest, root_half = real(math.sqrt(-2.0 * given.exp_bounds[0])), real(math.sqrt(0.5))
    density_at_0 = real(1.0 / math.sqrt(2.0 * math.pi))
    tail = polynomial(*(TAIL_FLOAT32 if real is np.float32 else TAIL_FLOAT64))

    def normal_cdf_and_density(x):
        a = abs(x)
        a = farthest if a > farthest else a
        z = (a * sixteen + shift - shift) * sixteenth
        high = -half * (z * z)
        low = -half * ((a - z) * (a + z))
        shifted = (high + low) * per_ln2 + shift
        n = shifted - shift
        r = (high - n * ln2_high) + (low - n * ln2_low)
        bell = times_power_of_two(one + (r + r * r * exp_tail(r)), shifted, shift)
        b = a * root_half
        upper = half * bell * (tail(one - eight / (b + four)) / (one + two * b))
        return (one - upper if x > zero else upper), bell * density_at_0

    return normal_cdf_and_density


def like(x, value):
    """The number `value` in the type of x: a Python float would make float32 arithmetic float64."""


@overload(like)
def _like(x, value):
    return (lambda x, value: np.float32(value)) if x == types.float32 else (lambda x, value: np.float64(value))
