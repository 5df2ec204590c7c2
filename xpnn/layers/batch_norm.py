"""Batch normalisation."""

from __future__ import annotations

import math

from xpnn import ops
from xpnn.config import check_number
from xpnn.dispatch import Array
from xpnn.initializers import Initializer, Ones, Zeros
from xpnn.layers.layer import Backward, Buffer, Run, Shape, Tree
from xpnn.layers.normalization import _Normalization, check_flag, present


class BatchNorm(_Normalization):
    """y = weight (x - mean) / sqrt(variance + epsilon) + bias, for each channel (Ioffe and Szegedy, ICML 2015).

    Input: (batch, channels), or (batch, *places, channels) as behind a convolution. Mean and variance are

    - in training those of the batch (over all axes but the last; the variance divided by the number n of values);
    - in evaluation and prediction the running ones, buffers of the network that training moves along:
      running <- (1 - momentum) running + momentum * that of the batch, where the variance is the unbiased one (divided
      by n - 1), as in PyTorch. They start at 0 and 1, and are saved and loaded with the network.

    A batch with one value a channel has the output `bias` and passes no gradient; it has no unbiased variance, so it
    moves the running mean alone. An empty batch moves nothing. A mask of time steps is not looked at: padded steps
    count as the others do.

    `Network.freeze` keeps weight, bias and running statistics as they are, but a training step still normalises with
    the statistics of its batch; frozen=True is what takes the running ones there.

    A simple activation behind it (ReLU, say) runs in the same op.

    Args:
        momentum: how much a batch moves the running statistics, in [0, 1]; Keras calls 1 - momentum by that name.
        epsilon: what is added to the variance.
        weight: False leaves the weight out.
        bias: False leaves the bias out.
        frozen: True takes the running statistics in training too, and leaves them as they are: for a part of a
            network that was trained before. Weight and bias are still trained; see `Network.freeze` for them.
        weight_initializer: for the weight of shape (channels,); ones by default.
        bias_initializer: for the bias of shape (channels,); zeros by default.

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) samples are single numbers and have no channel axis.
    """

    fuses_activation = True

    def __init__(
        self,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        *,
        weight: bool = True,
        bias: bool = True,
        frozen: bool = False,
        weight_initializer: Initializer | str = "ones",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(epsilon, weight, bias, weight_initializer, bias_initializer)
        self.momentum = check_number("momentum", momentum, "a number in [0, 1]", lambda x: 0.0 <= x <= 1.0)
        self.frozen = check_flag("frozen", frozen)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        shape = (self._channels(input_shape),)
        tree = self._parameters(shape)
        tree["running_mean"] = Buffer(shape, Zeros())
        tree["running_variance"] = Buffer(shape, Ones())
        return input_shape, tree

    def forward(self, x: Array, parameters: Tree, run: Run, activation: str | None = None) -> tuple[Array, Backward]:
        """As of any layer; with `activation`, that of the next layer is applied in the same op."""
        if not run.training or self.frozen:
            return self._with_running_statistics(x, parameters, activation)
        (y, mean, variance), vjp = ops.batch_norm(
            x, parameters.get("weight"), parameters.get("bias"), epsilon=self.epsilon, activation=activation
        )
        changes = self._changes(math.prod(x.shape[:-1]), mean, variance, parameters)

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, dweight, dbias = vjp((dy, None, None))
            return dx, {**present(weight=dweight, bias=dbias), **changes}

        return y, backward

    def _with_running_statistics(self, x: Array, parameters: Tree, activation: str | None) -> tuple[Array, Backward]:
        y, vjp = ops.batch_norm_inference(
            x,
            parameters["running_mean"],
            parameters["running_variance"],
            parameters.get("weight"),
            parameters.get("bias"),
            epsilon=self.epsilon,
            activation=activation,
        )

        def backward(dy: Array) -> tuple[Array, Tree]:
            dx, _, _, dweight, dbias = vjp(dy)
            return dx, present(weight=dweight, bias=dbias)

        return y, backward

    def _changes(self, count: int, mean: Array, variance: Array, parameters: Tree) -> Tree:
        """What a batch with `count` values a channel adds to the running statistics."""
        changes: Tree = {}
        if count > 0:
            changes["running_mean"] = self.momentum * (mean - parameters["running_mean"])
        if count > 1:
            unbiased = variance * (count / (count - 1))
            changes["running_variance"] = self.momentum * (unbiased - parameters["running_variance"])
        return changes
