"""Activations: value and derivative in one pass, so that the backward pass has only to multiply.

Each formula is that of the op of its name in `xpnn.ops`, with `setting` for its one option (0 where it has none). A
derivative costs little while exp(x) is at hand, and much when it has to be computed anew.

Loops count from 0, over views: else an index might be negative, which means something else in Python, and no vector
code is made of them.
"""

# Functions are compiled for the types that they are called with.

import math

import numpy as np
from numba.extending import register_jitable

from xpnn.ops.rectifiers import SELU_ALPHA, SELU_SCALE
from xpnn_backends.native import elementary
from xpnn_backends.native.elementary import exp, expm1, like, log, log1p, normal_cdf_and_density
from xpnn_backends.native.intrinsics import always_inline
from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.sums import largest_of, sum_of


@register_jitable
def between(x, low, high):
    """min(max(x, low), high); a NaN stays."""
    x = low if x < low else x
    return high if x > high else x


@register_jitable
def leaky_relu_and_slope(x, setting):
    """x and 1 for x > 0, else both times the setting."""
    one = like(x, 1.0)
    slope = one if x > like(x, 0.0) else setting
    return x * slope, slope


@register_jitable
def elu_and_slope(x, setting):
    """x and 1 for x > 0, else alpha (exp(x) - 1) and alpha exp(x)."""
    always_inline()
    zero = like(x, 0.0)
    below = zero if x > zero else x
    # Computed first and picked then: no branch.
    y, slope = setting * expm1(below), setting * exp(below)
    return (x, like(x, 1.0)) if x > zero else (y, slope)


@register_jitable
def selu_and_slope(x, setting):
    """elu with alpha and a scale that keep mean 0 and variance 1."""
    always_inline()
    y, slope = elu_and_slope(x, like(x, SELU_ALPHA))
    scale = like(x, SELU_SCALE)
    return scale * y, scale * slope


@register_jitable
def celu_and_slope(x, setting):
    """x and 1 for x > 0, else alpha (exp(x / alpha) - 1) and exp(x / alpha)."""
    always_inline()
    zero = like(x, 0.0)
    below = zero if x > zero else x
    lowest = like(x, -1000.0) * setting
    exponent = (lowest if below < lowest else below) / setting
    y, slope = setting * expm1(exponent), exp(exponent)
    return (x, like(x, 1.0)) if x > zero else (y, slope)


@register_jitable
def smelu_and_slope(x, setting):
    """0, (x + beta)^2 / (4 beta), or x, and the straight slope (x + beta) / (2 beta) from 0 to 1."""
    slope = (between(x, -setting, setting) + setting) * (like(x, 0.5) / setting)
    return x if x >= setting else setting * (slope * slope), slope


@register_jitable
def softplus_and_slope(x, setting):
    """max(x, 0) + log(1 + exp(-beta |x|)) / beta, and sigmoid(beta x)."""
    always_inline()
    zero, one = like(x, 0.0), like(x, 1.0)
    farthest = like(x, 1000.0) / setting
    distance = abs(x)
    decay = exp(-setting * (farthest if distance > farthest else distance))
    y = (zero if x < zero else x) + log1p(decay) / setting
    return y, (decay if x < zero else one) / (one + decay)


@register_jitable
def softsign_and_slope(x, setting):
    """x / (1 + |x|) and 1 / (1 + |x|)^2."""
    size = like(x, 1.0) + abs(x)
    return x / size, like(x, 1.0) / size / size


@register_jitable
def sigmoid_and_slope(x, setting):
    """s = 1 / (1 + exp(-x)) and s (1 - s), which does not cancel."""
    always_inline()
    one = like(x, 1.0)
    decay = exp(-abs(x))
    large = one / (one + decay)
    small = decay / (one + decay)
    return large if x >= like(x, 0.0) else small, large * small


@register_jitable
def log_sigmoid_and_slope(x, setting):
    """min(x, 0) - log(1 + exp(-|x|)) and sigmoid(-x)."""
    always_inline()
    zero, one = like(x, 0.0), like(x, 1.0)
    decay = exp(-abs(x))
    y = (zero if x > zero else x) - log1p(decay)
    return y, (decay if x > zero else one) / (one + decay)


