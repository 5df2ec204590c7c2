"""What the normalisation layers have in common: an epsilon, and a weight and a bias behind the normalisation."""

from __future__ import annotations

import math

from xpnn.config import by_name, check_number
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import INITIALIZERS, Initializer
from xpnn.layers.layer import Layer, Parameter, Shape, Tree, one_input


class _Normalization(Layer):
    """Settings of every normalisation layer; a subclass's constructor describes them."""

    def __init__(
        self,
        epsilon: float,
        weight: bool,
        bias: bool,
        weight_initializer: Initializer | str,
        bias_initializer: Initializer | str,
    ) -> None:
        self.epsilon = check_number("epsilon", epsilon, "a positive number", lambda x: 0.0 < x < math.inf)
        self.weight = check_flag("weight", weight)
        self.bias = check_flag("bias", bias)
        self.weight_initializer = weight_initializer
        self.bias_initializer = bias_initializer
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)
        self._bias: Initializer = by_name("bias_initializer", bias_initializer, INITIALIZERS, Initializer)

    def _parameters(self, shape: Shape) -> Tree:
        """The specifications of weight and bias, as far as the layer has them."""
        parameters: Tree = {}
        if self.weight:
            parameters["weight"] = Parameter(shape, self._weight)
        if self.bias:
            parameters["bias"] = Parameter(shape, self._bias)
        return parameters

    def _channels(self, input_shape: Shape) -> int:
        """The length of the last axis. Raises ShapeError if samples have none, or there are several inputs."""
        if not one_input(self, input_shape):
            raise ShapeError("got samples that are single numbers; reshape the input to (batch, 1)", self)
        return input_shape[-1]


def check_flag(name: str, value: object) -> bool:
    """`value` if it is True or False. Raises ConfigError for anything else."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} makes no sense; give True or False")
    return value


def present(**gradients: object) -> Tree:
    """The gradients that are not None, by name."""
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}
