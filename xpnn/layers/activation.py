"""Activations: layers without parameters that apply one op to each element."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from xpnn.dispatch import OPS, Array
from xpnn.layers.layer import Backward, Layer, Run, Tree
from xpnn.ops.linear import FUSABLE


class Activation(Layer):
    """Base of the activations: a subclass names its op; its settings are passed to the op as keywords."""

    op_name: ClassVar[str]
    input_kind: ClassVar[str] = "float"

    def __init__(self) -> None:
        pass

    @cached_property
    def _options(self) -> dict[str, Any]:
        return self.arguments()[1]

    @property
    def fusable(self) -> str | None:
        """The name under which `ops.linear` takes this activation, or None."""
        return self.op_name if self.op_name in FUSABLE and not self._options else None

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = OPS[self.op_name](x, **self._options)

        def backward(dy: Array) -> tuple[Any, Tree]:
            return vjp(dy)[0], {}

        return y, backward


class ReLU(Activation):
    """max(x, 0)."""

    op_name = "relu"


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    op_name = "sigmoid"


class Tanh(Activation):
    """The hyperbolic tangent."""

    op_name = "tanh"
