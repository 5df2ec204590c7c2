"""Convolutions that treat each channel by itself, and those that mix the channels behind that."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.initializers import Initializer
from xpnn.layers.convolution import SlidingLayer, check_groups, kernel_backward
from xpnn.layers.layer import Backward, Parameter, Run, Shape, Tree
from xpnn.layers.windows import Padding, Setting, split_shape


class DepthwiseConvolution(SlidingLayer):
    """What DepthwiseConv1D and DepthwiseConv2D have in common: see `DepthwiseConv2D`."""

    def __init__(
        self,
        kernel_size: Setting,
        stride: Setting = 1,
        padding: Padding = "valid",
        dilation: Setting = 1,
        multiplier: int = 1,
        bias: bool = True,
        weight_initializer: Initializer | str = "glorot_uniform",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            weight_initializer=weight_initializer,
            bias_initializer=bias_initializer,
        )
        self.multiplier = check_integer(f"{type(self).__name__}: multiplier", multiplier)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, inputs = split_shape(self, input_shape, self.axes)
        check_groups(self, input_shape)
        channels = inputs * self.multiplier
        weight = {"weight": Parameter((*self._kernel, 1, channels), self._weight)}
        return (*self.places(spatial), channels), {**weight, **self._bias_parameter(channels)}

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, that of the next layer is applied in the same op."""
        y, vjp = self.convolve(
            x, parameters["weight"], parameters.get("bias"), x.shape[-1], activation, run.input_gradient
        )
        return y, kernel_backward(vjp)


class DepthwiseConv2D(DepthwiseConvolution):
    """Convolution of each channel by itself: (batch, height, width, in) -> (batch, places, places, in multiplier).

    A `Conv2D` with as many groups as the input has channels: channel c of the input makes the channels c multiplier to
    (c + 1) multiplier - 1 of the output. A simple activation behind the layer runs within the same op.

    Args:
        kernel_size: as of `Conv2D`; stride, padding, dilation, bias and bias_initializer too.
        stride: distance between places of the window.
        padding: "valid", "same", an integer, or one integer or pair for each axis.
        dilation: distance between the positions of the window.
        multiplier: how many channels each channel of the input makes.
        bias: False leaves the bias out.
        weight_initializer: for the weight of shape (*kernel_size, 1, in multiplier), an object or a name; Glorot
            uniform by default.
        bias_initializer: for the bias of shape (in multiplier,); zeros by default.

    Raises:
        ConfigError: a setting makes no sense, or an initializer is unknown.
        ShapeError: (when built) the input has another number of axes or no channel, or the window is larger than the
            padded input.
    """

    axes: ClassVar[int] = 2


class DepthwiseConv1D(DepthwiseConvolution):
    """Convolution of each channel by itself: (batch, time, in) -> (batch, places, in multiplier).

    Settings as those of `DepthwiseConv2D`, and padding="causal" as of `Conv1D`.
    """

    axes: ClassVar[int] = 1


class SeparableConvolution(SlidingLayer):
    """What SeparableConv1D and SeparableConv2D have in common: see `SeparableConv2D`."""

    def __init__(
        self,
        channels: int,
        kernel_size: Setting,
        stride: Setting = 1,
        padding: Padding = "valid",
        dilation: Setting = 1,
        multiplier: int = 1,
        bias: bool = True,
        weight_initializer: Initializer | str = "glorot_uniform",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            weight_initializer=weight_initializer,
            bias_initializer=bias_initializer,
        )
        self.channels = check_integer(f"{type(self).__name__}: channels", channels)
        self.multiplier = check_integer(f"{type(self).__name__}: multiplier", multiplier)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, inputs = split_shape(self, input_shape, self.axes)
        check_groups(self, input_shape)
        between = inputs * self.multiplier
        weights = {
            "depthwise_weight": Parameter((*self._kernel, 1, between), self._weight),
            "pointwise_weight": Parameter((between, self.channels), self._weight),
        }
        return (*self.places(spatial), self.channels), {**weights, **self._bias_parameter(self.channels)}

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, that of the next layer is applied in the second op."""
        between, depthwise_vjp = self.convolve(
            x, parameters["depthwise_weight"], None, x.shape[-1], None, run.input_gradient
        )
        y, pointwise_vjp = ops.linear(
            between, parameters["pointwise_weight"], parameters.get("bias"), activation=activation
        )

        def backward(dy: Array) -> tuple[Any, Tree]:
            d_between, d_pointwise, d_bias = pointwise_vjp(dy)
            dx, d_depthwise, _ = depthwise_vjp(d_between)
            gradients = {"depthwise_weight": d_depthwise, "pointwise_weight": d_pointwise}
            return dx, gradients if d_bias is None else {**gradients, "bias": d_bias}

        return y, backward


class SeparableConv2D(SeparableConvolution):
    """A depthwise convolution, then a map of the channels at each place by itself: fewer products than a `Conv2D`.

    (batch, height, width, in) -> (batch, places, places, channels). The first is a `DepthwiseConv2D` without a bias,
    the second a `Dense` (a convolution with a kernel of 1); nothing stands between them (Chollet, "Xception: deep
    learning with depthwise separable convolutions", CVPR 2017). A simple activation behind the layer runs within the
    second one's op.

    Args:
        channels: how many the output has.
        kernel_size: of the depthwise convolution, as of `Conv2D`; stride, padding and dilation too.
        stride: distance between places of the window.
        padding: "valid", "same", an integer, or one integer or pair for each axis.
        dilation: distance between the positions of the window.
        multiplier: how many channels each channel of the input makes in between.
        bias: False leaves the bias out.
        weight_initializer: for both weights, of shape (*kernel_size, 1, in multiplier) and (in multiplier, channels);
            an object or a name; Glorot uniform by default.
        bias_initializer: for the bias of shape (channels,); zeros by default.

    Raises:
        ConfigError: a setting makes no sense, or an initializer is unknown.
        ShapeError: (when built) the input has another number of axes or no channel, or the window is larger than the
            padded input.
    """

    axes: ClassVar[int] = 2


class SeparableConv1D(SeparableConvolution):
    """A depthwise convolution, then a map of the channels: (batch, time, in) -> (batch, places, channels).

    Settings as those of `SeparableConv2D`, and padding="causal" as of `Conv1D`.
    """

    axes: ClassVar[int] = 1
