"""Normalisation of each sample by itself, group of channels by group of channels."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.standardization import (
    check_vectors,
    narrowed,
    scale_and_shift,
    standardize,
    standardize_gradient,
    sum_like,
    widened,
)


@op
def group_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, groups: int, epsilon: float = 1e-5
) -> tuple[Array, Vjp]:
    """y = weight z + bias with z = (x - mean) / sqrt(variance + epsilon), statistics of each group of each sample.

    A group is channels / groups neighbouring channels at all places of a sample. With groups = channels this is
    instance normalisation (Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016).

    Derivatives, with s = sqrt(variance + epsilon), g = weight dy and <.> the mean over a group of a sample:
    dx = (g - <g> - z <g z>) / s; dweight = sum of dy z and dbias = sum of dy over all axes but the last.
    Source: Wu and He, "Group normalization", ECCV 2018.

    The variance is the biased one. Over one number it is 0: y = bias, and dx = 0. Half-precision x is computed in
    float32; y is then in x's dtype. No finite x overflows on the way.

    Args:
        x: (batch, ..., channels).
        weight: (channels,), or None for 1.
        bias: (channels,), or None for 0.
        groups: how many groups; a divisor of the number of channels.
        epsilon: what is added to the variance; positive.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ShapeError: x has fewer than two axes, the groups do not divide the channels, or weight or bias do not fit.
    """
    if x.ndim < 2:
        raise ShapeError(f"group_norm: x has shape {tuple(x.shape)}; it must have (batch, ..., channels)")
    batch, channels = x.shape[0], x.shape[-1]
    if groups < 1 or channels % groups:
        raise ShapeError(
            f"group_norm: groups={groups} for {channels} channels; give a number of groups that divides them"
        )
    check_vectors("group_norm", (channels,), weight=weight, bias=bias)
    xp = namespace(x)
    shape = tuple(x.shape)
    grouped = (batch, math.prod(shape[1:-1]), groups, channels // groups)
    over, others = (1, 3), tuple(range(x.ndim - 1))
    standardized = standardize(xp.reshape(widened(x), grouped), over, epsilon)
    z = xp.reshape(standardized.values, shape)
    y = scale_and_shift(z, weight, bias)

    def vjp(dy: Array) -> tuple[Any, ...]:
        dy = widened(dy)
        dgrouped = xp.reshape(scale_and_shift(dy, weight, None), grouped)
        dx = xp.reshape(standardize_gradient(dgrouped, standardized, over), shape)
        dweight = None if weight is None else sum_like(dy * z, weight, others)
        return narrowed(dx, x), dweight, sum_like(dy, bias, others)

    return narrowed(y, x), vjp
