"""Layers that pool: the largest or the mean value in each place of a window, or over all positions."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.windows import Padding, Setting, as_tuples, padding_setting, per_axis, resolve_padding, split_shape
from xpnn.ops.windows import Pairs, output_size


class _WindowPool(Layer):
    """What pooling with a window has in common.

    Attributes:
        axes: the number of spatial axes.
    """

    axes: ClassVar[int]

    def __init__(self, window: Setting, stride: Setting | None, padding: Padding) -> None:
        self.window = as_tuples(window)
        self.stride = as_tuples(stride)
        self.padding = as_tuples(padding)
        name = type(self).__name__
        self._window = per_axis(f"{name}: window", window, self.axes)
        self._stride = self._window if stride is None else per_axis(f"{name}: stride", stride, self.axes)
        self._padding = padding_setting(f"{name}: padding", padding, self.axes)
        if isinstance(self._padding, tuple):
            for pair, length in zip(self._padding, self._window, strict=True):
                if 2 * max(pair) > length:
                    raise ConfigError(
                        f"{name}: padding={padding!r} is more than half of window={window!r}; a window "
                        "could hold nothing but padding, and a maximum or mean of nothing has no value: give less "
                        "padding or a larger window"
                    )

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, channels = split_shape(self, input_shape, self.axes)
        try:
            places = output_size(spatial, self._window, self._stride, self._pairs(spatial))
        except ShapeError as error:
            raise ShapeError(error.message, self) from None
        return (*places, channels), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        padding = self._pairs(tuple(x.shape[1:-1]))
        y, vjp = self._pool(x, {"window": self._window, "stride": self._stride, "padding": padding})
        return y, lambda dy: (vjp(dy)[0], {})

    def _pairs(self, spatial: Shape) -> Pairs:
        """The padding for inputs of these spatial lengths."""
        return resolve_padding(self._padding, spatial, self._window, self._stride)

    def _pool(self, x: Array, settings: dict[str, Any]) -> tuple[Array, Vjp]:
        raise NotImplementedError


class _MaxPool(_WindowPool):
    def __init__(self, window: Setting = 2, stride: Setting | None = None, padding: Padding = "valid") -> None:
        super().__init__(window, stride, padding)

    def _pool(self, x: Array, settings: dict[str, Any]) -> tuple[Array, Vjp]:
        return ops.max_pool(x, **settings)


class MaxPool2D(_MaxPool):
    """The largest value in each place of a window over images.

    (batch, height, width, channels) -> (batch, places, places, channels), where the window stops in
    floor((length + padding - window) / stride) + 1 places along an axis. The gradient goes to the first maximum of each
    window, row by row. Padding never wins.

    Args:
        window: size of the window; an integer stands for both axes, here and in stride.
        stride: between places of the window; the window's size if None, so that each value is looked at once.
        padding: "valid" for none; "same" for ceil(length / stride) places, the padding divided between both sides and
            an odd one after; an integer for all sides; a tuple with one integer for each axis; or one with a pair
            (before, after) for each axis.

    Raises:
        ConfigError: a setting makes no sense, or the padding of a side is more than half of the window.
        ShapeError: (when built) samples have another number of axes, or the window is larger than the padded input.
    """

    axes: ClassVar[int] = 2


class MaxPool1D(_MaxPool):
    """The largest value in each place of a window: (batch, time, channels) -> (batch, places, channels).

    Args, Raises: as for `MaxPool2D`, with one axis; a padding may be the pair (before, after).
    """

    axes: ClassVar[int] = 1


class _AveragePool(_WindowPool):
    def __init__(
        self,
        window: Setting = 2,
        stride: Setting | None = None,
        padding: Padding = "valid",
        count_padding: bool = True,
    ) -> None:
        super().__init__(window, stride, padding)
        self.count_padding = bool(count_padding)

    def _pool(self, x: Array, settings: dict[str, Any]) -> tuple[Array, Vjp]:
        return ops.average_pool(x, **settings, count_padding=self.count_padding)


class AveragePool2D(_AveragePool):
    """The mean value in each place of a window over images, as `MaxPool2D` gives the largest.

    Args:
        window, stride, padding: as for `MaxPool2D`.
        count_padding: True if the padding counts, as zeros; False if the mean is over what the window holds of the
            input.

    Raises:
        ConfigError, ShapeError: as for `MaxPool2D`.
    """

    axes: ClassVar[int] = 2


class AveragePool1D(_AveragePool):
    """The mean value in each place of a window: (batch, time, channels) -> (batch, places, channels).

    Args, Raises: as for `AveragePool2D`, with one axis; a padding may be the pair (before, after).
    """

    axes: ClassVar[int] = 1


class _GlobalPool(Layer):
    """What pooling over all positions has in common.

    Attributes:
        axes: the number of spatial axes.
        masked: True if positions are time steps, of which those count that `run.mask` marks.
    """

    axes: ClassVar[int]
    masked: ClassVar[bool] = False

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        _, channels = split_shape(self, input_shape, self.axes)
        return (channels,), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = self._pool(x, run.mask if self.masked else None)
        return y, lambda dy: (vjp(dy)[0], {})

    def _pool(self, x: Array, mask: Array | None) -> tuple[Array, Vjp]:
        raise NotImplementedError


class _GlobalMaxPool(_GlobalPool):
    def _pool(self, x: Array, mask: Array | None) -> tuple[Array, Vjp]:
        return ops.global_max_pool(x, mask)


class GlobalMaxPool2D(_GlobalMaxPool):
    """The largest value of each channel: (batch, height, width, channels) -> (batch, channels).

    The gradient goes to the first maximum, row by row.

    Raises:
        ShapeError: (when built) samples have another number of axes, or no positions.
    """

    axes: ClassVar[int] = 2


class GlobalMaxPool1D(_GlobalMaxPool):
    """The largest value of each channel: (batch, time, channels) -> (batch, channels).

    In a masked sequence, only the steps that the mask marks count; a sequence without any gives 0.

    Raises:
        ShapeError: (when built) samples have another number of axes, or no steps.
    """

    axes: ClassVar[int] = 1
    masked: ClassVar[bool] = True


class _GlobalAveragePool(_GlobalPool):
    def _pool(self, x: Array, mask: Array | None) -> tuple[Array, Vjp]:
        return ops.global_average_pool(x, mask)


class GlobalAveragePool2D(_GlobalAveragePool):
    """The mean of each channel: (batch, height, width, channels) -> (batch, channels).

    Raises:
        ShapeError: (when built) samples have another number of axes, or no positions.
    """

    axes: ClassVar[int] = 2


class GlobalAveragePool1D(_GlobalAveragePool):
    """The mean of each channel: (batch, time, channels) -> (batch, channels).

    In a masked sequence, only the steps that the mask marks count; a sequence without any gives 0.

    Raises:
        ShapeError: (when built) samples have another number of axes, or no steps.
    """

    axes: ClassVar[int] = 1
    masked: ClassVar[bool] = True


class _AdaptiveAveragePool(Layer):
    axes: ClassVar[int]

    def __init__(self, size: Setting) -> None:
        self.size = as_tuples(size)
        self._size = per_axis(f"{type(self).__name__}: size", size, self.axes)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        _, channels = split_shape(self, input_shape, self.axes)
        return (*self._size, channels), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.adaptive_average_pool(x, size=self._size)
        return y, lambda dy: (vjp(dy)[0], {})


class AdaptiveAveragePool2D(_AdaptiveAveragePool):
    """Means over regions that divide the image evenly: (batch, height, width, channels) -> (batch, *size, channels).

    Along an axis of length n, region i of s holds the positions from floor(i n / s) up to, and without,
    ceil((i + 1) n / s); neighbours may overlap.

    Args:
        size: how many regions there are along each axis; an integer stands for both.

    Raises:
        ConfigError: a size is no positive integer.
        ShapeError: (when built) samples have another number of axes, or no positions.
    """

    axes: ClassVar[int] = 2


class AdaptiveAveragePool1D(_AdaptiveAveragePool):
    """Means over regions that divide the sequence evenly: (batch, time, channels) -> (batch, size, channels).

    Args, Raises: as for `AdaptiveAveragePool2D`, with one axis.
    """

    axes: ClassVar[int] = 1
