"""Layer normalisation and RMS normalisation."""

from __future__ import annotations

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ShapeError
from xpnn.initializers import Initializer
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree, one_input
from xpnn.layers.normalization import _Normalization, present


class LayerNorm(_Normalization):
    """y = weight (x - mean) / sqrt(variance + epsilon) + bias, over the last axes of each sample.

    It does the same in training and outside of it, and looks at no other sample (Ba, Kiros and Hinton, 2016). With
    axes=1 each time step of a sequence is normalised by itself, so that a mask of time steps changes nothing.

    Args:
        axes: how many axes, counted from the last, are normalised together: 1 for features, 3 for whole images.
        epsilon: what is added to the variance.
        weight: False leaves the weight out.
        bias: False leaves the bias out.
        weight_initializer: for the weight, of the shape of the normalised axes; ones by default.
        bias_initializer: for the bias of the same shape; zeros by default.

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) samples have fewer axes.
    """

    def __init__(
        self,
        axes: int = 1,
        epsilon: float = 1e-5,
        *,
        weight: bool = True,
        bias: bool = True,
        weight_initializer: Initializer | str = "ones",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(epsilon, weight, bias, weight_initializer, bias_initializer)
        self.axes = check_integer("axes", axes)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        return input_shape, self._parameters(_normalized_shape(self, self.axes, input_shape))

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.layer_norm(
            x, parameters.get("weight"), parameters.get("bias"), axes=self.axes, epsilon=self.epsilon
        )

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, dweight, dbias = vjp(dy)
            return dx, present(weight=dweight, bias=dbias)

        return y, backward


class RMSNorm(_Normalization):
    """y = weight x / sqrt(mean of x^2 + epsilon), over the last axes of each sample (Zhang and Sennrich, 2019).

    A LayerNorm that leaves the mean where it is, and has no bias.

    Args:
        axes: how many axes, counted from the last, are normalised together.
        epsilon: what is added to the mean square.
        weight: False leaves the weight out.
        weight_initializer: for the weight, of the shape of the normalised axes; ones by default.

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) samples have fewer axes.
    """

    def __init__(
        self,
        axes: int = 1,
        epsilon: float = 1e-5,
        *,
        weight: bool = True,
        weight_initializer: Initializer | str = "ones",
    ) -> None:
        super().__init__(epsilon, weight, False, weight_initializer, "zeros")
        self.axes = check_integer("axes", axes)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        return input_shape, self._parameters(_normalized_shape(self, self.axes, input_shape))

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.rms_norm(x, parameters.get("weight"), axes=self.axes, epsilon=self.epsilon)

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, dweight = vjp(dy)
            return dx, present(weight=dweight)

        return y, backward


def _normalized_shape(layer: Layer, axes: int, input_shape: Shape) -> Shape:
    """The last `axes` lengths of a sample's shape."""
    if axes > len(one_input(layer, input_shape)):
        raise ShapeError(
            f"got samples of shape {input_shape}, wants at least {axes} axes to normalise over; give a smaller axes=, "
            "or reshape the input",
            layer,
        )
    return input_shape[len(input_shape) - axes :]
