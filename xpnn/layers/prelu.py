"""ReLU with a slope that is learned."""

from __future__ import annotations

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import Constant, Initializer
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree


class PReLU(Layer):
    """x for x > 0, slope * x else; the parameter "slope" is learned.

    The slopes start at 0.25 and should not be given weight decay, which would turn the layer into a ReLU
    (He, Zhang, Ren and Sun, ICCV 2015).

    Args:
        shared: True for one slope that all features share, False for one slope for each feature of the last axis.
        slope_initializer: first values of the slopes, of shape (1,) or (features,); 0.25 by default.

    Raises:
        ConfigError: an argument has the wrong type.
        ShapeError: (when built) samples are single numbers and have no feature axis.
    """

    def __init__(self, shared: bool = False, slope_initializer: Initializer | None = None) -> None:
        if not isinstance(shared, bool):
            raise ConfigError(f"PReLU: shared={shared!r} is a {type(shared).__name__}; give True or False")
        if slope_initializer is not None and not isinstance(slope_initializer, Initializer):
            raise ConfigError(
                f"PReLU: slope_initializer={slope_initializer!r} is a {type(slope_initializer).__name__}; give an "
                "initializer, such as xpnn.initializers.Constant(0.25)"
            )
        self.shared = shared
        self.slope_initializer = slope_initializer

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if not input_shape:
            raise ShapeError("got samples that are single numbers; reshape the input to (batch, 1)", self)
        slopes = 1 if self.shared else input_shape[-1]
        return input_shape, {"slope": Parameter((slopes,), self.slope_initializer or Constant(0.25))}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.prelu(x, parameters["slope"])

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, dslope = vjp(dy)
            return dx, {"slope": dslope}

        return y, backward
