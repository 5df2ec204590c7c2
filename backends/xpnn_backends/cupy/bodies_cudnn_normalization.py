"""Batch norm, layer norm and RMS norm of half-precision arrays through cuDNN.

cuDNN takes statistics in float32, without the care for means that are large beside the deviation, and for numbers
whose square overflows, that float32 arrays need and half-precision ones hardly do. So float32, float64 and all that
cuDNN has no plan for (numbers of channels that are no multiple of 8, in batch norm) go to the kernels of ours.
"""

from __future__ import annotations

import math
from typing import Any

import cupy

from xpnn.dispatch import OPS, Body
from xpnn.half_precision import handles_half
from xpnn.ops.standardization import check_vectors
from xpnn_backends.cupy import bodies_normalization
from xpnn_backends.cupy.cudnn_definitions import Normalization
from xpnn_backends.cupy.cudnn_graphs import plan, ready, why_not

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = []
"""None of its own."""

_DTYPES = ("float16", "bfloat16")


def _is_handled(x: Any) -> bool:
    return x.dtype.name in _DTYPES and x.size > 0 and x.ndim > 0 and why_not() is None


def _vector(vector: Any, columns: int, otherwise: float) -> Any:
    """A weight or bias as cuDNN wants it: float32, and there."""
    if vector is None:
        return cupy.full(columns, otherwise, dtype=cupy.float32)
    return ready(vector.reshape(columns).astype(cupy.float32, copy=False))


def _like(gradient: Any, vector: Any) -> Any:
    """A gradient in the dtype and shape of its weight or bias; None if there is none."""
    return None if vector is None else gradient.astype(vector.dtype, copy=False).reshape(vector.shape)


@handles_half
def batch_norm(
    x: Any, weight: Any = None, bias: Any = None, *, epsilon: float = 1e-5, activation: str | None = None
) -> Any:
    """cuDNN's batch norm; the activation is an op behind it, since cuDNN's ReLU would turn NaN into 0."""

    def without_cudnn() -> Any:
        return bodies_normalization.batch_norm(x, weight, bias, epsilon=epsilon, activation=activation)

    # cuDNN's new variance is that of a sample, divided by n - 1.
    if not _is_handled(x) or x.size == x.shape[-1]:
        return without_cudnn()
    channels = x.shape[-1]
    check_vectors("batch_norm", (channels,), weight=weight, bias=bias)
    rows = x.size // channels
    forward = plan(Normalization("batch_norm", x.dtype.name, rows, channels))
    if forward is None:
        return without_cudnn()
    x_read = ready(x)
    scale = _vector(weight, channels, 1.0)
    # Of the running statistics, all is replaced (momentum 1): what cuDNN returns are then the batch's own.
    old = cupy.zeros(channels, dtype=cupy.float32)
    y = cupy.empty(x.shape, dtype=x.dtype)
    mean, inverse, new_mean, variance = (cupy.empty(channels, dtype=cupy.float32) for _ in range(4))
    forward.run(
        x_read, scale, _vector(bias, channels, 0.0), old, old, float(epsilon), 1.0, y, mean, inverse, new_mean, variance
    )
    variance *= (rows - 1) / rows
    activation_vjp = None
    if activation is not None:
        y, activation_vjp = OPS[activation](y)

    def vjp(cotangents: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        dy, dmean, dvariance = cotangents
        backward = plan(Normalization("batch_norm_backward", x.dtype.name, rows, channels))
        if backward is None:
            gradients: tuple[Any, ...] = without_cudnn()[1](cotangents)
            return gradients
        dy = dy.astype(x.dtype, copy=False)
        if activation_vjp is not None:
            (dy,) = activation_vjp(dy)
        dx = cupy.empty(x.shape, dtype=x.dtype)
        dscale, dshift = (cupy.empty(channels, dtype=cupy.float32) for _ in range(2))
        backward.run(ready(dy), x_read, scale, mean, inverse, dx, dscale, dshift)
        if dmean is not None or dvariance is not None:
            dx = _with_statistics(dx, x_read, mean, dmean, dvariance, rows)
        return dx, _like(dscale, weight), _like(dshift, bias)

    return (y, mean, variance), vjp


def _with_statistics(dx: Any, x: Any, mean: Any, dmean: Any, dvariance: Any, rows: int) -> Any:
    """dx with what the gradients of mean and variance add: dmean / n + 2 (x - mean) dvariance / n."""
    total = dx.astype(cupy.float32)
    if dmean is not None:
        total += dmean / rows
    if dvariance is not None:
        total += (x.astype(cupy.float32) - mean) * (dvariance * (2.0 / rows))
    return total.astype(dx.dtype)


@handles_half
def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, axes: int = 1, epsilon: float = 1e-5) -> Any:
    """cuDNN's layer norm, of the last axes as one."""

    def without_cudnn() -> Any:
        return bodies_normalization.layer_norm(x, weight, bias, axes=axes, epsilon=epsilon)

    if not _is_handled(x) or not 1 <= axes <= x.ndim:
        return without_cudnn()
    shape = x.shape[-axes:]
    check_vectors("layer_norm", shape, weight=weight, bias=bias)
    columns = math.prod(shape)
    rows = x.size // columns
    forward = plan(Normalization("layer_norm", x.dtype.name, rows, columns))
    if forward is None:
        return without_cudnn()
    x_read = ready(x)
    scale = _vector(weight, columns, 1.0)
    y = cupy.empty(x.shape, dtype=x.dtype)
    mean, inverse = (cupy.empty(rows, dtype=cupy.float32) for _ in range(2))
    forward.run(x_read, scale, _vector(bias, columns, 0.0), float(epsilon), y, mean, inverse)

    def vjp(dy: Any) -> tuple[Any, ...]:
        backward = plan(Normalization("layer_norm_backward", x.dtype.name, rows, columns))
        if backward is None:
            gradients: tuple[Any, ...] = without_cudnn()[1](dy)
            return gradients
        dx = cupy.empty(x.shape, dtype=x.dtype)
        dscale, dshift = (cupy.empty(columns, dtype=cupy.float32) for _ in range(2))
        backward.run(ready(dy.astype(x.dtype, copy=False)), x_read, scale, mean, inverse, dx, dscale, dshift)
        return dx, _like(dscale, weight), _like(dshift, bias)

    return y, vjp


