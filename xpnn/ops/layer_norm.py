"""Normalisation of each sample by itself, over its last axes: layer norm and RMS norm."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, op
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
def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, axes: int = 1, epsilon: float = 1e-5
) -> tuple[Array, Vjp]:
    """y = weight z + bias with z = (x - mean) / sqrt(variance + epsilon), statistics over the last `axes` axes.

    Derivatives, with s = sqrt(variance + epsilon), g = weight dy and <.> the mean over the last axes:
    dx = (g - <g> - z <g z>) / s; dweight = sum of dy z and dbias = sum of dy over the other axes.
    Source: Ba, Kiros and Hinton, "Layer normalization", 2016.

    The variance is the biased one. Over one number it is 0: y = bias, and dx = 0. Half-precision x is computed in
    float32; y is then in x's dtype. No finite x overflows on the way.

    Args:
        x: any shape with at least `axes` axes.
        weight: of the shape of the last `axes` axes of x, or None for 1.
        bias: the same shape, or None for 0.
        axes: how many axes, counted from the last, are normalised together.
        epsilon: what is added to the variance; positive.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dweight, dbias).

    Raises:
        ShapeError: x has too few axes, or weight or bias do not fit.
    """
    over, others = _split_axes("layer_norm", x, axes)
    check_vectors("layer_norm", tuple(x.shape[-axes:]), weight=weight, bias=bias)
    standardized = standardize(widened(x), over, epsilon)
    y = scale_and_shift(standardized.values, weight, bias)

    def vjp(dy: Array) -> tuple[Any, ...]:
        dy = widened(dy)
        dx = standardize_gradient(scale_and_shift(dy, weight, None), standardized, over)
        dweight = None if weight is None else sum_like(dy * standardized.values, weight, others)
        return narrowed(dx, x), dweight, sum_like(dy, bias, others)

    return narrowed(y, x), vjp


@op
def rms_norm(x: Array, weight: Array | None = None, *, axes: int = 1, epsilon: float = 1e-5) -> tuple[Array, Vjp]:
    """y = weight z with z = x / sqrt(mean of x^2 + epsilon), the mean over the last `axes` axes.

    Derivatives, with s = sqrt(mean of x^2 + epsilon), g = weight dy and <.> the mean over the last axes:
    dx = (g - z <g z>) / s; dweight = sum of dy z over the other axes.
    Source: Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Half-precision x is computed in float32; y is then in x's dtype. No finite x overflows on the way.

    Args:
        x: any shape with at least `axes` axes.
        weight: of the shape of the last `axes` axes of x, or None for 1.
        axes: how many axes, counted from the last, are normalised together.
        epsilon: what is added to the mean square; positive.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dweight).

    Raises:
        ShapeError: x has too few axes, or the weight does not fit.
    """
    over, others = _split_axes("rms_norm", x, axes)
    check_vectors("rms_norm", tuple(x.shape[-axes:]), weight=weight)
    standardized = standardize(widened(x), over, epsilon, centre=False)
    y = scale_and_shift(standardized.values, weight, None)

    def vjp(dy: Array) -> tuple[Any, ...]:
        dy = widened(dy)
        dx = standardize_gradient(scale_and_shift(dy, weight, None), standardized, over)
        return narrowed(dx, x), None if weight is None else sum_like(dy * standardized.values, weight, others)

    return narrowed(y, x), vjp


def _split_axes(op_name: str, x: Array, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the last `axes` axes of x, the others)."""
    if not 1 <= axes <= x.ndim:
        raise ShapeError(f"{op_name}: axes={axes}, and x of shape {tuple(x.shape)} has {x.ndim}; give 1 to {x.ndim}")
    return tuple(range(x.ndim - axes, x.ndim)), tuple(range(x.ndim - axes))
