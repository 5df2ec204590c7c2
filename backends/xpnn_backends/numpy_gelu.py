"""GELU and its slope on plain NumPy, with as few passes over the numbers as possible, all in place in the cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnn.ops.erf import TAIL_FLOAT32, TAIL_FLOAT64

_CHUNK = 1 << 15
"""Numbers that are worked on together: a few arrays of so many fit into the second-level cache."""
_FARTHEST = 40.0
"""Beyond, the density is 0."""
_UPPER_HALF = {4: (np.int32, -1 << 12), 8: (np.int64, -1 << 27)}
"""Bytes of a float -> (the integers with as many, the bits of the first half of its digits)."""


def gelu_and_slope(x: Any, setting: Any, y: Any, slope: Any) -> None:
    """y = x Phi(x) and slope = Phi(x) + x phi(x), as `xpnn.ops.gelu` computes them; y may be x."""
    numbers, values, slopes = x.reshape(-1), y.reshape(-1), slope.reshape(-1)
    rooms = np.empty((7, min(_CHUNK, numbers.size)), x.dtype)
    rooms[-1] = _FARTHEST  # as an array: NumPy's `minimum` takes four times as long with a number
    for start in range(0, numbers.size, _CHUNK):
        given = numbers[start : start + _CHUNK]
        gate, bell = _normal(given, rooms[:, : given.size])
        np.multiply(bell, 1.0 / math.sqrt(2.0 * math.pi), out=bell)
        np.multiply(given, bell, out=bell)
        np.add(gate, bell, out=slopes[start : start + _CHUNK])
        np.multiply(given, gate, out=values[start : start + _CHUNK])


def _normal(x: Any, rooms: Any) -> tuple[Any, Any]:
    """(Phi(x), exp(-x^2 / 2)); the formula of `xpnn.ops.normal_cdf`."""
    distance, bell, rest, t, tail, gate, farthest = rooms
    np.abs(x, out=distance)
    np.minimum(distance, farthest, out=distance)
    # Half of the digits have an exact square z^2, and a^2 - z^2 = (a - z)(a + z) is small.
    integer, upper_half = _UPPER_HALF[x.itemsize]
    np.bitwise_and(distance.view(integer), upper_half, out=bell.view(integer))
    np.subtract(distance, bell, out=rest)
    np.add(distance, bell, out=t)
    np.multiply(rest, t, out=rest)
    np.multiply(rest, -0.5, out=rest)
    np.exp(rest, out=rest)
    np.square(bell, out=bell)
    np.multiply(bell, -0.5, out=bell)
    np.exp(bell, out=bell)
    np.multiply(bell, rest, out=bell)
    # The scaled complementary error function of distance / sqrt(2).
    np.add(distance, 4.0 * math.sqrt(2.0), out=t)
    np.divide(8.0 * math.sqrt(2.0), t, out=t)
    np.subtract(1.0, t, out=t)
    *coefficients, last = TAIL_FLOAT32 if x.itemsize == 4 else TAIL_FLOAT64
    np.multiply(t, last, out=tail)
    for coefficient in coefficients[:0:-1]:
        np.add(tail, coefficient, out=tail)
        np.multiply(tail, t, out=tail)
    np.add(tail, coefficients[0], out=tail)
    np.multiply(distance, math.sqrt(8.0), out=distance)
    np.add(distance, 2.0, out=distance)
    np.divide(bell, distance, out=distance)
    np.multiply(tail, distance, out=tail)
    # 1 - tail for positive numbers; with |0 - tail| for the others, it needs no choice, which is slow.
    np.copyto(gate, x > 0)
    np.subtract(gate, tail, out=gate)
    np.abs(gate, out=gate)
    return gate, bell
