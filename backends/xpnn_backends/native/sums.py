"""Sums in float64, the same for any number of threads: each thread adds up whole blocks, one adds up the blocks.

Within a block, eight sums stand side by side, so that a compiler can make vectors of them in a fixed order.
"""

import numpy as np
from numba.extending import register_jitable


@register_jitable
def sum_of(x, first, last):
    """The sum of x[first:last]."""
    x = x[first:last]  # loops that count from 0 become vector code
    a = b = c = d = e = f = g = h = 0.0
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        a += np.float64(x[i])
        b += np.float64(x[i + 1])
        c += np.float64(x[i + 2])
        d += np.float64(x[i + 3])
        e += np.float64(x[i + 4])
        f += np.float64(x[i + 5])
        g += np.float64(x[i + 6])
        h += np.float64(x[i + 7])
    for i in range(whole, x.size):
        a += np.float64(x[i])
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@register_jitable
def sum_of_products(x, y):
    """The sum of the products of two arrays' elements."""
    a = b = c = d = e = f = g = h = 0.0
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        a += np.float64(x[i]) * np.float64(y[i])
        b += np.float64(x[i + 1]) * np.float64(y[i + 1])
        c += np.float64(x[i + 2]) * np.float64(y[i + 2])
        d += np.float64(x[i + 3]) * np.float64(y[i + 3])
        e += np.float64(x[i + 4]) * np.float64(y[i + 4])
        f += np.float64(x[i + 5]) * np.float64(y[i + 5])
        g += np.float64(x[i + 6]) * np.float64(y[i + 6])
        h += np.float64(x[i + 7]) * np.float64(y[i + 7])
    for i in range(whole, x.size):
        a += np.float64(x[i]) * np.float64(y[i])
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@register_jitable
def largest_of(x, first, last):
    """The largest of x[first:last], one element at least; a NaN may be passed over."""
    x = x[first:last]
    a = b = c = d = e = f = g = h = x[0]
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        a = x[i] if x[i] > a else a
        b = x[i + 1] if x[i + 1] > b else b
        c = x[i + 2] if x[i + 2] > c else c
        d = x[i + 3] if x[i + 3] > d else d
        e = x[i + 4] if x[i + 4] > e else e
        f = x[i + 5] if x[i + 5] > f else f
        g = x[i + 6] if x[i + 6] > g else g
        h = x[i + 7] if x[i + 7] > h else h
    for i in range(whole, x.size):
        a = x[i] if x[i] > a else a
    a = b if b > a else a
    c = d if d > c else c
    e = f if f > e else e
    g = h if h > g else g
    a = c if c > a else a
    e = g if g > e else e
    return e if e > a else a


@register_jitable
def long_sum_of(x):
    """The sum of all elements, by sums of 1024 at a time: the rounding errors of a long sum grow with its length."""
    total = 0.0
    for first in range(0, x.size, 1024):
        total += sum_of(x, first, min(first + 1024, x.size))
    return total
