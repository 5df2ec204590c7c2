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
            return dx, _by_name(dweight, dbias)

        return y, backward


class DenseChain:
    """Dense layers in a row that run as one op: what a Sequential makes of them where the backend has a body for it.

    Args:
        steps: for each layer its name, the layer, and the activation that it applies as well, or None.
    """

    def __init__(self, steps: list[tuple[str, Dense, str | None]]) -> None:
        self.steps = steps
        self.activations = tuple(activation for _, _, activation in steps)

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        """As of a layer, with the parameters and the gradients of all these layers, under their names."""
        names = [name for name, _, _ in self.steps]
        arrays: list[Array | None] = []
        for name in names:
            arrays += parameters[name]["weight"], parameters[name].get("bias")
        y, vjp = ops.linear_chain(x, *arrays, activations=self.activations, input_gradient=run.input_gradient)

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, *gradients = vjp(dy)
            return dx, {
                name: _by_name(dweight, dbias)
                for name, dweight, dbias in zip(names, gradients[::2], gradients[1::2], strict=True)
            }

        return y, backward

    def at_fault(self, x: Array, parameters: Tree, run: Run) -> tuple[str, Array]:
        """After an error: the name and the input of the layer that raises one; the layers run one by one for it."""
        for name, layer, activation in self.steps:
            try:
                y, _ = layer.forward(x, parameters[name], run, activation)
            except Exception:  # whatever it is, it was raised before, and is on its way
                break
            x = y
        return name, x


def _by_name(dweight: Array, dbias: Array | None) -> Tree:
    return {"weight": dweight} if dbias is None else {"weight": dweight, "bias": dbias}