@register_jitable
def hard_sigmoid_and_slope(x, setting):
    """min(max(x + 3, 0), 6) / 6, and 1/6 between, 0 outside."""
    zero, three, six = like(x, 0.0), like(x, 3.0), like(x, 6.0)
    return between(x + three, zero, six) / six, like(x, 1.0) / six if abs(x) < three else zero


@register_jitable
def gelu_and_slope(x, setting):
    """x Phi(x) and Phi(x) + x phi(x)."""
    always_inline()
    gate, density = normal_cdf_and_density(x)
    return x * gate, gate + x * density


@register_jitable
def gelu_tanh_and_slope(x, setting):
    """x s and s + x s', with s = sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))."""
    always_inline()
    one = like(x, 1.0)
    factor = like(x, 2.0 * math.sqrt(2.0 / math.pi))
    near = between(x, like(x, -30.0), like(x, 30.0))
    square = near * near
    gate, slope = sigmoid_and_slope(factor * (near * (one + like(x, 0.044715) * square)), setting)
    return x * gate, gate + x * (slope * (factor * (one + like(x, 3.0 * 0.044715) * square)))


@register_jitable
def silu_and_slope(x, setting):
    """x s and s + x s (1 - s), with s = sigmoid(x)."""
    always_inline()
    gate, slope = sigmoid_and_slope(x, setting)
    return x * gate, gate + x * slope


@register_jitable
def mish_and_slope(x, setting):
    """x tanh(log(1 + exp(x))) and its derivative, in exp(-|x|)."""
    always_inline()
    zero, one, two, four = like(x, 0.0), like(x, 1.0), like(x, 2.0), like(x, 4.0)
    decay = exp(-abs(x))
    positive = x >= zero
    numerator = one + two * decay if positive else decay * (decay + two)
    total = numerator + (two * decay * decay if positive else two)
    gate = numerator / total
    rise = four * decay * (one + decay) * (decay if positive else one)
    return x * gate, gate + x * (rise / (total * total))


@register_jitable
def hard_swish_and_slope(x, setting):
    """x min(max(x + 3, 0), 6) / 6, and 0, x/3 + 1/2 or 1."""
    zero, three, six = like(x, 0.0), like(x, 3.0), like(x, 6.0)
    inside = between(x, -three, three) / three + like(x, 0.5)
    slope = like(x, 1.0) if x >= three else inside
    return x * (between(x + three, zero, six) / six), slope if x > -three else zero


@register_jitable
def normal_cdf_and_slope(x, setting):
    """Phi(x) and phi(x)."""
    always_inline()
    return normal_cdf_and_density(x)


def _pass(name, value_and_slope):
    """The kernel of that name: y, slope = value_and_slope(x, setting) for each number."""

    def run(part, parts, x, setting, y, slope):
        first, last = share(x.size, part, parts, 16)
        x, y, slope = x[first:last], y[first:last], slope[first:last]
        value = x.dtype.type(setting)
        for i in range(x.size):
            y[i], slope[i] = value_and_slope(x[i], value)

    run.__name__ = run.__qualname__ = name
    return kernel("T:1 number T:1 T:1", parallel=True)(run)


leaky_relu = _pass("leaky_relu", leaky_relu_and_slope)
elu = _pass("elu", elu_and_slope)
selu = _pass("selu", selu_and_slope)
celu = _pass("celu", celu_and_slope)
smelu = _pass("smelu", smelu_and_slope)
softplus = _pass("softplus", softplus_and_slope)
softsign = _pass("softsign", softsign_and_slope)
sigmoid = _pass("sigmoid", sigmoid_and_slope)
log_sigmoid = _pass("log_sigmoid", log_sigmoid_and_slope)
hard_sigmoid = _pass("hard_sigmoid", hard_sigmoid_and_slope)
gelu = _pass("gelu", gelu_and_slope)
gelu_tanh = _pass("gelu_tanh", gelu_tanh_and_slope)
silu = _pass("silu", silu_and_slope)
mish = _pass("mish", mish_and_slope)
hard_swish = _pass("hard_swish", hard_swish_and_slope)
normal_cdf = _pass("normal_cdf", normal_cdf_and_slope)


