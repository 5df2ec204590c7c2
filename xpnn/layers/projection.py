"""The linear maps inside other layers."""

from __future__ import annotations

from xpnn.errors import ShapeError
from xpnn.initializers import Initializer
from xpnn.layers.dense import Dense
from xpnn.layers.layer import Shape, Tree


class Projection(Dense):
    """A Dense layer inside another one, which decides how many units it has when the shape of the input is known.

    Args:
        bias: as for `Dense`.
        weight_initializer: as for `Dense`.
        bias_initializer: as for `Dense`.
    """

    def __init__(
        self,
        bias: bool = True,
        weight_initializer: Initializer | str = "glorot_uniform",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(
            1, bias=bias, weight_initializer=weight_initializer, bias_initializer=bias_initializer
        )  # forward asks the weight for its number of units, never `sizes`

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        raise ShapeError("the layer around it says how many units it has, in build_units", self)

    def build_units(self, features: int, units: int) -> Tree:
        """The parameters that map `features` numbers to `units`."""
        dense = Dense(
            units, bias=self.bias, weight_initializer=self.weight_initializer, bias_initializer=self.bias_initializer
        )
        return dense.build((features,))[1]
