"""Layers that change the shape of the samples and nothing else."""

from __future__ import annotations

import math
from typing import ClassVar

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree, one_input


class Flatten(Layer):
    """Each sample as one row: (batch, a, b, ...) -> (batch, a b ...)."""

    input_kind: ClassVar[str] = "any"
    output_kind: ClassVar[str] = "same"

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        return (math.prod(one_input(self, input_shape)),), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.flatten(x)
        return y, lambda dy: (vjp(dy)[0], {})


class Reshape(Layer):
    """Each sample in another shape, the values in C order: (batch, ...) -> (batch, *shape).

    Args:
        shape: of a sample of the output; one length may be -1, for whatever is left.

    Raises:
        ConfigError: a length is no positive integer, or more than one is -1.
        ShapeError: (when built) a sample of the input has another number of elements.
    """

    input_kind: ClassVar[str] = "any"
    output_kind: ClassVar[str] = "same"

    def __init__(self, *shape: int) -> None:
        if len(shape) == 1 and isinstance(shape[0], (list, tuple)):
            shape = tuple(shape[0])
        self.shape = tuple(-1 if length == -1 else check_integer("a length of Reshape", length) for length in shape)
        if self.shape.count(-1) > 1:
            raise ConfigError(f"Reshape{self.shape} is not understood; only one length may be -1")

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        return self._resolve(one_input(self, input_shape)), {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.reshape(x, self._resolve(tuple(x.shape[1:])))
        return y, lambda dy: (vjp(dy)[0], {})

    def _resolve(self, input_shape: Shape) -> Shape:
        """The shape with the number that -1 stands for. Raises ShapeError if the elements do not come out even."""
        elements = math.prod(input_shape)
        known = math.prod(length for length in self.shape if length != -1)
        if elements != known and (-1 not in self.shape or elements % known):
            wanted = f"a multiple of {known}" if -1 in self.shape else str(known)
            raise ShapeError(
                f"got samples of shape {input_shape} with {elements} elements, wants {wanted}; give other lengths", self
            )
        return tuple(elements // known if length == -1 else length for length in self.shape)