@kernel("T:1 T:1", parallel=True)
def relu(part, parts, x, y):
    """y = max(x, 0); a NaN stays. Its derivative is found from y."""
    first, last = share(x.size, part, parts, 16)
    x, y = x[first:last], y[first:last]
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = zero if x[i] < zero else x[i]


@kernel("T:1 T:1", parallel=True)
def tanh(part, parts, x, y):
    """y = tanh(x). Its derivative is found from y."""
    first, last = share(x.size, part, parts, 16)
    x, y = x[first:last], y[first:last]
    for i in range(x.size):
        y[i] = elementary.tanh(x[i])


@register_jitable
def slope_of_relu(y, dy):
    """dy where y > 0, else 0, whatever dy is."""
    zero = like(dy, 0.0)
    return dy if y > zero else zero


@register_jitable
def slope_of_tanh(y, dy):
    """(1 - y^2) dy."""
    return (like(y, 1.0) - y * y) * dy


@register_jitable
def times_slope(slope, dy):
    """slope dy."""
    return slope * dy


@register_jitable
def _times_slope_or_zero(slope, dy):
    """slope dy, but 0 where the slope is 0, whatever dy is."""
    zero = like(dy, 0.0)
    return zero if slope == zero else slope * dy


def _gradient(name, derivative):
    """The kernel of that name: dz = derivative(kept, dy), and dbias = the sum of its rows, unless it is empty."""

    def run(part, parts, kept, dy, dz, dbias):
        first, last = share(dy.shape[1], part, parts, 16)
        sums = dbias[first:last]
        for j in range(sums.size):
            sums[j] = dy.dtype.type(0)
        for i in range(dy.shape[0]):
            row, given, made = kept[i, first:last], dy[i, first:last], dz[i, first:last]
            if sums.size:
                for j in range(made.size):
                    g = derivative(row[j], given[j])
                    made[j] = g
                    sums[j] += g
            else:
                for j in range(made.size):
                    made[j] = derivative(row[j], given[j])

    run.__name__ = run.__qualname__ = name
    return kernel("T:2 T:2 T:2 T:1", parallel=True)(run)


relu_gradient = _gradient("relu_gradient", slope_of_relu)
tanh_gradient = _gradient("tanh_gradient", slope_of_tanh)
slope_gradient = _gradient("slope_gradient", times_slope)
stepped_gradient = _gradient("stepped_gradient", _times_slope_or_zero)


@kernel("T:2 T:1 T:2", parallel=True)
def prelu(part, parts, x, slope, y):
    """x for x > 0, else the slope of its column (or the only one) times x."""
    first, last = share(x.shape[0], part, parts)
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(first, last):
        given, made = x[i, :], y[i, :]
        if slope.size == 1:
            for j in range(made.size):
                made[j] = given[j] * (one if given[j] > zero else slope[0])
        else:
            for j in range(made.size):
                made[j] = given[j] * (one if given[j] > zero else slope[j])


@kernel("T:2 T:1 T:2 T:2 T:1", parallel=True)
def prelu_gradient(part, parts, x, slope, dy, dx, sums):
    """dx = dy for x > 0, else slope dy; sums = those of min(x, 0) dy over the rows."""
    first, last = share(x.shape[1], part, parts, 16)
    zero, one = x.dtype.type(0), x.dtype.type(1)
    sums = sums[first:last]
    slopes = slope if slope.size == 1 else slope[first:last]
    for j in range(sums.size):
        sums[j] = zero
    for i in range(x.shape[0]):
        value, given, made = x[i, first:last], dy[i, first:last], dx[i, first:last]
        if slope.size == 1:
            for j in range(made.size):
                made[j] = given[j] * (one if value[j] > zero else slope[0])
        else:
            for j in range(made.size):
                made[j] = given[j] * (one if value[j] > zero else slopes[j])
        for j in range(sums.size):
            sums[j] += (zero if value[j] > zero else value[j]) * given[j]


