"""Layers whose outputs are probabilities, or their logarithms."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn.dispatch import OPS, Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree


class _AlongAxis(Layer):
    """An op that works along one axis of each sample."""

    op_name: ClassVar[str]

    def __init__(self, axis: int = -1) -> None:
        if type(axis) is not int or axis == 0:
            reason = "axis 0 is the batch, and samples do not mix" if axis == 0 else "it is no integer"
            raise ConfigError(
                f"{type(self).__name__}: axis={axis!r} is not possible, because {reason}; "
                "give -1 for the last axis, 1 for the first axis of a sample"
            )
        self.axis = axis

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        axes = len(input_shape)
        if not -axes <= self.axis <= axes:
            possible = f"axes 1 to {axes}, or -1 to {-axes}" if axes else "no axis but the batch"
            raise ShapeError(f"got samples of shape {input_shape}, which have {possible}", self)
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = OPS[self.op_name](x, self.axis)

        def backward(dy: Array) -> tuple[Any, Tree]:
            return vjp(dy)[0], {}

        return y, backward


class Softmax(_AlongAxis):
    """exp(x_i) / sum over j of exp(x_j): positive numbers with sum 1.

    At the end of a network, take a loss that expects probabilities; better still, leave this layer out and take one
    that expects logits, which loses nothing to rounding.

    Args:
        axis: along which the sum is 1, counted with the batch as axis 0; not 0.

    Raises:
        ConfigError: axis is no integer, or 0.
        ShapeError: (when built) samples have no such axis.
    """

    output_kind = "probabilities"
    op_name = "softmax"


class LogSoftmax(_AlongAxis):
    """x_i - log(sum over j of exp(x_j)): the logarithms of Softmax.

    Args:
        axis: along which the sum of exp(y) is 1, counted with the batch as axis 0; not 0.

    Raises:
        ConfigError: axis is no integer, or 0.
        ShapeError: (when built) samples have no such axis.
    """

    output_kind = "log_probabilities"
    op_name = "log_softmax"
