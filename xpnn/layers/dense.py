"""The fully connected layer."""

from __future__ import annotations

from xpnn import ops
from xpnn.config import by_name, check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import INITIALIZERS, Initializer
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree, one_input


class Dense(Layer):
    """y = x W + b for rows x: (batch, ..., in) -> (batch, ..., units).

    `Dense(64)` takes its input length from the data or from the layer before; `Dense(2, 3)` maps 2 features to 3.

    Args:
        sizes: units, or in and units.
        bias: False leaves b out.
        weight_initializer: for W of shape (in, units), an object or a name such as "he_normal"; Glorot uniform by
            default.
        bias_initializer: for b of shape (units,); zeros by default.

    Raises:
        ConfigError: a size is no positive integer, or an initializer is unknown.
        ShapeError: (when built) the last axis of the input has another length than `in`.
    """

    fuses_activation = True

    def __init__(
        self,
        *sizes: int,
        bias: bool = True,
        weight_initializer: Initializer | str = "glorot_uniform",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        if len(sizes) not in (1, 2):
            raise ConfigError(f"Dense{sizes} is not understood; write Dense(units) or Dense(inputs, units)")
        self.sizes = tuple(check_integer("a size of Dense", size) for size in sizes)
        self.bias = bool(bias)
        self.weight_initializer = weight_initializer
        self.bias_initializer = bias_initializer
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)
        self._bias: Initializer = by_name("bias_initializer", bias_initializer, INITIALIZERS, Initializer)

    @property
    def input_shape(self) -> Shape | None:
        return (self.sizes[0],) if len(self.sizes) == 2 else None

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        units = self.sizes[-1]
        if not one_input(self, input_shape):
            raise ShapeError("got samples that are single numbers; reshape the input to (batch, 1)", self)
        features = input_shape[-1]
        if len(self.sizes) == 2 and features != self.sizes[0]:
            raise ShapeError(
                f"got samples of shape {input_shape}, wants {self.sizes[0]} features in the last axis; "
                f"write Dense({features}, {units}) or Dense({units}), or give other data",
                self,
            )
        parameters: Tree = {"weight": Parameter((features, units), self._weight)}
        if self.bias:
            parameters["bias"] = Parameter((units,), self._bias)
        return (*input_shape[:-1], units), parameters

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, that of the next layer is applied in the same op."""
        y, vjp = ops.linear(
            x,
            parameters["weight"],
            parameters.get("bias"),
            activation=activation,
            input_gradient=run.input_gradient,
        )

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, dweight, dbias = vjp(dy)
            if dbias is None:
                return dx, {"weight": dweight}
            return dx, {"weight": dweight, "bias": dbias}

        return y, backward
