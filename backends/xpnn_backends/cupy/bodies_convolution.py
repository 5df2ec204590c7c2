"""Convolution and its transpose through cuDNN: `conv` and `conv_transpose`.

Both consist of the same three products of an image, a weight and what lies at the places of the window; see
`cudnn_definitions.Convolution`. Arrays stay as they are, channels last. cuDNN's engines want the weight in the order
(out, *kernel, in), where xpnn has (*kernel, in, out): it is copied into that order once a step, and its gradient is
copied back. Along one spatial axis, an axis of length 1 is put in front.

The bias is added in the convolution's own pass. The activation is a kernel of ours behind it, and its derivative comes
in one pass with the bias's gradient: cuDNN's own ReLU would turn NaN into 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn.ops.convolution import check_arrays, transposed_output_size, weight_gradient
from xpnn.ops.linear import FUSABLE
from xpnn.ops.windows import Ints, Pairs, output_size, pad_spatial
from xpnn_backends.cupy.bodies_activations import (
    bias_activation,
    bias_activation_backward,
    bias_activation_gradients,
)
from xpnn_backends.cupy.cudnn_definitions import Convolution
from xpnn_backends.cupy.cudnn_graphs import Plan, plan, ready, uses_tensor_cores, why_not
from xpnn_backends.cupy.kernels import generic, in_order

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = []
"""None of its own."""

_DTYPES = ("float32", "float16", "bfloat16")

_CHANNELS = 8
"""Numbers of channels are rounded up to a multiple of this where an engine needs it: 16 bytes in half precision."""


class _Geometry(NamedTuple):
    """A convolution that leads from `image` to `places`, with the spatial axes that it has in xpnn."""

    dtype: str
    image: Ints  # (batch, *spatial, in)
    weight: Ints  # (*kernel, in / groups, out)
    places: Ints  # (batch, *places, out)
    stride: Ints
    padding: Pairs
    dilation: Ints
    groups: int

    def definition(self, product: str, bias: bool = False) -> Convolution:
        """What cuDNN is asked for."""
        flat = (1,) * (len(self.stride) == 1)
        *kernel, per_group, out = self.weight
        return Convolution(
            product,
            self.dtype,
            uses_tensor_cores(self.dtype),
            (self.image[0], self.image[-1], *flat, *self.image[1:-1]),
            (out, per_group, *flat, *kernel),
            (self.places[0], self.places[-1], *flat, *self.places[1:-1]),
            (*flat, *self.stride),
            (*(((0, 0),) * len(flat)), *self.padding),
            (*flat, *self.dilation),
            bias,
        )


def _forward(geometry: _Geometry, image: Any, weight: Any, bias: Any = None) -> Any | None:
    """What lies at the places, with the bias if there is one; None if cuDNN has no plan.

    `weight` is in cuDNN's order here and below.
    """
    found = plan(geometry.definition("forward", bias is not None))
    if found is None:
        return None
    places = cupy.empty(geometry.places, dtype=image.dtype)
    biases = () if bias is None else (ready(bias),)
    found.run(ready(image), weight, *biases, places)
    return places


def _input_gradient(geometry: _Geometry, places: Any, weight: Any) -> Any | None:
    """What each number at the places writes into the image, summed; None if cuDNN has no plan."""
    found = plan(geometry.definition("input"))
    if found is None:
        return None
    image = cupy.empty(geometry.image, dtype=places.dtype)
    found.run(ready(places), weight, image)
    return image


def _weight_gradient(geometry: _Geometry, image: Any, places: Any, weight: Any) -> Any:
    """The sum over the places of what lies under each tap times what lies at the place: of the weight's shape.

    Where cuDNN has no plan, with more channels, which are zero; where that does not help, by matrix products.
    `weight` is in xpnn's order.
    """
    found = plan(geometry.definition("weight"))
    if found is not None:
        return _run_weight_gradient(found, geometry, image, places)
    wider = _with_more_channels(geometry)
    found = None if wider is None else plan(wider.definition("weight"))
    if wider is not None and found is not None:
        image, places = _with_zeros(image, wider.image[-1]), _with_zeros(places, wider.places[-1])
        gradient = _run_weight_gradient(found, wider, image, places)
        per_group, out = geometry.weight[-2:]
        return cupy.ascontiguousarray(gradient[..., :per_group, :out])
    # The generic body's matrix products: in half precision with sums in float32.
    gradient = weight_gradient(
        pad_spatial(_as_float32(image), geometry.padding),
        _as_float32(places),
        weight,
        geometry.stride,
        geometry.dilation,
        geometry.groups,
    )
    return gradient.astype(image.dtype, copy=False)


def _run_weight_gradient(found: Plan, geometry: _Geometry, image: Any, places: Any) -> Any:
    *kernel, per_group, out = geometry.weight
    gradient = cupy.empty((out, *kernel, per_group), dtype=image.dtype)
    found.run(ready(image), ready(places), gradient)
    return cupy.ascontiguousarray(cupy.moveaxis(gradient, 0, -1))


def _with_more_channels(geometry: _Geometry) -> _Geometry | None:
    """The same convolution with numbers of channels that every engine takes; None if it has them, or has groups."""
    if geometry.groups != 1:
        return None
    per_group, out = (-(-channels // _CHANNELS) * _CHANNELS for channels in geometry.weight[-2:])
    if (per_group, out) == geometry.weight[-2:]:
        return None
    return geometry._replace(
        image=(*geometry.image[:-1], per_group),
        weight=(*geometry.weight[:-2], per_group, out),
        places=(*geometry.places[:-1], out),
    )


def _with_zeros(x: Any, channels: int) -> Any:
    """x with channels of zeros behind its own."""
    wider = cupy.zeros((*x.shape[:-1], channels), dtype=x.dtype)
    wider[..., : x.shape[-1]] = x
    return wider


def _as_float32(x: Any) -> Any:
    return x.astype(cupy.float32, copy=False)


@handles_half
def conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
    groups: int = 1,
    activation: str | None = None,
    input_gradient: bool = True,
) -> tuple[Any, Any]:
    """Three products of cuDNN's; the generic body without cuDNN, for float64 and where cuDNN has no forward plan."""
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def without_cudnn() -> tuple[Any, Any]:
        return generic("conv")(x, weight, bias, activation=activation, input_gradient=input_gradient, **settings)

    if not _is_handled(x, weight, bias, activation):
        return without_cudnn()
    check_arrays("conv", x, weight, bias, groups)
    size = output_size(tuple(x.shape[1:-1]), tuple(weight.shape[:-2]), stride, padding, dilation)
    places = (x.shape[0], *size, weight.shape[-1])
    geometry = _Geometry(x.dtype.name, x.shape, weight.shape, places, stride, padding, dilation, groups)
    ordered = _in_cudnn_order(weight)
    z = _forward(geometry, x, ordered, bias)
    added = z is not None
    if z is None and bias is not None:
        z = _forward(geometry, x, ordered)
    if z is None:
        return without_cudnn()
    y, saved = bias_activation(_rows(z), None if added else bias, activation)

    def vjp(dy: Any) -> tuple[Any, ...]:
        dz, dbias = _before_activation(dy.astype(x.dtype, copy=False), saved, bias, activation)
        dz = dz.reshape(places)
        dx = None
        if input_gradient:
            dx = _input_gradient(geometry, dz, ordered)
            if dx is None:
                dx = generic("conv")(x, weight, None, **settings)[1](dz)[0]
        return dx, _weight_gradient(geometry, x, dz, weight), dbias

    return y.reshape(places), vjp


