"""A function as a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnn.config import check_integer
from xpnn.dispatch import OPS, Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree

_OUTPUT_KINDS = {"softmax": "probabilities", "log_softmax": "log_probabilities", "sigmoid": "sigmoid"}
"""Ops whose output is of a special kind, as that of the layers of their names."""


class Lambda(Layer):
    """A layer without parameters that applies an op, or a function of yours, to its input.

    >>> def square(x):
    ...     return x * x, lambda dy: (2.0 * x * dy,)
    >>> xpnn.Network(xpnn.Dense(3), xpnn.Lambda(square), xpnn.Lambda("softplus"))

    A network with a function of yours cannot be saved, since a file holds no code; one with the name of an op can.
    To save yours, register it with `@xpnn.dispatch.op`, or write a subclass of `xpnn.Layer`.

    Args:
        function: the name of an op, or function(x, **options) -> (y, vjp) with vjp(dy) -> (dx, ...).
        output_shape: the shape of an output sample, without the batch, or a function from the shape of an input
            sample to it; by default the shape stays the same.
        options: keyword arguments for the function.

    Raises:
        ConfigError: there is no op of that name, or an argument has the wrong type.
        ShapeError: (in the forward pass) the output has another shape than promised.
    """

    def __init__(
        self,
        function: str | Callable[..., tuple[Array, Callable[[Array], tuple[Any, ...]]]],
        output_shape: Shape | Callable[[Shape], Shape] | None = None,
        **options: Any,
    ) -> None:
        registered = OPS.get(getattr(function, "__name__", ""))
        if registered is not None and function is registered.function:
            function = registered.name
        if isinstance(function, str) and function not in OPS:
            raise ConfigError(f"Lambda({function!r}): there is no op of that name; known: {', '.join(sorted(OPS))}")
        if not isinstance(function, str) and not callable(function):
            raise ConfigError(f"function={function!r} is a {type(function).__name__}; give a function or an op's name")
        if isinstance(output_shape, (list, tuple)):
            output_shape = tuple(check_integer("a length of output_shape", length) for length in output_shape)
        elif output_shape is not None and not callable(output_shape):
            raise ConfigError(f"output_shape={output_shape!r} is no shape; give a tuple, or a function of the shape")
        self.function = function
        self.output_shape = output_shape
        self.options = options

    @property
    def output_kind(self) -> str:  # type: ignore[override]
        return _OUTPUT_KINDS.get(self.function, "any") if isinstance(self.function, str) else "any"

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if self.output_shape is None:
            return input_shape, {}
        if callable(self.output_shape):
            return tuple(self.output_shape(input_shape)), {}
        return self.output_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        function = OPS[self.function] if isinstance(self.function, str) else self.function
        y, vjp = function(x, **self.options)
        promised, _ = self.build(tuple(x.shape[1:]))
        if tuple(y.shape) != (x.shape[0], *promised):
            raise ShapeError(
                f"its function made {tuple(y.shape)} of {tuple(x.shape)}, and {(x.shape[0], *promised)} was promised; "
                "give output_shape=... for a function that changes the shape",
                self,
            )

        def backward(dy: Array) -> tuple[Any, Tree]:
            return vjp(dy)[0], {}

        return y, backward
