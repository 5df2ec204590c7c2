"""Logarithms of probabilities that stay finite at 0 and 1, with their derivatives.

Below a floor f the logarithm is continued by its tangent, log f + (p - f) / f. Value and derivative then are
continuous and finite, and the derivative still points the right way at 0, where a clamp would make it 0.
"""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array


def bounded_log(xp: Any, p: Array) -> tuple[Array, Array]:
    """log p and its derivative, exact from the floor up.

    The floor is 64 times the smallest normal number: 2^-120 (about 8e-37) in float32, 2^-1016 in float64. At p = 0
    the value is log f - 1, about -84 in float32 and -705 in float64, and the derivative is 1 / f. The factor 64
    leaves room to multiply 1 / f by a weight. A power of two makes the tangent's term exactly 0 above the floor.
    """
    floor = float(xp.finfo(p.dtype).smallest_normal) * 64.0
    inside = xp.maximum(p, floor)
    return xp.log(inside) + (xp.minimum(p, floor) * (1.0 / floor) - 1.0), 1.0 / inside


def bounded_log_complement(xp: Any, p: Array) -> tuple[Array, Array]:
    """log(1 - p) and its derivative with respect to p, exact up to the largest number below 1.

    Between that number and 1 no probability can be written down, so the floor of 1 - p is that distance: 2^-24 (about
    6e-8) in float32, 2^-53 in float64. At p = 1 the value is about -17.6 in float32 and -37.7 in float64.
    """
    floor = float(xp.finfo(p.dtype).eps) / 2.0
    ceiling = 1.0 - floor
    inside = xp.minimum(p, ceiling)
    beyond = (xp.maximum(p, ceiling) - ceiling) * (1.0 / floor)
    return xp.log1p(-inside) - beyond, -1.0 / (1.0 - inside)
