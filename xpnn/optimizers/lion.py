"""Lion."""

from __future__ import annotations

from typing import Any, Unpack

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.optimizers.optimizer import LearningRate, Optimizer, Options, check_memory


class Lion(Optimizer):
    """Steps of one length along the sign of a running mean (`xpnn.ops.lion`; Chen et al., NeurIPS 2023).

    The weight decay is decoupled: theta shrinks by the factor 1 - learning_rate * weight_decay. Biases are not decayed,
    unless `decay_biases=True`.

    Args:
        learning_rate: a number or a schedule; 3 to 10 times smaller than for AdamW.
        beta1: the weight of the running mean in the step, in [0, 1).
        beta2: how much of the running mean stays, in [0, 1).
        weight_decay: decoupled weight decay; 3 to 10 times larger than for AdamW.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "lion"
    decoupled_decay = True

    def __init__(
        self,
        learning_rate: LearningRate = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.beta1 = check_memory("beta1", beta1)
        self.beta2 = check_memory("beta2", beta2)

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ("momentum",)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        (momentum,), (learning_rate,) = slots, numbers
        new, _ = ops.lion(theta, gradient, momentum, learning_rate, self.beta1, self.beta2, decay, donate=True)
        return new
