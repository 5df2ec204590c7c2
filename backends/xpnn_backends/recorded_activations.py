"""Bodies of the activations and of dropout for recorded arrays: one kernel forward, one backward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnn.random import RandomKey, mask_threshold
from xpnn_backends import kernels_activations as kernels
from xpnn_backends.recorded_bodies import _body, _is_number
from xpnn_backends.recording import Kernel, RecordedArray, Recorder, constant


def _fits(x: Any) -> bool:
    return isinstance(x, RecordedArray) and x.dtype.kind == "f"


def _derivative(recorder: Recorder, kernel: Kernel, kept: RecordedArray) -> Any:
    """vjp(dy) -> (dx,) by a kernel(kept, dy, dx, dbias) for matrices: all numbers are one row of it."""

    def vjp(dy: Any) -> Any:
        row = (1, kept.size)
        dx = recorder.empty(kept.shape, kept.dtype)
        none = constant(np.zeros(0, kept.dtype))
        recorder.call(kernel, kept.reshape(row), recorder.contiguous(dy).reshape(row), dx.reshape(row), none)
        return (dx,)

    return vjp


def _with_slope(recorder: Recorder, name: str, x: Any, setting: Any = 0.0) -> Any:
    """Value and derivative in one pass."""
    if not _fits(x) or not _is_number(setting):
        return None
    y, slope = recorder.empty(x.shape, x.dtype), recorder.empty(x.shape, x.dtype)
    recorder.call(kernels.WITH_SLOPE[name], recorder.contiguous(x), setting, y, slope)
    stepped = name in ("hard_sigmoid", "hard_swish")
    return y, _derivative(recorder, kernels.STEPPED_GRADIENT if stepped else kernels.SLOPE_GRADIENT, slope)


def _register(name: str) -> None:
    """The body of an activation without options, or with a number as its only one."""

    def body(recorder: Recorder, x: Any, *settings: Any, **options: Any) -> Any:
        return _with_slope(recorder, name, x, *settings, *options.values(), *default[len(settings) + len(options) :])

    default = (kernels.SETTINGS.get(name, 0.0),)
    body.__name__ = name
    _body(body)


for _name in kernels.WITH_SLOPE:
    if _name != "gelu":
        _register(_name)


@_body
def gelu(recorder: Recorder, x: Any, approximate: str = "none") -> Any:
    """The generic body leaves the form with tanh to the op `gelu_tanh`."""
    return _with_slope(recorder, "gelu", x) if approximate == "none" else None


def _by_value(recorder: Recorder, name: str, x: Any) -> Any:
    """The derivative is found from the value."""
    if not _fits(x):
        return None
    y = recorder.empty(x.shape, x.dtype)
    recorder.call(kernels.BY_VALUE[name], recorder.contiguous(x), y)
    return y, _derivative(recorder, kernels.VALUE_GRADIENT[name], y)


@_body
def relu(recorder: Recorder, x: Any) -> Any:
    """max(x, 0)."""
    return _by_value(recorder, "relu", x)


@_body
def tanh(recorder: Recorder, x: Any) -> Any:
    """tanh(x)."""
    return _by_value(recorder, "tanh", x)


@_body
def prelu(recorder: Recorder, x: Any, slope: Any) -> Any:
    """Backward, dx and the sums for the slopes in one pass."""
    if not _fits(x) or not _fits(slope) or x.dtype != slope.dtype:
        return None
    if x.ndim < 1 or slope.shape not in ((1,), (x.shape[-1],)):
        return None  # the generic body says what is wrong
    features = x.shape[-1]
    shape = (math.prod(x.shape[:-1]), features)
    rows, slope = recorder.contiguous(x).reshape(shape), recorder.contiguous(slope)
    y = recorder.empty(x.shape, x.dtype)
    recorder.call(kernels.PRELU, rows, slope, y.reshape(shape))

    def vjp(dy: Any) -> Any:
        dx, sums = recorder.empty(x.shape, x.dtype), recorder.empty((features,), x.dtype)
        dy_rows = recorder.contiguous(dy).reshape(shape)
        recorder.call(kernels.PRELU_GRADIENT, rows, slope, dy_rows, dx.reshape(shape), sums)
        if slope.shape[0] != features:
            sums = sums.__array_namespace__().sum(sums, axis=0, keepdims=True)
        return dx, sums

    return y, vjp


@_body
def softmax(recorder: Recorder, x: Any, axis: int = -1) -> Any:
    """Along the last axis."""
    if not _is_last(x, axis):
        return None
    columns = x.shape[-1]
    y = recorder.empty(x.shape, x.dtype)
    recorder.call(kernels.SOFTMAX, recorder.contiguous(x), columns, y)

    def vjp(dy: Any) -> Any:
        dx = recorder.empty(x.shape, x.dtype)
        recorder.call(kernels.SOFTMAX_GRADIENT, y, recorder.contiguous(dy), columns, dx)
        return (dx,)

    return y, vjp


@_body
def log_softmax(recorder: Recorder, x: Any, axis: int = -1) -> Any:
    """Along the last axis; the probabilities are kept for the backward pass."""
    if not _is_last(x, axis):
        return None
    columns = x.shape[-1]
    y, p = recorder.empty(x.shape, x.dtype), recorder.empty(x.shape, x.dtype)
    recorder.call(kernels.LOG_SOFTMAX, recorder.contiguous(x), columns, y, p)

    def vjp(dy: Any) -> Any:
        dx = recorder.empty(x.shape, x.dtype)
        recorder.call(kernels.LOG_SOFTMAX_GRADIENT, p, recorder.contiguous(dy), columns, dx)
        return (dx,)

    return y, vjp


def _is_last(x: Any, axis: int) -> bool:
    return _fits(x) and x.ndim >= 1 and axis in (-1, x.ndim - 1) and x.size > 0


@_body
def random_mask(recorder: Recorder, x: Any, key: RandomKey, rate: float) -> Any:
    """The mask is made anew in each step, from the number of the step."""
    mask = recorder.empty(x.shape, np.dtype(np.bool_))
    recorder.call(kernels.KEEP_MASK, key.seed, key.stream, key.step, mask_threshold(rate), mask)
    return mask, lambda dy: (None,)


@_body
def dropout(recorder: Recorder, x: Any, key: RandomKey, rate: float) -> Any:
    """Mask and product in one pass."""
    if not _fits(x):
        return None
    threshold = mask_threshold(rate)
    scale = 65536.0 / (65536 - threshold)
    mask, y = recorder.empty(x.shape, np.dtype(np.bool_)), recorder.empty(x.shape, x.dtype)
    x = recorder.contiguous(x)
    recorder.call(kernels.DROPOUT, key.seed, key.stream, key.step, threshold, scale, x, mask, y)

    def vjp(dy: Any) -> Any:
        dx = recorder.empty(x.shape, x.dtype)
        recorder.call(kernels.MASKED, recorder.contiguous(dy), mask, scale, dx)
        return (dx,)

    return y, vjp
