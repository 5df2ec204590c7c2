"""Dropout."""

from __future__ import annotations

from typing import ClassVar

from xpnn import ops
from xpnn.config import check_number
from xpnn.dispatch import Array
from xpnn.layers.layer import Backward, Layer, Run, Tree


class Dropout(Layer):
    """In training, sets each number to 0 with probability `rate` and scales the others by 1 / (1 - rate).

    The mean of the output is the input, so that outside of training there is nothing to do: the layer is the
    identity there. Each call in a forward pass draws a mask of its own, from the network's seed and the training
    step: the same one on every backend. See `xpnn.ops.dropout`.

    Args:
        rate: the probability of 0, in [0, 1); used as the nearest multiple of 1/65536.

    Raises:
        ConfigError: the rate is no number in [0, 1).
    """

    input_kind: ClassVar[str] = "float"
    output_kind: ClassVar[str] = "same"

    def __init__(self, rate: float = 0.5) -> None:
        self.rate = check_number("rate", rate, "a probability in [0, 1)", lambda x: 0.0 <= x < 1.0)

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        if not run.training or self.rate == 0.0:
            return x, lambda dy: (dy, {})
        y, vjp = ops.dropout(x, run.random_key(), self.rate)
        return y, lambda dy: (vjp(dy)[0], {})
