"""Layers that tell the layers behind them where in a sequence each time step is."""

from __future__ import annotations

import math
from typing import Any

from xpnn import ops
from xpnn.config import by_name, check_integer, check_number
from xpnn.dispatch import Array
from xpnn.errors import ShapeError
from xpnn.initializers import INITIALIZERS, Initializer, Normal
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree
from xpnn.ops.positions import sinusoidal_table

_NARROW = Normal(std=0.02)


class SinusoidalPositions(Layer):
    """y = x + s, where row t of s holds sines and cosines of t: (batch, time, features) -> the same.

    Feature 2i is sin(t / base^(2i / features)), feature 2i + 1 the cosine of the same angle (Vaswani et al.,
    "Attention Is All You Need", NeurIPS 2017, section 3.5). Any length will do, and nothing is trained.

    Args:
        base: the larger, the more slowly the slow features vary.

    Raises:
        ConfigError: base is no finite number > 0.
        ShapeError: (when built) samples are not (time, features).
    """

    def __init__(self, base: float = 10000.0) -> None:
        self.base = check_number("base", base, "a finite number > 0", lambda x: 0.0 < x < math.inf)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        check_sequence(self, input_shape)
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.add_positions(x, sinusoidal_table(x, x.shape[1], x.shape[2], self.base))

        def backward(dy: Array) -> tuple[Any, Tree]:
            return vjp(dy)[0], {}

        return y, backward


class LearnedPositions(Layer):
    """y = x + w, with a trained row of w for each position: (batch, time, features) -> the same.

    Source: Gehring, Auli, Grangier, Yarats and Dauphin, "Convolutional Sequence to Sequence Learning", ICML 2017. Rows
    behind the end of a shorter sequence are not used, and have gradient 0. The parameter is "weight", of shape
    (length, features).

    Args:
        length: the number of positions, which no sequence may exceed.
        weight_initializer: an object or a name; normal with standard deviation 0.02 by default.

    Raises:
        ConfigError: length is no positive integer, or the initializer is unknown.
        ShapeError: (when built) samples are not (time, features), or longer than `length`.
    """

    def __init__(self, length: int, weight_initializer: Initializer | str = _NARROW) -> None:
        self.length = check_integer("length", length)
        self.weight_initializer = weight_initializer
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        check_sequence(self, input_shape)
        time, features = input_shape
        if time > self.length:
            raise ShapeError(
                f"got sequences of {time} time steps, and has {self.length} positions; give LearnedPositions({time})",
                self,
            )
        return input_shape, {"weight": Parameter((self.length, features), self._weight)}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.add_positions(x, parameters["weight"])

        def backward(dy: Array) -> tuple[Any, Tree]:
            dx, dweight = vjp(dy)
            return dx, {"weight": dweight}

        return y, backward


def check_sequence(layer: Layer, shape: Any) -> None:
    """Raise ShapeError unless samples are (time, features)."""
    if len(shape) != 2 or not all(isinstance(length, int) for length in shape):
        raise ShapeError(f"got samples of shape {shape}, wants sequences of shape (time, features)", layer)
