"""Group and instance normalisation."""

from __future__ import annotations

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ShapeError
from xpnn.initializers import Initializer
from xpnn.layers.layer import Backward, Run, Shape, Tree
from xpnn.layers.normalization import _Normalization, present


class GroupNorm(_Normalization):
    """y = weight (x - mean) / sqrt(variance + epsilon) + bias, over each group of channels of each sample.

    The channels (the last axis) are cut into `groups` of neighbours; mean and variance are those of all values of a
    group at all places of one sample (Wu and He, ECCV 2018). Training and evaluation do the same. A mask of time steps
    is not looked at: padded steps count as the others do.

    Args:
        groups: how many; a divisor of the number of channels. 1 takes all of a sample together.
        epsilon: what is added to the variance.
        weight: False leaves the weight out.
        bias: False leaves the bias out.
        weight_initializer: for the weight of shape (channels,); ones by default.
        bias_initializer: for the bias of shape (channels,); zeros by default.

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) the groups do not divide the channels, or there are none.
    """

    def __init__(
        self,
        groups: int,
        epsilon: float = 1e-5,
        *,
        weight: bool = True,
        bias: bool = True,
        weight_initializer: Initializer | str = "ones",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(epsilon, weight, bias, weight_initializer, bias_initializer)
        self.groups = check_integer("groups", groups)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        channels = self._channels(input_shape)
        if channels % self.groups:
            raise ShapeError(
                f"got samples of shape {input_shape}: {channels} channels in the last axis, which {self.groups} groups "
                "do not divide; change groups= or the number of channels",
                self,
            )
        return input_shape, self._parameters((channels,))

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        return _normalize_groups(x, parameters, self.groups, self.epsilon)


class InstanceNorm(_Normalization):
    """y = weight (x - mean) / sqrt(variance + epsilon) + bias, over all places of each channel of each sample.

    A GroupNorm in which each channel is a group (Ulyanov, Vedaldi and Lempitsky, 2016). A sample with one place has the
    variance 0: y = bias.

    Args:
        epsilon: what is added to the variance.
        weight: False leaves the weight out.
        bias: False leaves the bias out.
        weight_initializer: for the weight of shape (channels,); ones by default.
        bias_initializer: for the bias of shape (channels,); zeros by default.

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) samples have no axis beside that of the channels.
    """

    def __init__(
        self,
        epsilon: float = 1e-5,
        *,
        weight: bool = True,
        bias: bool = True,
        weight_initializer: Initializer | str = "ones",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(epsilon, weight, bias, weight_initializer, bias_initializer)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        channels = self._channels(input_shape)
        if len(input_shape) < 2:
            raise ShapeError(
                f"got samples of shape {input_shape}, one value for each channel; wants (*places, channels), "
                "or take LayerNorm() to normalise over the features",
                self,
            )
        return input_shape, self._parameters((channels,))

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        return _normalize_groups(x, parameters, x.shape[-1], self.epsilon)


def _normalize_groups(x: Array, parameters: Tree, groups: int, epsilon: float) -> tuple[Array, Backward]:
    y, vjp = ops.group_norm(x, parameters.get("weight"), parameters.get("bias"), groups=groups, epsilon=epsilon)

    def backward(dy: Array) -> tuple[Array, Tree]:
        dx, dweight, dbias = vjp(dy)
        return dx, present(weight=dweight, bias=dbias)

    return y, backward
