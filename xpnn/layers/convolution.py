"""Convolution over 1, 2 or 3 spatial axes, and its transpose."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.config import by_name, check_integer
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import INITIALIZERS, Initializer
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree
from xpnn.layers.windows import Padding, Setting, as_tuples, padding_setting, per_axis, resolve_padding, split_shape
from xpnn.ops.convolution import transposed_output_size
from xpnn.ops.windows import Ints, Pairs, output_size, span


class KernelLayer(Layer):
    """What layers with a kernel have in common; not for direct use.

    Attributes:
        axes: the number of spatial axes.
    """

    axes: ClassVar[int]
    fuses_activation: ClassVar[bool] = True

    def __init__(
        self,
        kernel_size: Setting,
        stride: Setting,
        dilation: Setting,
        bias: bool,
        weight_initializer: Initializer | str,
        bias_initializer: Initializer | str,
    ) -> None:
        self.kernel_size = as_tuples(kernel_size)
        self.stride = as_tuples(stride)
        self.dilation = as_tuples(dilation)
        self.bias = bool(bias)
        self.weight_initializer = weight_initializer
        self.bias_initializer = bias_initializer
        name = type(self).__name__
        self._kernel = per_axis(f"{name}: kernel_size", kernel_size, self.axes)
        self._stride = per_axis(f"{name}: stride", stride, self.axes)
        self._dilation = per_axis(f"{name}: dilation", dilation, self.axes)
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)
        self._bias: Initializer = by_name("bias_initializer", bias_initializer, INITIALIZERS, Initializer)

    def _bias_parameter(self, channels: int) -> Tree:
        return {"bias": Parameter((channels,), self._bias)} if self.bias else {}


def kernel_backward(vjp: Vjp) -> Backward:
    """The backward function of a layer whose op has the arguments x, weight, bias."""

    def backward(dy: Array) -> tuple[Any, Tree]:
        dx, dweight, dbias = vjp(dy)
        if dbias is None:
            return dx, {"weight": dweight}
        return dx, {"weight": dweight, "bias": dbias}

    return backward


class SlidingLayer(KernelLayer):
    """A `KernelLayer` whose kernel slides over a padded input; not for direct use."""

    def __init__(self, *, padding: Padding, **settings: Any) -> None:
        super().__init__(**settings)
        keywords = ("valid", "same", "causal") if self.axes == 1 else ("valid", "same")
        self.padding = as_tuples(padding)
        self._padding = padding_setting(f"{type(self).__name__}: padding", padding, self.axes, keywords)

    def pairs(self, spatial: Shape) -> Pairs:
        """The padding for inputs of these spatial lengths, as pairs."""
        return resolve_padding(self._padding, spatial, self._kernel, self._stride, self._dilation)

    def places(self, spatial: Shape) -> Shape:
        """The spatial lengths of the output. Raises ShapeError if the kernel is larger than the padded input."""
        try:
            return output_size(spatial, self._kernel, self._stride, self.pairs(spatial), self._dilation)
        except ShapeError as error:
            raise ShapeError(error.message, self) from None

    def convolve(
        self, x: Array, weight: Array, bias: Array | None, groups: int, activation: str | None, input_gradient: bool
    ) -> tuple[Array, Vjp]:
        """`ops.conv` with this layer's settings."""
        return ops.conv(
            x,
            weight,
            bias,
            stride=self._stride,
            padding=self.pairs(tuple(x.shape[1:-1])),
            dilation=self._dilation,
            groups=groups,
            activation=activation,
            input_gradient=input_gradient,
        )


