"""What an optimizer is, and what all of them can do: schedules, clipping, weight decay, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypedDict

from xpnn import ops
from xpnn.config import Configurable, check_number
from xpnn.dispatch import Array, namespace
from xpnn.errors import ConfigError
from xpnn.layers.layer import Shape
from xpnn.parameters import Layout, Vector
from xpnn.schedules import Schedule, check_rate, real_step

Slots = dict[str, Vector]

LearningRate = float | Schedule | Callable[[Any], Any]


class Options(TypedDict, total=False):
    """Keyword arguments that every optimizer takes; `Optimizer` describes them."""

    decay_biases: bool
    clip_value: float | None
    clip_norm: float | None
    clip_global_norm: float | None
    ema: float | None


_DEFAULTS = Options(decay_biases=False, clip_value=None, clip_norm=None, clip_global_norm=None, ema=None)


class Optimizer(Configurable):
    """A formula that maps parameters and gradient to new parameters.

    The object holds settings only. Its memory (momentum and the like) is a dict of vectors, the slots, part of the
    training state. They have theta's layout, unless `slot_layout` says otherwise.

    In each step the gradient is clipped (by value, then each parameter's by norm, then all by their common norm), the
    weight decay is added, the formula is applied, and the average of the weights is brought up to date.

    A subclass names its slots and gives `update`, made of one op; where the formula needs numbers that depend on the
    step, it gives `numbers` too. `ParameterOptimizer` is the base for a formula that looks at matrices or at norms.

    Args:
        learning_rate: a number, a schedule, or a function of the step.
        weight_decay: what is added to the gradient is weight_decay * theta (L2 regularisation). Where an optimizer says
            so (AdamW, Lion), its decay is decoupled: theta shrinks by the factor 1 - learning_rate * weight_decay.
        decay_biases: False leaves out parameters with fewer than two dimensions (biases, scales). PyTorch's optimizers
            decay every parameter, as True does.
        clip_value: each element of the gradient is clipped to [-clip_value, clip_value].
        clip_norm: the gradient of each parameter is scaled down to at most this Euclidean norm.
        clip_global_norm: the whole gradient is scaled down to at most this Euclidean norm.
        ema: the decay of an exponential moving average of the weights, in (0, 1), which `averaged` gives. It starts
            from the first weights and sees the new weights of every step.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name: ClassVar[str]
    decoupled_decay: ClassVar[bool] = False
    """True if `update` applies the weight decay; else the decay is added to the gradient."""

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        weight_decay: float = 0.0,
        *,
        decay_biases: bool = False,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
        ema: float | None = None,
    ) -> None:
        self.learning_rate = learning_rate if callable(learning_rate) else check_rate("learning_rate", learning_rate)
        self.weight_decay = check_rate("weight_decay", weight_decay)
        self.decay_biases = decay_biases
        self.clip_value = None if clip_value is None else check_positive("clip_value", clip_value)
        self.clip_norm = None if clip_norm is None else check_positive("clip_norm", clip_norm)
        self.clip_global_norm = (
            None if clip_global_norm is None else check_positive("clip_global_norm", clip_global_norm)
        )
        self.ema = (
            None if ema is None else check_number("ema", ema, "a number in (0, 1)", lambda number: 0.0 < number < 1.0)
        )

    @property
    def options(self) -> dict[str, Any]:
        """Those of the keyword arguments that every optimizer takes which are not at their defaults."""
        return {name: getattr(self, name) for name, value in _DEFAULTS.items() if getattr(self, name) != value}

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The slots that `update` gets, in its order. The average of the weights is kept beside them, as "ema"."""
        return ()

    def initial_slots(self, theta: Vector, layout: Layout) -> Slots:
        """The slots before the first step: zeros, and for the average a copy of theta. They share no memory with it."""
        slots = {name: layout.zeros(theta) for name in self.slot_names}
        if self.ema is not None:
            slots["ema"] = copied(theta)
        return slots

    def slot_layout(self, slot: str, layout: Layout) -> Layout:
        """The layout of a slot's vector, for parameters of this layout: the same one, for most optimizers."""
        return layout

    def averaged(self, slots: Slots) -> Vector:
        """The exponential moving average of the weights. Raises ConfigError if the optimizer keeps none."""
        if "ema" not in slots:
            raise ConfigError(f"{self!r} keeps no average of the weights; build it with ema=0.999, say")
        return slots["ema"]

    def rate(self, step: Any, like: Array | None = None) -> Any:
        """The learning rate of step number `step` (the first is 0), a number or an array of the dtype of `like`."""
        if not callable(self.learning_rate):
            return self.learning_rate
        rate = self.learning_rate(step)
        # A function of the user's may answer in float64 (so does all of NumPy), which would spread to the parameters.
        if isinstance(rate, (int, float)):
            return float(rate)
        return rate if like is None else namespace(like).asarray(rate, dtype=like.dtype)

    def apply(self, theta: Vector, gradient: Vector, slots: Slots, step: Any, layout: Layout) -> tuple[Vector, Slots]:
        """One step on the whole vector: (theta, slots). The memory of theta and of the slots may be used again.

        Args:
            theta: the parameters.
            gradient: the gradient of the loss, of the same layout.
            slots: what `initial_slots` or the step before gave.
            step: how many steps were taken; an int, or a 0-d array on the device.
            layout: that of theta.
        """
        if not theta:
            return theta, slots
        if step.__class__ is not int:
            step = real_step(step, theta[0].dtype)
        if self.clip_value is not None or self.clip_norm is not None or self.clip_global_norm is not None:
            gradient = self._clipped(gradient, layout)
        decays: Any = None
        if self.weight_decay:
            decays = self._decays(theta, layout)
            if not self.decoupled_decay:
                gradient = tuple(
                    ops.add_weight_decay(block, weights, decay)[0]
                    for block, weights, decay in zip(gradient, theta, decays, strict=True)
                )
                decays = None
        new_theta, new_slots = self.advance(theta, gradient, slots, step, decays, layout)
        if self.ema is not None:
            new_slots["ema"] = tuple(
                ops.moving_average(average, block, self.ema, donate=True)[0]
                for average, block in zip(slots["ema"], new_theta, strict=True)
            )
        return new_theta, new_slots

    def advance(
        self, theta: Vector, gradient: Vector, slots: Slots, step: Any, decays: tuple[Any, ...] | None, layout: Layout
    ) -> tuple[Vector, Slots]:
        """`update` on each block of the vector; `decays` has one decay for each, or is None for no decay."""
        names = self.slot_names
        numbers = self.numbers(self.rate(step, theta[0]), step)
        if len(theta) == 1:
            old = tuple([slots[name][0] for name in names])
            block, *new = self.update(theta[0], gradient[0], old, numbers, decays[0] if decays else 0.0)
            return (block,), {name: (value,) for name, value in zip(names, new, strict=True)}
        new_theta = []
        new_slots: dict[str, list[Array]] = {name: [] for name in names}
        for index, (block, block_gradient) in enumerate(zip(theta, gradient, strict=True)):
            old = tuple([slots[name][index] for name in names])
            block, *new = self.update(block, block_gradient, old, numbers, decays[index] if decays else 0.0)
            new_theta.append(block)
            for name, value in zip(names, new, strict=True):
                new_slots[name].append(value)
        return tuple(new_theta), {name: tuple(values) for name, values in new_slots.items()}

    def numbers(self, learning_rate: Any, step: Any) -> tuple[Any, ...]:
        """What `update` needs of this step, the same for every block: floats, or 0-d arrays if the step is one."""
        return (learning_rate,)

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...], decay: Any
    ) -> tuple[Array, ...]:
        """One block: (new theta, *new slots). theta and the slots may be overwritten, the gradient may not.

        `decay` is 0 but for optimizers with `decoupled_decay`: a number, or an array of the block's shape.
        """
        raise NotImplementedError

    def _clipped(self, gradient: Vector, layout: Layout) -> Vector:
        if self.clip_value is not None:
            gradient = tuple(ops.clip_by_value(block, self.clip_value)[0] for block in gradient)
        if self.clip_norm is not None:
            parts = layout.split(gradient)
            gradient = layout.join({name: ops.clip_by_norm(part, self.clip_norm)[0] for name, part in parts.items()})
        if self.clip_global_norm is not None:
            gradient, _ = ops.clip_by_global_norm(*gradient, limit=self.clip_global_norm)
        return gradient

    def _decays(self, theta: Vector, layout: Layout) -> tuple[Any, ...]:
        """The weight decay of each block: a number, or an array where a block holds parameters with and without it."""
        return layout.constant({entry.name: self.decay_of(entry.parameter.shape) for entry in layout.trained}, theta)

    def decay_of(self, shape: Shape) -> float:
        """The weight decay of a parameter of this shape."""
        return self.weight_decay if self.decay_biases or len(shape) >= 2 else 0.0


def copied(vector: Vector) -> Vector:
    """A vector of the same numbers that shares no memory with it."""
    return tuple(namespace(block).asarray(block, copy=True) for block in vector)


def check_positive(name: str, value: Any) -> float:
    """`value` as a float. Raises ConfigError unless it is a finite number > 0."""
    return check_number(name, value, "a finite number > 0", lambda number: 0.0 < number < math.inf)


def check_memory(name: str, value: Any) -> float:
    """`value` as a float. Raises ConfigError unless it is in [0, 1): how much of a running mean stays."""
    return check_number(name, value, "a number in [0, 1)", lambda number: 0.0 <= number < 1.0)


def one_minus_power(base: float, exponent: Any) -> Any:
    """1 - base^exponent for a base in [0, 1), without the cancellation that the difference has for a base near 1."""
    if base == 0.0:
        return 1.0
    return -namespace(exponent).expm1(exponent * math.log(base))
