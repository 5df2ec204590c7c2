"""Weight normalisation of any layer with a weight."""

from __future__ import annotations

from collections.abc import Mapping

from xpnn import ops
from xpnn.backend import host
from xpnn.dispatch import Array
from xpnn.errors import ConfigError
from xpnn.initializers import Draw, Initializer
from xpnn.layers.kinds import Kind, Limit
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree, as_layer, checked_build


class WeightNorm(Layer):
    """A layer whose weight is w = g v / |v|: a learned length g and a learned direction v for each output channel.

    >>> xpnn.WeightNorm(xpnn.Dense(64))

    The wrapped layer's parameter "weight" becomes two, "direction" (v, of its shape) and "magnitude" (g, one number for
    each output channel); its other parameters keep their names. In the beginning w = v, as the layer's initializer drew
    it, which must not give zeros (Salimans and Kingma, "Weight normalization", NeurIPS 2016).

    Args:
        layer: a layer with a parameter called "weight": Dense, a convolution.
        axis: the weight's axis of output channels: the last one, -1. Transposed convolutions have theirs in -2.

    Raises:
        ConfigError: an argument makes no sense; or (when built) the layer has no weight, or the weight no such axis.
        ShapeError: (when built) the layer cannot take samples of that shape.
    """

    def __init__(self, layer: Layer, axis: int = -1) -> None:
        self.layer = as_layer("the layer of WeightNorm", layer)
        if axis not in (-1, -2):
            raise ConfigError(f"axis={axis!r} makes no sense; give -1, or -2 for a transposed convolution")
        self.axis = axis

    @property
    def children(self) -> Mapping[str, Layer]:  # type: ignore[override]
        return self.layer.children

    @property
    def fuses_activation(self) -> bool:  # type: ignore[override]
        return self.layer.fuses_activation

    @property
    def output_kind(self) -> str:  # type: ignore[override]
        return self.layer.output_kind

    @property
    def input_kind(self) -> Kind:  # type: ignore[override]
        return self.layer.input_kind

    @property
    def input_shape(self) -> Shape | None:
        return self.layer.input_shape

    @property
    def index_limit(self) -> Limit:
        return self.layer.index_limit

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        output_shape, inner = checked_build(self.layer, input_shape)
        weight = inner.get("weight")
        if not isinstance(weight, Parameter):
            raise ConfigError(f"{self!r}: {self.layer!r} has no parameter called 'weight' that could be normalised")
        lengths = weight.shape
        if len(lengths) < -self.axis:
            raise ConfigError(f"{self!r}: axis={self.axis} does not exist in the weight of shape {lengths}")
        # The magnitude must stand right behind the direction: it is computed from the same random numbers.
        tree: Tree = {
            "direction": weight,
            "magnitude": Parameter((lengths[self.axis],), _LengthOfPrevious(weight, self.axis)),
        }
        tree.update({name: item for name, item in inner.items() if name != "weight"})
        return output_shape, tree

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, the wrapped layer applies that of the next layer too."""
        weight, weight_vjp = ops.weight_norm(parameters["direction"], parameters["magnitude"], axis=self.axis)
        inner = {name: item for name, item in parameters.items() if name not in ("direction", "magnitude")}
        inner["weight"] = weight
        if activation is None:
            y, inner_backward = self.layer.forward(x, inner, run)
        else:
            y, inner_backward = self.layer.forward(x, inner, run, activation)  # type: ignore[call-arg]

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, gradients = inner_backward(dy)
            ddirection, dmagnitude = weight_vjp(gradients["weight"])
            others = {name: gradient for name, gradient in gradients.items() if name != "weight"}
            return dx, {"direction": ddirection, "magnitude": dmagnitude, **others}

        return y, backward


class _LengthOfPrevious(Initializer):
    """The lengths along all axes but `axis` of what the parameter before this one, `direction`, is first filled with.

    Parameters are numbered in order, and their number decides their random numbers: those of the direction are drawn
    once more.
    """

    def __init__(self, direction: Parameter, axis: int) -> None:
        self.direction = direction
        self.axis = axis

    def sample(self, shape: Shape, draw: Draw) -> Array:
        xp = host().xp
        values = self.direction.initializer.sample(self.direction.shape, Draw(draw.seed, draw.index - 1))
        kept = self.axis % values.ndim
        others = tuple(axis for axis in range(values.ndim) if axis != kept)
        return xp.sqrt(xp.sum(values * values, axis=others))