class Convolution(SlidingLayer):
    """What Conv1D, Conv2D and Conv3D have in common: see `Conv2D`."""

    def __init__(
        self,
        channels: int,
        kernel_size: Setting,
        stride: Setting = 1,
        padding: Padding = "valid",
        dilation: Setting = 1,
        groups: int = 1,
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
        self.channels, self.groups = check_channels(self, channels, groups)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, inputs = split_shape(self, input_shape, self.axes)
        check_groups(self, input_shape, self.groups)
        shape = (*self._kernel, inputs // self.groups, self.channels)
        weight = {"weight": Parameter(shape, self._weight)}
        return (*self.places(spatial), self.channels), {**weight, **self._bias_parameter(self.channels)}

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, that of the next layer is applied in the same op."""
        y, vjp = self.convolve(
            x, parameters["weight"], parameters.get("bias"), self.groups, activation, run.input_gradient
        )
        return y, kernel_backward(vjp)


class Conv2D(Convolution):
    """Convolution over images: (batch, height, width, in) -> (batch, places, places, channels).

    y[n, p, q, o] = sum over i, j, c of x[n, stride p + dilation i, stride q + dilation j, c] weight[i, j, c, o]
    + bias[o], with x padded by zeros (LeCun et al., "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86, 1998). An output axis has floor((length + padding - span) / stride) + 1 places, with
    span = dilation (kernel - 1) + 1. A simple activation behind the layer runs within the same op.

    The input's channels are counted when the layer is built: PyTorch's Conv2d(1, 6, 5) is Conv2D(6, 5).

    Args:
        channels: how many the output has.
        kernel_size: lengths of the window; an integer stands for all spatial axes, here and in stride and dilation.
        stride: distance between places of the window.
        padding: "valid" for none; "same" for ceil(length / stride) places, with the zeros divided between both sides
            and an odd one after; an integer for all sides; a tuple with one integer for each axis; or one with a
            pair (before, after) for each axis.
        dilation: distance between the positions of the window.
        groups: the input's channels and the output's are split into as many groups, each of which sees its own part
            only.
        bias: False leaves the bias out.
        weight_initializer: for the weight of shape (*kernel_size, in / groups, channels), an object or a name such as
            "he_normal"; Glorot uniform by default.
        bias_initializer: for the bias of shape (channels,); zeros by default.

    Raises:
        ConfigError: a setting makes no sense, an initializer is unknown, or `groups` does not divide `channels`.
        ShapeError: (when built) the input has another number of axes, `groups` does not divide its channels, or the
            window is larger than the padded input.
    """

    axes: ClassVar[int] = 2


class Conv1D(Convolution):
    """Convolution over sequences: (batch, time, in) -> (batch, places, channels). Settings as those of `Conv2D`.

    padding="causal" puts all zeros before the input, dilation (kernel - 1) of them, so that no output depends on a
    later input (van den Oord et al., "WaveNet", arXiv:1609.03499, 2016); a pair (before, after) may be given alone.
    """

    axes: ClassVar[int] = 1


class Conv3D(Convolution):
    """Convolution over volumes: (batch, depth, height, width, in) -> (batch, places, places, places, channels).

    Settings as those of `Conv2D`.
    """

    axes: ClassVar[int] = 3


class TransposedConvolution(KernelLayer):
    """What ConvTranspose1D and ConvTranspose2D have in common: see `ConvTranspose2D`."""

    def __init__(
        self,
        channels: int,
        kernel_size: Setting,
        stride: Setting = 1,
        padding: Padding = 0,
        output_padding: Setting = 0,
        dilation: Setting = 1,
        groups: int = 1,
        bias: bool = True,
        weight_initializer: Initializer | str = "glorot_uniform",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, dilation, bias, weight_initializer, bias_initializer)
        self.channels, self.groups = check_channels(self, channels, groups)
        self.padding = as_tuples(padding)
        self.output_padding = as_tuples(output_padding)
        name = type(self).__name__
        self._padding = padding_setting(f"{name}: padding", padding, self.axes)
        self._output_padding = per_axis(f"{name}: output_padding", output_padding, self.axes, minimum=0)
        if padding == "same" and any(self._output_padding):
            raise ConfigError(
                f"{name}: output_padding={output_padding!r} makes no sense with padding='same', which gives the output "
                "length * stride; leave it out, or give the padding as integers"
            )
        for extra, step, distance in zip(self._output_padding, self._stride, self._dilation, strict=True):
            if extra >= max(step, distance):
                raise ConfigError(
                    f"{name}: output_padding={output_padding!r} makes no sense with stride={stride!r} and "
                    f"dilation={dilation!r}; give less than one of them along each axis"
                )

    def margins(self, spatial: Shape) -> tuple[Pairs, Ints]:
        """(what is cut off the output, what is added behind its end first), for inputs of these spatial lengths."""
        lengths = tuple(length * step for length, step in zip(spatial, self._stride, strict=True))
        cut = resolve_padding(self._padding, lengths, self._kernel, self._stride, self._dilation)
        if self._padding != "same":
            return cut, self._output_padding
        reach = map(span, self._kernel, self._dilation)
        return cut, tuple(max(step - window, 0) for step, window in zip(self._stride, reach, strict=True))

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, inputs = split_shape(self, input_shape, self.axes)
        check_groups(self, input_shape, self.groups)
        padding, output_padding = self.margins(spatial)
        try:
            lengths = transposed_output_size(
                spatial, self._kernel, self._stride, padding, output_padding, self._dilation
            )
        except ShapeError as error:
            raise ShapeError(error.message, self) from None
        shape = (*self._kernel, self.channels // self.groups, inputs)
        weight = {"weight": Parameter(shape, self._weight)}
        return (*lengths, self.channels), {**weight, **self._bias_parameter(self.channels)}

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, that of the next layer is applied in the same op."""
        padding, output_padding = self.margins(tuple(x.shape[1:-1]))
        y, vjp = ops.conv_transpose(
            x,
            parameters["weight"],
            parameters.get("bias"),
            stride=self._stride,
            padding=padding,
            output_padding=output_padding,
            dilation=self._dilation,
            groups=self.groups,
            activation=activation,
            input_gradient=run.input_gradient,
        )
        return y, kernel_backward(vjp)


class ConvTranspose2D(TransposedConvolution):
    """Transposed convolution, which enlarges images: (batch, height, width, in) -> (batch, lengths, lengths, channels).

    Each number of x writes a window, weighted by it, into y, `stride` apart; windows that overlap add up. This is the
    derivative of a `Conv2D` from `channels` to `in` channels with the same settings (Dumoulin and Visin,
    arXiv:1603.07285, 2016, section 4). An output axis has the length
    (length - 1) stride + dilation (kernel - 1) + 1 + output_padding - padding before - padding after.
    A simple activation behind the layer runs within the same op.

    Args:
        channels: how many the output has.
        kernel_size: lengths of the window; an integer stands for all spatial axes, here and in stride, output_padding
            and dilation.
        stride: distance between the windows in the output.
        padding: what is cut off the output: an integer for all sides, a tuple with one for each axis, or one with a
            pair (before, after) for each axis; "valid" for nothing; "same" for an output of length * stride, cut or
            lengthened as in the derivative of a `Conv2D` with padding="same".
        output_padding: added to the output behind its end, before the cut; smaller than the stride or the dilation.
        dilation: distance between the positions of the window.
        groups: the input's channels and the output's are split into as many groups, each of which sees its own part
            only.
        bias: False leaves the bias out.
        weight_initializer: for the weight of shape (*kernel_size, channels / groups, in), an object or a name such as
            "he_normal"; Glorot uniform by default. An initializer takes the last axis but one as the inputs, as it
            does in PyTorch and Keras: its fan_in counts `channels`, not `in`.
        bias_initializer: for the bias of shape (channels,); zeros by default.

    Raises:
        ConfigError: a setting makes no sense, an initializer is unknown, or `groups` does not divide `channels`.
        ShapeError: (when built) the input has another number of axes, `groups` does not divide its channels, or the
            padding leaves nothing of the output.
    """

    axes: ClassVar[int] = 2


class ConvTranspose1D(TransposedConvolution):
    """Transposed convolution, which lengthens sequences: (batch, time, in) -> (batch, length, channels).

    Settings as those of `ConvTranspose2D`; the padding may be one pair (before, after).
    """

    axes: ClassVar[int] = 1


def check_channels(layer: Layer, channels: Any, groups: Any) -> tuple[int, int]:
    """Both as integers. Raises ConfigError unless both are positive integers and `groups` divides `channels`."""
    name = type(layer).__name__
    channels, groups = check_integer(f"{name}: channels", channels), check_integer(f"{name}: groups", groups)
    if channels % groups:
        raise ConfigError(f"{name}: groups={groups} does not divide channels={channels}; give a divisor")
    return channels, groups


def check_groups(layer: Layer, input_shape: Shape, groups: int = 1) -> None:
    """Raise ShapeError unless samples have channels and `groups` divides their number."""
    inputs = input_shape[-1]
    if inputs < 1:
        raise ShapeError(f"got samples of shape {input_shape}, wants at least one channel in the last axis", layer)
    if inputs % groups:
        raise ShapeError(
            f"got samples of shape {input_shape}: {inputs} channels in the last axis, which groups={groups} does not "
            "divide; change groups= or the number of channels",
            layer,
        )
