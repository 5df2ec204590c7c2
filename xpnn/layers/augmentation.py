"""Layers that show a network each image, or series, a little different in each step of the training."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.config import check_integer, check_number
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree, one_input

_AXES = {"horizontal": -2, "vertical": -3}


class RandomFlip(Layer):
    """In training, mirrors each image with probability `rate`; outside of training it is the identity.

    Images are (batch, height, width, channels). Which ones are mirrored follows from the network's seed and the
    training step, on every backend alike. See `xpnn.ops.random_flip`.

    Args:
        direction: "horizontal" exchanges left and right, "vertical" top and bottom.
        rate: the probability, in [0, 1); used as the nearest multiple of 1/65536.

    Raises:
        ConfigError: the direction is unknown, or the rate no number in [0, 1).
        ShapeError: (when built) the samples are no images.
    """

    output_kind: ClassVar[str] = "same"

    def __init__(self, direction: str = "horizontal", rate: float = 0.5) -> None:
        if direction not in _AXES:
            raise ConfigError(f'direction={direction!r} is unknown; choose "horizontal" or "vertical"')
        self.direction = direction
        self.rate = check_number("rate", rate, "a probability in [0, 1)", lambda x: 0.0 <= x < 1.0)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if len(one_input(self, input_shape)) != 3:
            raise ShapeError(
                f"got samples of shape {input_shape}, wants images (height, width, channels); "
                "reshape the data, or put a Reshape(...) before",
                self,
            )
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        if not run.training or self.rate == 0.0:
            return x, _identity
        y, vjp = ops.random_flip(x, run.random_key(), self.rate, axis=_AXES[self.direction])
        return y, lambda dy: (vjp(dy)[0], {})


class RandomShift(Layer):
    """In training, moves each sample by a random whole number of steps along each of its spatial axes.

    What comes in at the edge is zero: the layer is a random crop of the samples padded with `largest` zeros on each
    side. Outside of training it is the identity. The shifts follow from the network's seed and the training step, on
    every backend alike. Samples are (*spatial, channels): images, series or volumes. See `xpnn.ops.random_shift`.

    Args:
        largest: the largest shift, from 1 to 16383: one number for all spatial axes, or a tuple with one for each
            (0 leaves an axis as it is).

    Raises:
        ConfigError: a shift is no such integer.
        ShapeError: (when built) the samples have another number of spatial axes than `largest` has numbers, or an
            axis is no longer than the shift along it.
    """

    output_kind: ClassVar[str] = "same"

    def __init__(self, largest: int | tuple[int, ...] = 1) -> None:
        given: Any = largest
        self._for_each = isinstance(given, (tuple, list))
        limits = tuple(given) if self._for_each else (given,)
        minimum = 0 if self._for_each else 1
        limits = tuple(check_integer("a shift of RandomShift", limit, minimum=minimum) for limit in limits)
        if not limits or max(limits) > 16383:
            raise ConfigError(f"largest={largest!r} makes no sense; give shifts of at most 16383 steps")
        self.largest = limits if self._for_each else limits[0]

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        axes = len(one_input(self, input_shape)) - 1
        limits = self._limits(axes)
        if axes < 1 or len(limits) != axes:
            wanted = "(*spatial, channels)" if axes < 1 else f"with {len(limits)} spatial axes and channels"
            raise ShapeError(
                f"got samples of shape {input_shape}, wants samples {wanted}; reshape the data, or give largest= one "
                "number for each spatial axis",
                self,
            )
        for axis, (length, limit) in enumerate(zip(input_shape, limits, strict=False)):
            if limit >= length > 0:
                raise ShapeError(
                    f"got samples of shape {input_shape}: a shift of {limit} would move all of axis {axis} out of "
                    f"sight; give at most {length - 1} for it",
                    self,
                )
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        if not run.training:
            return x, _identity
        y, vjp = ops.random_shift(x, run.random_key(), largest=self._limits(x.ndim - 2))
        return y, lambda dy: (vjp(dy)[0], {})

    def _limits(self, axes: int) -> tuple[int, ...]:
        return self.largest if isinstance(self.largest, tuple) else (self.largest,) * axes


def _identity(dy: Array) -> tuple[Array, Tree]:
    return dy, {}
