"""Local response normalisation."""

from __future__ import annotations

import math

from xpnn import ops
from xpnn.config import check_integer, check_number
from xpnn.dispatch import Array
from xpnn.errors import ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree, one_input


class LocalResponseNorm(Layer):
    """y_c = x_c / (k + alpha / size * sum of the squares of the neighbours of c)^beta, for x (batch, ..., channels).

    Strong channels damp their neighbours (Krizhevsky, Sutskever and Hinton, NIPS 2012); as in PyTorch, `alpha` weighs
    the mean of the squares. The neighbours of channel c are the `size` channels from c - floor(size / 2) on.

    Args:
        size: how many neighbours a channel has, itself among them.
        alpha: the weight of the neighbours.
        beta: the exponent.
        k: what is added to the mean of the squares.

    Raises:
        ConfigError: size is no positive integer, alpha or beta is negative, or k is not positive.
        ShapeError: (when built) samples have no channels.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = check_integer("size", size)
        self.alpha = check_number("alpha", alpha, "a number from 0 on", lambda number: 0.0 <= number < math.inf)
        self.beta = check_number("beta", beta, "a number from 0 on", lambda number: 0.0 <= number < math.inf)
        self.k = check_number("k", k, "a positive number", lambda number: 0.0 < number < math.inf)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if not one_input(self, input_shape) or input_shape[-1] == 0:
            raise ShapeError(
                f"got samples of shape {input_shape}, wants (..., channels) with at least one channel", self
            )
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.local_response_norm(x, size=self.size, alpha=self.alpha, beta=self.beta, k=self.k)
        return y, lambda dy: (vjp(dy)[0], {})
