"""Numbers moved to mean 0 and variance 1 over some axes: what all the normalisations have in common.

Statistics are taken in two passes: first the mean, then the mean square of what lies around it. The difference
E[x^2] - E[x]^2 would lose all its digits where the mean is large beside the deviation (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", The American Statistician, 1983).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xpnn.dispatch import Array, namespace
from xpnn.errors import ShapeError
from xpnn.ops.sweep import sum_along

_LARGE = 1e12
"""Where a group holds a number above this, it is divided by its largest one first: no square and no sum overflows."""


class Standardized(NamedTuple):
    """x with its mean taken away and divided by its deviation. The last three have length 1 along the axes.

    Attributes:
        values: (x - mean) / deviation.
        deviation: sqrt(variance + epsilon).
        mean: the mean of x; None if it was not taken away.
        variance: the mean of (x - mean)^2; infinite where it is too large for the dtype.
    """

    values: Array
    deviation: Array
    mean: Any
    variance: Array


def standardize(x: Array, axes: tuple[int, ...], epsilon: float, centre: bool = True) -> Standardized:
    """x standardized over `axes`, in float32 or float64.

    Args:
        x: any shape; groups without a number give nothing.
        axes: the axes that a group of numbers lies along.
        epsilon: what is added to the variance; positive.
        centre: False leaves the mean in x: the "variance" is then the mean square.
    """
    xp = namespace(x)
    if 0 in x.shape:
        nothing = xp.sum(x, axis=axes, keepdims=True)
        return Standardized(x, nothing + 1.0, nothing if centre else None, nothing)
    largest = xp.max(xp.abs(x), axis=axes, keepdims=True)
    scale = xp.where(xp.logical_and(largest > _LARGE, xp.isfinite(largest)), largest, 1.0)
    values = x / scale
    mean = None
    if centre:
        mean = _mean(values, axes)
        values = values - mean
        mean = mean * scale
    variance = _mean(values * values, axes)
    # In units of the scale epsilon may be too small for the dtype; a positive number keeps 0 / 0 away.
    smallest = float(xp.finfo(x.dtype).smallest_normal)
    deviation = xp.sqrt(variance + xp.maximum(epsilon / scale / scale, smallest))
    return Standardized(values / deviation, deviation * scale, mean, variance * scale * scale)


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean over some of the axes, which stay with length 1.

    Of neighbours in memory (the last axis), libraries add in pairs. Along other axes they may add one after the other,
    and with 1e5 places lose digits that a small deviation around a large mean needs: there, sums are taken in blocks.
    """
    xp = namespace(x)
    count = math.prod(x.shape[axis] for axis in axes)
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    total = x
    for axis in sorted(axes, reverse=True):
        total = xp.sum(total, axis=axis) if axis == total.ndim - 1 else sum_along(total, axis)
    return xp.reshape(total, shape) / count


def standardize_gradient(dvalues: Array, standardized: Standardized, axes: tuple[int, ...]) -> Array:
    """The gradient with respect to x, from the one with respect to `standardized.values`.

    With z the values, s the deviation, g = dvalues and <.> the mean over the axes: dx = (g - <g> - z <g z>) / s,
    without <g> where no mean was taken away. (z changes with x directly, through the mean and through the deviation:
    dz_i / dx_j = (delta_ij - 1/n - z_i z_j / n) / s.)
    """
    xp = namespace(dvalues)
    if 0 in dvalues.shape:
        return dvalues
    values = standardized.values
    dx = dvalues - values * xp.mean(dvalues * values, axis=axes, keepdims=True)
    if standardized.mean is not None:
        dx = dx - xp.mean(dvalues, axis=axes, keepdims=True)
    return dx / standardized.deviation


def widened(x: Array) -> Array:
    """x itself if it is float32 or float64; float16 and bfloat16 as float32, to compute in."""
    xp = namespace(x)
    if x.dtype == xp.float32 or x.dtype == xp.float64:
        return x
    return xp.astype(x, xp.float32)


def narrowed(x: Array, like: Array) -> Array:
    """x in the dtype of `like`."""
    return x if x.dtype == like.dtype else namespace(x).astype(x, like.dtype)


def scale_and_shift(values: Array, weight: Array | None, bias: Array | None) -> Array:
    """weight * values + bias, without what is None."""
    if weight is not None:
        values = values * widened(weight)
    return values if bias is None else values + widened(bias)


def check_vectors(op: str, wanted: tuple[int, ...], **vectors: Array | None) -> None:
    """Raise ShapeError unless each array that is given has the shape `wanted`."""
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != wanted:
            raise ShapeError(f"{op}: {name} has shape {tuple(vector.shape)}; for this x it must have {wanted}")


def sum_like(x: Array, vector: Array | None, axes: tuple[int, ...]) -> Any:
    """The gradient of a vector that was broadcast along `axes`, in its dtype; None if there is no vector."""
    if vector is None:
        return None
    return narrowed(namespace(x).sum(x, axis=axes) if axes else x, vector)