@register_jitable
def rows_of_chunk(columns):
    """How many rows are worked on at a time: a few thousand numbers, which stay in the first-level cache."""
    return max(1, 4096 // columns)


_SHORT = 32
"""A row shorter than this is added up number by number: several sums side by side are not worth their making."""


@register_jitable
def largest_or_nan(x):
    """The largest of some numbers, or NaN if there is one among them."""
    if x.size < _SHORT:
        largest = x[0]
        for i in range(x.size):
            largest = largest if x[i] <= largest else x[i]
            if x[i] != x[i]:
                return x[i]
        return largest
    largest = largest_of(x, 0, x.size)
    strange = 0
    for i in range(x.size):
        strange |= x[i] != x[i]
    return largest * x.dtype.type(np.nan) if strange else largest


@register_jitable
def sum_of_row(x):
    """The sum of some numbers, in float64."""
    if x.size < _SHORT:
        total = 0.0
        for i in range(x.size):
            total += np.float64(x[i])
        return total
    return sum_of(x, 0, x.size)


@kernel("T:1 int T:1", parallel=True)
def softmax(part, parts, x, columns, y):
    """y = exp(x - max x) / (its sum), row by row.

    The exponentials of some rows are computed together, so that short rows fill whole vectors too.
    """
    real = x.dtype.type
    first, last = share(x.size // columns, part, parts)
    rows = rows_of_chunk(columns)
    for top in range(first, last, rows):
        bottom = min(top + rows, last)
        for i in range(top, bottom):
            given, made = x[i * columns : (i + 1) * columns], y[i * columns : (i + 1) * columns]
            # In halves, because the difference itself may overflow; see `xpnn.ops.softmax`.
            largest = real(0.5) * largest_or_nan(given)
            for j in range(made.size):
                difference = real(0.5) * given[j] - largest
                made[j] = real(-5000.0) if difference < real(-5000.0) else difference
        chunk = y[top * columns : bottom * columns]
        for i in range(chunk.size):
            chunk[i] = exp(real(2.0) * chunk[i])
        for i in range(top, bottom):
            made = y[i * columns : (i + 1) * columns]
            factor = real(1.0 / sum_of_row(made))
            for j in range(made.size):
                made[j] *= factor


@kernel("T:1 T:1 int T:1", parallel=True)
def softmax_gradient(part, parts, y, dy, columns, dx):
    """dx = y (dy - the sum of dy y), row by row."""
    first, last = share(y.size // columns, part, parts)
    for i in range(first, last):
        start, end = i * columns, (i + 1) * columns
        value, given, made = y[start:end], dy[start:end], dx[start:end]
        for j in range(made.size):
            made[j] = given[j] * value[j]
        total = y.dtype.type(sum_of_row(made))
        for j in range(made.size):
            made[j] = value[j] * (given[j] - total)


@kernel("T:1 int T:1 T:1", parallel=True)
def log_softmax(part, parts, x, columns, y, p):
    """y = x - max x - log(sum of exp(x - max x)), row by row; p = exp(y), for the derivative."""
    real = x.dtype.type
    first, last = share(x.size // columns, part, parts)
    rows = rows_of_chunk(columns)
    for top in range(first, last, rows):
        bottom = min(top + rows, last)
        for i in range(top, bottom):
            given, made = x[i * columns : (i + 1) * columns], y[i * columns : (i + 1) * columns]
            largest = largest_or_nan(given)
            for j in range(made.size):
                made[j] = given[j] - largest
        chunk, powers = y[top * columns : bottom * columns], p[top * columns : bottom * columns]
        for i in range(chunk.size):
            powers[i] = exp(chunk[i])
        for i in range(top, bottom):
            made, powers = y[i * columns : (i + 1) * columns], p[i * columns : (i + 1) * columns]
            total = sum_of_row(powers)
            logarithm, factor = real(log(total)), real(1.0 / total)
            for j in range(made.size):
                made[j] -= logarithm
                powers[j] *= factor


@kernel("T:1 T:1 int T:1", parallel=True)
def log_softmax_gradient(part, parts, p, dy, columns, dx):
    """dx = dy - p (the sum of dy), row by row."""
    first, last = share(p.size // columns, part, parts)
    for i in range(first, last):
        start, end = i * columns, (i + 1) * columns
        probability, given, made = p[start:end], dy[start:end], dx[start:end]
        total = p.dtype.type(sum_of_row(given))
        for j in range(made.size):
            made[j] = given[j] - probability[j] * total