@handles_half
def rms_norm(x: Any, weight: Any = None, *, axes: int = 1, epsilon: float = 1e-5) -> Any:
    """cuDNN's RMS norm, of the last axes as one."""

    def without_cudnn() -> Any:
        return bodies_normalization.rms_norm(x, weight, axes=axes, epsilon=epsilon)

    if not _is_handled(x) or not 1 <= axes <= x.ndim:
        return without_cudnn()
    shape = x.shape[-axes:]
    check_vectors("rms_norm", shape, weight=weight)
    columns = math.prod(shape)
    rows = x.size // columns
    forward = plan(Normalization("rms_norm", x.dtype.name, rows, columns))
    if forward is None:
        return without_cudnn()
    x_read = ready(x)
    scale = _vector(weight, columns, 1.0)
    y = cupy.empty(x.shape, dtype=x.dtype)
    inverse = cupy.empty(rows, dtype=cupy.float32)
    forward.run(x_read, scale, float(epsilon), y, inverse)

    def vjp(dy: Any) -> tuple[Any, ...]:
        backward = plan(Normalization("rms_norm_backward", x.dtype.name, rows, columns))
        if backward is None:
            gradients: tuple[Any, ...] = without_cudnn()[1](dy)
            return gradients
        dx = cupy.empty(x.shape, dtype=x.dtype)
        dscale = cupy.empty(columns, dtype=cupy.float32)
        backward.run(ready(dy.astype(x.dtype, copy=False)), x_read, scale, inverse, dx, dscale)
        return dx, _like(dscale, weight)

    return y, vjp


BODIES: dict[str, Body] = {"batch_norm": batch_norm, "layer_norm": layer_norm, "rms_norm": rms_norm}
"""Batch norm with given statistics is elementwise; cuDNN has no plan for it."""