@handles_half
def conv_transpose(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Ints,
    padding: Pairs,
    output_padding: Ints,
    dilation: Ints,
    groups: int = 1,
    activation: str | None = None,
    input_gradient: bool = True,
) -> tuple[Any, Any]:
    """The same three products with the parts exchanged: y is the image, and x lies at the places."""
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    settings["output_padding"] = output_padding

    def without_cudnn() -> tuple[Any, Any]:
        return generic("conv_transpose")(
            x, weight, bias, activation=activation, input_gradient=input_gradient, **settings
        )

    if not _is_handled(x, weight, bias, activation):
        return without_cudnn()
    check_arrays("conv_transpose", x, weight, bias, groups, transposed=True)
    kernel, size = tuple(weight.shape[:-2]), tuple(x.shape[1:-1])
    lengths = transposed_output_size(size, kernel, stride, padding, output_padding, dilation)
    if output_size(lengths, kernel, stride, padding, dilation) != size:
        # So much output padding that the window would fit in once more: cuDNN infers the places from the image.
        return without_cudnn()
    image = (x.shape[0], *lengths, weight.shape[-2] * groups)
    geometry = _Geometry(x.dtype.name, image, weight.shape, x.shape, stride, padding, dilation, groups)
    ordered = _in_cudnn_order(weight)
    z = _input_gradient(geometry, x, ordered)
    if z is None:
        return without_cudnn()
    y, saved = bias_activation(_rows(z), bias, activation)

    def vjp(dy: Any) -> tuple[Any, ...]:
        dz, dbias = _before_activation(dy.astype(x.dtype, copy=False), saved, bias, activation)
        dz = dz.reshape(image)
        dx = None
        if input_gradient:
            dx = _forward(geometry, dz, ordered)
            if dx is None:
                dx = generic("conv_transpose")(x, weight, None, **settings)[1](dz)[0]
        return dx, _weight_gradient(geometry, dz, x, weight), dbias

    return y.reshape(image), vjp


def _is_handled(x: Any, weight: Any, bias: Any, activation: str | None) -> bool:
    """Whether these are arrays of one dtype, not empty, that cuDNN may know; whether they fit is checked later."""
    given = (weight,) if bias is None else (weight, bias)
    if x.dtype.name not in _DTYPES or any(array.dtype != x.dtype for array in given):
        return False
    if activation is not None and activation not in FUSABLE:
        return False
    return x.size > 0 and weight.size > 0 and 3 <= weight.ndim <= 5 and why_not() is None


def _in_cudnn_order(weight: Any) -> Any:
    """(*kernel, in, out) as (out, *kernel, in)."""
    return ready(cupy.moveaxis(weight, -1, 0))


def _rows(x: Any) -> Any:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _before_activation(dy: Any, saved: Any, bias: Any, activation: str | None) -> tuple[Any, Any]:
    """The gradient in front of the activation, as rows, and the bias's, which is None without a bias."""
    rows = in_order(_rows(dy))
    if bias is not None:
        return bias_activation_gradients(rows, saved, activation)
    return bias_activation_backward(rows, saved, activation), None


BODIES: dict[str, Body] = {"conv": conv, "conv_transpose": conv_transpose}
