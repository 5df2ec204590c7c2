"""Adam, AMSGrad, AdamW and Nadam."""

from __future__ import annotations

import math
from typing import Any, Unpack

from xpnn import ops
from xpnn.dispatch import Array, namespace
from xpnn.optimizers.optimizer import (
    LearningRate,
    Optimizer,
    Options,
    check_memory,
    check_positive,
    one_minus_power,
)
from xpnn.schedules import check_rate


class Adam(Optimizer):
    """Running means of the gradient and of its square (`xpnn.ops.adam`; Kingma and Ba, ICLR 2015).

    Args:
        learning_rate: a number or a schedule.
        beta1: how much of the mean of the gradient stays, in [0, 1).
        beta2: how much of the mean of its square stays, in [0, 1).
        epsilon: added to the root, > 0.
        amsgrad: divide by the largest mean so far (`xpnn.ops.amsgrad`; Reddi et al., ICLR 2018).
        weight_decay: added to the gradient times theta. `AdamW` is usually the better choice.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "adam"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.beta1 = check_memory("beta1", beta1)
        self.beta2 = check_memory("beta2", beta2)
        self.epsilon = check_positive("epsilon", epsilon)
        self.amsgrad = amsgrad

    @property
    def slot_names(self) -> tuple[str, ...]:
        moments = ("first_moment", "second_moment")
        return (*moments, "largest_second_moment") if self.amsgrad else moments

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        count = step + 1
        return learning_rate, one_minus_power(self.beta1, count), one_minus_power(self.beta2, count)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        learning_rate, correction1, correction2 = numbers
        settings = (learning_rate, self.beta1, self.beta2, self.epsilon, correction1, correction2, decay)
        if self.amsgrad:
            first_moment, second_moment, largest = slots
            return ops.amsgrad(theta, gradient, first_moment, second_moment, largest, *settings, donate=True)[0]
        first_moment, second_moment = slots
        return ops.adam(theta, gradient, first_moment, second_moment, *settings, donate=True)[0]


class AMSGrad(Adam):
    """Adam(amsgrad=True): the denominator never shrinks (Reddi, Kale and Kumar, ICLR 2018).

    The arguments are those of `Adam`.
    """

    name = "amsgrad"

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, True, weight_decay, **options)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019).

        theta <- (1 - learning_rate * weight_decay) * theta, and then Adam's step

    Biases are not decayed, unless `decay_biases=True`. The other arguments are those of `Adam`.
    """

    name = "adamw"
    decoupled_decay = True

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        weight_decay: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, amsgrad, weight_decay, **options)


class Nadam(Optimizer):
    """Adam with Nesterov's momentum (`xpnn.ops.nadam`; Dozat, ICLR workshop 2016).

    The momentum grows with the steps: mu_t = beta1 * (1 - 0.5 * 0.96^(t * momentum_decay)). The conventions are those
    of PyTorch's NAdam.

    Args:
        learning_rate: a number or a schedule.
        beta1: how much of the mean of the gradient stays, in [0, 1).
        beta2: how much of the mean of its square stays, in [0, 1).
        epsilon: added to the root, > 0.
        momentum_decay: how fast the momentum grows.
        weight_decay: added to the gradient times theta.
        options: see `Optimizer`.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "nadam"

    def __init__(
        self,
        learning_rate: LearningRate = 2e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        momentum_decay: float = 4e-3,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **options)
        self.beta1 = check_memory("beta1", beta1)
        self.beta2 = check_memory("beta2", beta2)
        self.epsilon = check_positive("epsilon", epsilon)
        self.momentum_decay = check_rate("momentum_decay", momentum_decay)

    @property
    def slot_names(self) -> tuple[str, ...]:
        return "first_moment", "second_moment"

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        count = step + 1
        product = momentum_product(self.beta1, self.momentum_decay, count)
        mu = self._momentum(count)
        next_mu = self._momentum(count + 1)
        gradient_rate = learning_rate * (1.0 - mu) / (1.0 - product)
        moment_rate = learning_rate * next_mu / (1.0 - product * next_mu)
        return gradient_rate, moment_rate, one_minus_power(self.beta2, count)

    def _momentum(self, count: Any) -> Any:
        return self.beta1 * (1.0 - 0.5 * 0.96 ** (count * self.momentum_decay))

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        gradient_rate, moment_rate, correction2 = numbers
        first_moment, second_moment = slots
        new, _ = ops.nadam(
            theta,
            gradient,
            first_moment,
            second_moment,
            gradient_rate,
            moment_rate,
            self.beta1,
            self.beta2,
            self.epsilon,
            correction2,
            donate=True,
        )
        return new


_TERMS = 56
"""Terms of the series below: the rest is smaller than 2^-56 of the sum."""


def momentum_product(beta1: float, momentum_decay: float, count: Any) -> Any:
    """mu_1 * mu_2 * ... * mu_count with mu_t = beta1 * (1 - q^t / 2), q = 0.96^momentum_decay; no loop over the steps.

    So that Nadam's memory is a function of the step and needs no slot, the logarithm of the product is summed the other
    way round: log(1 - q^t / 2) = -sum over k of q^(kt) / (k 2^k), and for each k the powers of q^k over all t form a
    geometric series:

        log product = count log(beta1) - sum over k of [q^k (1 - q^(k count)) / (1 - q^k)] / (k 2^k)
    """
    if beta1 == 0.0:
        return 0.0
    xp = namespace(count)
    log_q = momentum_decay * math.log(0.96)
    total = count * math.log(beta1)
    for k in range(1, _TERMS + 1):
        weight = 0.5**k / k
        if log_q == 0.0:
            total = total - weight * count
        else:
            total = total - (weight * math.exp(k * log_q) / math.expm1(k * log_q)) * xp.expm1(k * log_q * count)
    return xp.exp(total)
