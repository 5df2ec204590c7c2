"""Bodies of convolutions for recorded arrays; see `recorded_bodies`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpnn.dispatch import OPS
from xpnn.ops.convolution import check_arrays, transposed_output_size
from xpnn.ops.windows import output_size
from xpnn_backends import kernels_activations, kernels_convolution
from xpnn_backends.native.windows import Geometry
from xpnn_backends.recorded_bodies import _body
from xpnn_backends.recording import RecordedArray, Recorder, constant


def _three(values: Any, filler: int = 1) -> tuple[int, int, int]:
    """One entry for each of three axes: `filler` for those in front that are not there."""
    first, second, third = (filler,) * (3 - len(values)) + tuple(values)
    return first, second, third


def _fits(x: Any, weight: Any, bias: Any, activation: str | None) -> bool:
    """True if there are kernels for these."""
    arrays = [x, weight] if bias is None else [x, weight, bias]
    return (
        all(isinstance(array, RecordedArray) and array.dtype == x.dtype for array in arrays)
        and x.dtype in (np.float32, np.float64)
        and activation in kernels_activations.LINEAR_GRADIENT
        and len(x.shape) <= 5
        and min(x.size, weight.size) > 0
    )


def _with_activation(
    recorder: Recorder,
    name: str | None,
    shape: tuple[int, ...],
    dtype: Any,
    fill: Callable[[RecordedArray, bool], None],
) -> tuple[RecordedArray, RecordedArray]:
    """(f(z), what its derivative is found from) for z of that shape, which `fill(array, with ReLU or not)` makes."""
    z = recorder.empty(shape, dtype)
    fill(z, name == "relu")
    if name is None or name == "relu":
        return z, z
    y = recorder.empty(shape, dtype)
    if name in kernels_activations.LINEAR_WITH_SLOPE:
        slope = recorder.empty(shape, dtype)
        recorder.call(kernels_activations.WITH_SLOPE[name], z, 0.0, y, slope)
        return y, slope
    recorder.call(kernels_activations.BY_VALUE[name], z, y)
    return y, y


@_body
def conv(
    recorder: Recorder,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int = 1,
    activation: str | None = None,
    input_gradient: Any = True,
) -> Any:
    """A kernel that packs the weights, one for the convolution; as much for each gradient."""
    check_arrays("conv", x, weight, bias, groups)
    kernel = weight.shape[:-2]
    size = output_size(x.shape[1:-1], kernel, stride, padding, dilation)
    if not _fits(x, weight, bias, activation):
        return None
    inputs, outputs = x.shape[-1], weight.shape[-1]
    if math.prod(kernel) * groups == 1 and all(step == 1 for step in stride) and size == x.shape[1:-1]:
        return _pointwise(x, weight, bias, activation, input_gradient)
    before = _three([pair[0] for pair in padding], 0)
    geometry = Geometry(
        _three(x.shape[1:-1]), _three(size), _three(kernel), _three(stride), before, _three(dilation),
        (inputs, outputs, groups),
    )  # fmt: skip
    x, weight = recorder.contiguous(x), recorder.contiguous(weight)
    none = constant(np.zeros(0, x.dtype))
    offset = none if bias is None else recorder.contiguous(bias)

    def fill(z: RecordedArray, relu: bool) -> None:
        kernels_convolution.correlate(recorder, x, weight, offset, geometry, False, relu, z)

    y, kept = _with_activation(recorder, activation, (x.shape[0], *size, outputs), x.dtype, fill)

    def vjp(dy: Any) -> Any:
        dy = recorder.contiguous(recorder.reshape(dy, y.shape))
        dz, dbias = kernels_convolution.place_gradient(recorder, activation, kept, dy, bias is not None)
        dx = None
        if input_gradient:
            dx = recorder.empty(x.shape, x.dtype)
            kernels_convolution.correlate(recorder, dz, weight, none, geometry, True, False, dx)
        dweight = recorder.empty(weight.shape, x.dtype)
        kernels_convolution.weight_gradient(recorder, x, dz, geometry, dweight)
        return dx, dweight, dbias

    return y, vjp


def _pointwise(x: Any, weight: Any, bias: Any, activation: str | None, input_gradient: Any) -> Any:
    """A window of one pixel: a linear map of each pixel's channels."""
    arguments = (x, weight.reshape(weight.shape[-2:]), bias)
    y, linear_vjp = OPS["linear"](*arguments, activation=activation, input_gradient=input_gradient)

    def vjp(dy: Any) -> Any:
        dx, dweight, dbias = linear_vjp(dy)
        return dx, dweight.reshape(weight.shape), dbias

    return y, vjp


@_body
def conv_transpose(
    recorder: Recorder,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int = 1,
    activation: str | None = None,
    input_gradient: Any = True,
) -> Any:
    """The kernels of `conv`, with forward and backward exchanged."""
    check_arrays("conv_transpose", x, weight, bias, groups, transposed=True)
    kernel, size = weight.shape[:-2], x.shape[1:-1]
    lengths = transposed_output_size(size, kernel, stride, padding, output_padding, dilation)
    if not _fits(x, weight, bias, activation):
        return None
    outputs, inputs = weight.shape[-2] * groups, x.shape[-1]
    before = _three([pair[0] for pair in padding], 0)
    geometry = Geometry(
        _three(lengths), _three(size), _three(kernel), _three(stride), before, _three(dilation),
        (outputs, inputs, groups),
    )  # fmt: skip
    x, weight = recorder.contiguous(x), recorder.contiguous(weight)
    none = constant(np.zeros(0, x.dtype))
    offset = none if bias is None else recorder.contiguous(bias)

    def fill(z: RecordedArray, relu: bool) -> None:
        kernels_convolution.correlate(recorder, x, weight, offset, geometry, True, relu, z)

    y, kept = _with_activation(recorder, activation, (x.shape[0], *lengths, outputs), x.dtype, fill)

    def vjp(dy: Any) -> Any:
        dy = recorder.contiguous(recorder.reshape(dy, y.shape))
        dz, dbias = kernels_convolution.place_gradient(recorder, activation, kept, dy, bias is not None)
        dx = None
        if input_gradient:
            dx = recorder.empty(x.shape, x.dtype)
            kernels_convolution.correlate(recorder, dz, weight, none, geometry, False, False, dx)
        dweight = recorder.empty(weight.shape, x.dtype)
        kernels_convolution.weight_gradient(recorder, dz, x, geometry, dweight)
        return dx, dweight, dbias

    return y, vjp
