"""Layers that make images and sequences larger or smaller: up-sampling, zeros around them, ends cut off."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.windows import Setting, as_tuples, pairs_per_axis, per_axis, split_shape

Pairs = int | tuple[Any, ...]
"""One integer for all sides, or one integer or pair (before, after) for each spatial axis."""


class _UpSampling(Layer):
    axes: ClassVar[int]
    lines: ClassVar[str]  # the name of interpolation by straight lines

    def __init__(self, factor: Setting = 2, interpolation: str = "nearest") -> None:
        if interpolation not in ("nearest", self.lines):
            raise ConfigError(
                f"{type(self).__name__}: interpolation={interpolation!r} is unknown; give 'nearest' or {self.lines!r}"
            )
        self.factor = as_tuples(factor)
        self.interpolation = interpolation
        self._factor = per_axis(f"{type(self).__name__}: factor", factor, self.axes)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, channels = split_shape(self, input_shape, self.axes)
        return (*(length * times for length, times in zip(spatial, self._factor, strict=True)), channels), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        upsample = ops.upsample_nearest if self.interpolation == "nearest" else ops.upsample_bilinear
        y, vjp = upsample(x, factor=self._factor)
        return y, lambda dy: (vjp(dy)[0], {})


class UpSampling2D(_UpSampling):
    """Images whose axes are `factor` times as long: (batch, height, width, channels), both before and after.

    Args:
        factor: a positive integer for each axis; an integer stands for both.
        interpolation: "nearest" repeats values; "bilinear" draws straight lines between the centres of the pixels,
            as PyTorch does with align_corners=False.

    Raises:
        ConfigError: a factor is no positive integer, or the interpolation is unknown.
        ShapeError: (when built) samples have another number of axes, or an empty one.
    """

    axes: ClassVar[int] = 2
    lines: ClassVar[str] = "bilinear"


class UpSampling1D(_UpSampling):
    """A sequence `factor` times as long: (batch, time, channels) -> (batch, factor time, channels).

    Args, Raises: as for `UpSampling2D`, with one axis; "linear" instead of "bilinear".
    """

    axes: ClassVar[int] = 1
    lines: ClassVar[str] = "linear"


class _ZeroPadding(Layer):
    axes: ClassVar[int]

    def __init__(self, padding: Pairs = 1) -> None:
        self.padding = as_tuples(padding)
        self._padding = pairs_per_axis(f"{type(self).__name__}: padding", padding, self.axes)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, channels = split_shape(self, input_shape, self.axes)
        return (*(length + sum(pair) for length, pair in zip(spatial, self._padding, strict=True)), channels), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.pad(x, padding=self._padding)
        return y, lambda dy: (vjp(dy)[0], {})


class ZeroPadding2D(_ZeroPadding):
    """Zeros around an image: (batch, height, width, channels) -> (batch, larger, larger, channels).

    Args:
        padding: how many zeros: an integer for all sides, or for each axis an integer or a pair (before, after), as in
            ((top, bottom), (left, right)).

    Raises:
        ConfigError: the padding is none of these, or negative.
        ShapeError: (when built) samples have another number of axes, or an empty one.
    """

    axes: ClassVar[int] = 2


class ZeroPadding1D(_ZeroPadding):
    """Zeros at the ends of a sequence: (batch, time, channels) -> (batch, before + time + after, channels).

    Args, Raises: as for `ZeroPadding2D`, with one axis; the padding may be the pair (before, after).
    """

    axes: ClassVar[int] = 1


class _Cropping(Layer):
    axes: ClassVar[int]

    def __init__(self, cropping: Pairs = 1) -> None:
        self.cropping = as_tuples(cropping)
        self._cropping = pairs_per_axis(f"{type(self).__name__}: cropping", cropping, self.axes)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        spatial, channels = split_shape(self, input_shape, self.axes)
        left = tuple(length - sum(pair) for length, pair in zip(spatial, self._cropping, strict=True))
        if min(left) < 1:
            raise ShapeError(
                f"cropping {self._cropping} leaves nothing of samples of shape {input_shape}; cut off less", self
            )
        return (*left, channels), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.crop(x, cropping=self._cropping)
        return y, lambda dy: (vjp(dy)[0], {})


class Cropping2D(_Cropping):
    """An image without its margins: (batch, height, width, channels) -> (batch, smaller, smaller, channels).

    Args:
        cropping: how many rows and columns are cut off: an integer for all sides, or for each axis an integer or a
            pair (before, after), as in ((top, bottom), (left, right)).

    Raises:
        ConfigError: the cropping is none of these, or negative.
        ShapeError: (when built) samples have another number of axes, or nothing is left of them.
    """

    axes: ClassVar[int] = 2


class Cropping1D(_Cropping):
    """A sequence without its ends: (batch, time, channels) -> (batch, time - before - after, channels).

    Args, Raises: as for `Cropping2D`, with one axis; the cropping may be the pair (before, after).
    """

    axes: ClassVar[int] = 1
