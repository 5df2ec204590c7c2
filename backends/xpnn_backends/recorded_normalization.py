"""Bodies of normalisation for recorded arrays. See `recorded_bodies`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnn_backends import kernels_normalization as kernels
from xpnn_backends.recorded_bodies import _body
from xpnn_backends.recording import RecordedArray, Recorder, constant

_REALS = (np.float32, np.float64)


def _given(recorder: Recorder, vector: Any, dtype: Any) -> Any:
    """A vector in C order; an empty one in place of None."""
    return constant(np.zeros(0, dtype)) if vector is None else recorder.contiguous(vector)


def _result(recorder: Recorder, vector: Any, dtype: Any) -> Any:
    """Where the gradient of a vector goes."""
    return constant(np.zeros(0, dtype)) if vector is None else recorder.empty(vector.shape, dtype)


def _fits(x: Any, *vectors: Any) -> bool:
    """True for floats of one dtype."""
    return x.dtype in _REALS and all(vector is None or vector.dtype == x.dtype for vector in vectors)


@_body
def batch_norm(
    recorder: Recorder,
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    epsilon: float = 1e-5,
    activation: str | None = None,
) -> Any:
    """Statistics in one pass over x, values in another; backward, sums in one pass and dx in another.

    The backward pass finds what relu let through from x: its output need not be kept.
    """
    channels = x.shape[-1] if x.ndim else 0
    vectors = (weight, bias)
    if activation not in kernels.NORMALIZE or not channels or not _fits(x, *vectors):
        return None
    if any(vector is not None and tuple(vector.shape) != (channels,) for vector in vectors):
        return None
    dtype, rows = x.dtype, x.size // channels
    given = recorder.contiguous(x)
    line = kernels.line_length(rows, channels)
    blocks = kernels.block_count(x.size, line)
    partial = recorder.empty((blocks * 2 * line,), np.float64)
    recorder.call(kernels.MOMENTS, given, line, partial)
    mean, variance = recorder.empty((channels,), dtype), recorder.empty((channels,), dtype)
    table = recorder.empty((3 * line,), dtype)
    sums = recorder.empty((2 * line,), np.float64)
    settings = (line, channels, rows, epsilon)
    recorder.call(
        kernels.STATISTICS,
        partial,
        *settings,
        _given(recorder, weight, dtype),
        _given(recorder, bias, dtype),
        sums,
        mean,
        variance,
        table,
    )
    y = recorder.empty(x.shape, dtype)
    recorder.call(kernels.NORMALIZE[activation], given, line, table, y)

    def vjp(cotangents: Any) -> Any:
        dy, dmean, dvariance = cotangents
        dy = recorder.contiguous(dy)
        shares = recorder.empty((blocks * 2 * line,), np.float64)
        recorder.call(kernels.GRADIENT_SUMS[activation], given, dy, line, table, shares)
        dweight, dbias = _result(recorder, weight, dtype), _result(recorder, bias, dtype)
        factors = recorder.empty((2 * line,), dtype)
        room = recorder.empty((2 * line,), np.float64)
        recorder.call(kernels.GRADIENT_TOTALS, shares, *settings, variance, room, dweight, dbias, factors)
        dx: Any = recorder.empty(x.shape, dtype)
        recorder.call(kernels.GRADIENT[activation], given, dy, line, table, factors, dx)
        if dmean is not None:
            dx = dx + dmean / max(rows, 1)
        if dvariance is not None:
            dx = dx + (x - mean) * (dvariance * (2.0 / max(rows, 1)))
        return dx, None if weight is None else dweight, None if bias is None else dbias

    return (y, mean, variance), vjp


def _row_norm(recorder: Recorder, x: Any, weight: Any, bias: Any, axes: int, epsilon: float, centre: bool) -> Any:
    """(y, vjp) for layer_norm or, without `centre`, rms_norm; None where they are not for it."""
    if not 1 <= axes <= x.ndim or not _fits(x, weight, bias):
        return None
    shape = tuple(x.shape[-axes:])
    if any(vector is not None and tuple(vector.shape) != shape for vector in (weight, bias)):
        return None
    columns = math.prod(shape)
    if not columns:
        return None
    dtype, rows = x.dtype, x.size // columns
    given, scale = recorder.contiguous(x), _given(recorder, weight, dtype)
    y, kept = recorder.empty(x.shape, dtype), recorder.empty((2 * rows,), np.float64)
    shift = _given(recorder, bias, dtype)
    recorder.call(kernels.ROW_NORM, given, columns, int(centre), epsilon, scale, shift, y, kept)

    def vjp(dy: Any) -> tuple[RecordedArray, Any, Any]:
        dx = recorder.empty(x.shape, dtype)
        partial = recorder.empty((kernels.row_blocks(rows) * 2 * columns,), dtype)
        recorder.call(
            kernels.ROW_NORM_GRADIENT,
            given,
            recorder.contiguous(dy),
            columns,
            int(centre),
            scale,
            kept,
            dx,
            partial,
        )
        dweight, dbias = _result(recorder, weight, dtype), _result(recorder, bias, dtype)
        if weight is not None or bias is not None:
            recorder.call(kernels.ROW_NORM_TOTALS, partial, columns, dweight, dbias)
        return dx, None if weight is None else dweight, None if bias is None else dbias

    return y, vjp


@_body
def layer_norm(
    recorder: Recorder, x: Any, weight: Any = None, bias: Any = None, *, axes: int = 1, epsilon: float = 1e-5
) -> Any:
    """One kernel forward; backward, one for dx and shares of the rest, one for their sums."""
    return _row_norm(recorder, x, weight, bias, axes, epsilon, True)


@_body
def rms_norm(recorder: Recorder, x: Any, weight: Any = None, *, axes: int = 1, epsilon: float = 1e-5) -> Any:
    """As layer_norm."""
    found = _row_norm(recorder, x, weight, None, axes, epsilon, False)
    if found is None:
        return None
    y, vjp = found
    return y, lambda dy: vjp(dy)[:2]
