"""Bodies of ops for recorded arrays: they write down fused kernels where the generic body would write many calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpnn.dispatch import OPS, Body
from xpnn.ops.embedding import check_scatter, take_rows
from xpnn_backends import kernels, kernels_activations, primitives
from xpnn_backends.recording import RecordedArray, RecordedNumber, Recorder, constant

BODIES: dict[str, Body] = {}


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register function(recorder, *arguments, **options) as the body of the op of its name.

    It may return None for "not in this case": the generic body then writes itself down, call by call.
    """
    name = function.__name__

    @functools.wraps(function)
    def body(*arguments: Any, **options: Any) -> Any:
        recorder = next(
            (x.recorder for x in arguments if isinstance(x, RecordedArray) and x.recorder is not None), None
        )
        found = None if recorder is None else function(recorder, *arguments, **options)
        return OPS[name].generic(*arguments, **options) if found is None else found

    BODIES[name] = body
    return body


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, RecordedNumber))


@_body
def linear(
    recorder: Recorder,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    input_gradient: Any = True,
) -> Any:
    """One kernel forward; backward, one for the activation and the bias, and one for each product."""
    if activation not in kernels_activations.LINEAR_GRADIENT:
        return None
    if weight.ndim != 2 or x.ndim < 1 or x.dtype != weight.dtype:
        return None
    features, units = weight.shape
    rows = recorder.contiguous(recorder.reshape(x, (math.prod(x.shape[:-1]), features)))
    y = recorder.empty((rows.shape[0], units), x.dtype)
    offset = constant(np.zeros(0, x.dtype)) if bias is None else recorder.contiguous(bias)
    derivative = kernels_activations.LINEAR_GRADIENT[activation]
    kept = y
    if activation in kernels_activations.LINEAR_WITH_SLOPE:
        kept = recorder.empty(y.shape, x.dtype)
        kernel = kernels_activations.LINEAR_WITH_SLOPE[activation]
        recorder.call(kernel, rows, recorder.contiguous(weight), offset, y, kept)
    else:
        recorder.call(kernels_activations.LINEAR[activation], rows, recorder.contiguous(weight), offset, y)

    def vjp(dy: Any) -> Any:
        dz = recorder.contiguous(recorder.reshape(dy, y.shape))
        dbias = None if bias is None else recorder.empty((units,), x.dtype)
        if derivative is not None:
            given, dz = dz, recorder.empty(y.shape, x.dtype)
            summed = constant(np.zeros(0, x.dtype)) if dbias is None else dbias
            recorder.call(derivative, kept, given, dz, summed)
        elif dbias is not None:
            recorder.call(kernels_activations.BIAS_GRADIENT, dz, dbias)
        dx = None
        if input_gradient:
            dx = recorder.empty(rows.shape, x.dtype)
            recorder.call(kernels.PRODUCT, dz, weight.T, dx)
            dx = recorder.reshape(dx, x.shape)
        dweight = recorder.empty(weight.shape, x.dtype)
        recorder.call(kernels.PRODUCT, rows.T, dz, dweight)
        return dx, dweight, dbias

    return recorder.reshape(y, (*x.shape[:-1], units)), vjp


@_body
def pack(recorder: Recorder, *arrays: Any, starts: tuple[int, ...], size: int) -> Any:
    """The arrays are made in their places."""
    packed = recorder.kept((size,), arrays[0].dtype)
    for x, start in zip(arrays, starts, strict=True):
        recorder.put_inside(x, packed, start)

    def vjp(dy: Any) -> Any:
        return tuple(
            recorder.reshape(dy[start : start + x.size], x.shape) for x, start in zip(arrays, starts, strict=True)
        )

    return packed, vjp


@_body
def scatter_add(recorder: Recorder, values: Any, indices: Any, length: int) -> Any:
    """The rows are added one after the other, as `numpy.add.at` does."""
    check_scatter(values, indices)
    if values.dtype not in (np.float32, np.float64) or indices.dtype != np.int64:
        return None
    count = math.prod(indices.shape)
    total = recorder.empty((length, values.shape[-1]), values.dtype)
    rows = recorder.reshape(values, (count, values.shape[-1]))
    recorder.call(primitives.SCATTER_ADD, rows, recorder.reshape(indices, (count,)), total)

    def vjp(dy: Any) -> Any:
        return take_rows(dy, indices), None

    return total, vjp


# They use what is above, and register their own bodies.
from xpnn_backends import (  # noqa: E402
    recorded_activations,  # noqa: F401
    recorded_attention,  # noqa: F401
    recorded_convolution,  # noqa: F401
    recorded_losses,  # noqa: F401
    recorded_normalization,  # noqa: F401
    recorded_optimizers,  # noqa: F401
    recorded_pooling,  # noqa: F401
    recorded_recurrent,  # noqa: F401
)
