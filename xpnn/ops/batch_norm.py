"""Batch normalisation, with the statistics of the batch and with given ones."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import OPS, Array, Vjp, namespace, op
from xpnn.errors import ShapeError
from xpnn.half_precision import handles_half
from xpnn.ops.standardization import (
    check_vectors,
    narrowed,
    scale_and_shift,
    standardize,
    widened,
)


@op
@handles_half
def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
    activation: str | None = None,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """y = f(weight z + bias) with z = (x - mean) / sqrt(variance + epsilon), statistics of each channel over the rest.

    Derivatives, with s = sqrt(variance + epsilon), h = f' dy and sums over the n numbers of a channel:
    dbias = sum of h, dweight = sum of h z, dx = weight / s (h - dbias / n - z dweight / n). The gradients of mean and
    variance add dmean / n + 2 (x - mean) dvariance / n to dx, where x - mean = s z.
    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, section 3.

    One number a channel has the variance 0: y = f(bias), and dx = 0. No number at all gives the mean and variance 0.
    Half-precision x is computed in float32; y is then in x's dtype, mean and variance are float32. For large numbers y
    is right as long as they are finite; only the variance may be too large for the dtype and then is infinite.

    Args:
        x: (..., channels), such as (batch, channels) or (batch, height, width, channels).
        weight: (channels,), or None for 1.
        bias: (channels,), or None for 0.
        epsilon: what is added to the variance; positive.
        activation: a name in `xpnn.ops.linear.FUSABLE`, or None.

    Returns:
        (y, mean, variance), mean and variance of shape (channels,), the variance biased (divided by n); and
        vjp((dy, dmean, dvariance)) -> (dx, dweight, dbias), where dmean and dvariance may be None.

    Raises:
        ShapeError: x has no channels, or weight or bias have another number of them.
    """
    channels = _channels("batch_norm", x)
    check_vectors("batch_norm", channels, weight=weight, bias=bias)
    xp = namespace(x)
    axes = tuple(range(x.ndim - 1))
    standardized = standardize(widened(x), axes, epsilon)
    z = standardized.values
    y = scale_and_shift(z, weight, bias)
    if activation is not None:
        y, activation_vjp = OPS[activation](y)
    numbers = max(math.prod(x.shape[:-1]), 1)

    def vjp(cotangents: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        dy, dmean, dvariance = cotangents
        dy = widened(dy)
        if activation is not None:
            (dy,) = activation_vjp(dy)
        total = xp.sum(dy, axis=axes) if axes else dy
        along = xp.sum(dy * z, axis=axes) if axes else dy * z
        deviation = xp.reshape(standardized.deviation, channels)
        factor = 1.0 / deviation if weight is None else widened(weight) / deviation
        # In this order one number a channel gives exactly 0.
        dx = factor * (dy - total / numbers - z * (along / numbers))
        if dmean is not None:
            dx = dx + dmean / numbers
        if dvariance is not None:
            dx = dx + z * (deviation * dvariance * (2.0 / numbers))
        return (
            narrowed(dx, x),
            None if weight is None else narrowed(along, weight),
            None if bias is None else narrowed(total, bias),
        )

    mean = xp.reshape(standardized.mean, channels)
    variance = xp.reshape(standardized.variance, channels)
    return (narrowed(y, x), mean, variance), vjp


@op
def batch_norm_inference(
    x: Array,
    mean: Array,
    variance: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-5,
    activation: str | None = None,
) -> tuple[Array, Vjp]:
    """y = f(weight z + bias) with z = (x - mean) / sqrt(variance + epsilon) for a given mean and variance.

    Derivatives, with s = sqrt(variance + epsilon), h = f' dy and sums over all axes but the last: dx = h weight / s,
    dmean = -sum of dx, dvariance = -(sum of h z) weight / (2 s^2), dweight = sum of h z, dbias = sum of h.
    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 2.

    Half-precision x is computed in float32; y is then in x's dtype.

    Args:
        x: (..., channels).
        mean: (channels,).
        variance: (channels,); not negative.
        weight: (channels,), or None for 1.
        bias: (channels,), or None for 0.
        epsilon: what is added to the variance; positive.
        activation: a name in `xpnn.ops.linear.FUSABLE`, or None.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dmean, dvariance, dweight, dbias).

    Raises:
        ShapeError: x has no channels, or one of the others has another number of them.
    """
    channels = _channels("batch_norm_inference", x)
    check_vectors("batch_norm_inference", channels, mean=mean, variance=variance, weight=weight, bias=bias)
    xp = namespace(x)
    axes = tuple(range(x.ndim - 1))
    deviation = xp.sqrt(widened(variance) + epsilon)
    centred = widened(x) - widened(mean)
    factor = 1.0 / deviation if weight is None else widened(weight) / deviation
    y = scale_and_shift(centred * factor, None, bias)
    if activation is not None:
        y, activation_vjp = OPS[activation](y)

    def vjp(dy: Array) -> tuple[Any, ...]:
        dy = widened(dy)
        if activation is not None:
            (dy,) = activation_vjp(dy)
        total = xp.sum(dy, axis=axes) if axes else dy
        along = dy * centred
        along = (xp.sum(along, axis=axes) if axes else along) / deviation
        return (
            narrowed(dy * factor, x),
            narrowed(-(total * factor), mean),
            narrowed(along * factor / deviation * -0.5, variance),
            None if weight is None else narrowed(along, weight),
            None if bias is None else narrowed(total, bias),
        )

    return narrowed(y, x), vjp


def _channels(op_name: str, x: Array) -> tuple[int]:
    if x.ndim == 0:
        raise ShapeError(f"{op_name}: x is a single number; it must have an axis of channels, the last one")
    return (x.shape[-1],)
