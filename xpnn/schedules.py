"""Learning rates that are functions of the step.

A schedule is called with the number of steps that were taken (0 at the first) and gives the rate of the next one. It
keeps no count of its own, so it works inside a compiled step, where the counter is an array on the device, and a
resumed training goes on where it stopped. Steps are batches, not epochs.

>>> optimizer = xpnn.Adam(xpnn.Warmup(500, then=xpnn.Cosine(1e-3, steps=10_000)))

For a Python int the result is a float; for an array of integers it is an array of the library's default float dtype,
for an array of floats one of the same dtype, with a rate for each element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnn.config import Configurable, check_integer, check_number
from xpnn.dispatch import Array, backend_of, device, namespace
from xpnn.errors import ConfigError

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "Schedule",
    "StepDecay",
    "Warmup",
]

_LARGEST_STEP = 2**31
"""Counters on a device are 32-bit integers on some libraries: no more restarts than this need be known."""


def real_step(step: Any, dtype: Any = None) -> Any:
    """A step counter with which one can compute: a number stays, an array becomes floats (of `dtype`, if given)."""
    if isinstance(step, (int, float)) or backend_of(step) is None:
        return step
    xp = namespace(step)
    step = xp.asarray(step)
    if dtype is None:
        if xp.isdtype(step.dtype, "real floating"):
            return step
        dtype = xp.__array_namespace_info__().default_dtypes(device=device(step))["real floating"]
    return xp.astype(step, dtype)


def check_rate(name: str, value: Any) -> float:
    """`value` as a float. Raises ConfigError unless it is a finite number of at least 0."""
    return check_number(name, value, "a finite number of at least 0", lambda number: 0.0 <= number < math.inf)


class Schedule(Configurable):
    """A function from the number of steps taken to the learning rate.

    A subclass of yours defines `at`, with functions of `namespace(step)` alone and no branch on the step's value.
    """

    def __call__(self, step: int | Array) -> Any:
        """The learning rate after `step` steps: a float for an int, an array for an array."""
        return self.at(real_step(step))

    def at(self, step: Any) -> Any:
        """The rate for a Python int, or for an array of floats."""
        raise NotImplementedError


class Constant(Schedule):
    """The same rate at every step.

    Raises ConfigError if the rate is negative or not finite.
    """

    def __init__(self, rate: float) -> None:
        self.rate = check_rate("rate", rate)

    def at(self, step: Any) -> Any:
        return self.rate + 0.0 * step


class StepDecay(Schedule):
    """rate * factor^floor(step / every): a staircase.

    Args:
        rate: the rate at step 0.
        every: the length of a stair, in steps.
        factor: what the rate is multiplied with after each stair.

    Raises ConfigError if a number makes no sense.
    """

    def __init__(self, rate: float, every: int, factor: float = 0.1) -> None:
        self.rate = check_rate("rate", rate)
        self.every = check_integer("every", every)
        self.factor = check_rate("factor", factor)

    def at(self, step: Any) -> Any:
        return self.rate * self.factor ** _whole_parts(step, self.every)


class MultiStep(Schedule):
    """The rate, multiplied with a factor at each milestone.

    Args:
        rate: the rate at step 0.
        milestones: step numbers, ascending.
        factor: what the rate is multiplied with from each milestone on.

    Raises ConfigError if a number makes no sense, or the milestones do not ascend.
    """

    def __init__(self, rate: float, milestones: Sequence[int], factor: float = 0.1) -> None:
        self.rate = check_rate("rate", rate)
        self.milestones = tuple(check_integer("milestones", milestone) for milestone in milestones)
        self.factor = check_rate("factor", factor)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"milestones={milestones!r} do not ascend; give each step number once, smallest first")

    def at(self, step: Any) -> Any:
        xp = namespace(step)
        rate = self.rate + 0.0 * step
        for milestone in self.milestones:
            rate = xp.where(step >= milestone, rate * self.factor, rate)
        return rate


class Exponential(Schedule):
    """rate * factor^step.

    Args:
        rate: the rate at step 0.
        factor: what the rate is multiplied with at each step; near 1.

    Raises ConfigError if a number makes no sense.
    """

    def __init__(self, rate: float, factor: float) -> None:
        self.rate = check_rate("rate", rate)
        self.factor = check_rate("factor", factor)

    def at(self, step: Any) -> Any:
        return self.rate * self.factor**step


class Polynomial(Schedule):
    """end + (rate - end) * (1 - step / steps)^power; from `steps` on, `end`.

    Args:
        rate: the rate at step 0.
        steps: how many steps the way down takes.
        power: 1 is a straight line.
        end: the rate at the end.

    Raises ConfigError if a number makes no sense.
    """

    def __init__(self, rate: float, steps: int, power: float = 1.0, end: float = 0.0) -> None:
        self.rate = check_rate("rate", rate)
        self.steps = check_integer("steps", steps)
        self.power = check_number("power", power, "a number > 0", lambda number: 0.0 < number < math.inf)
        self.end = check_rate("end", end)

    def at(self, step: Any) -> Any:
        xp = namespace(step)
        # steps - step is exactly 0 at the end, and never less: a negative base would make a NaN.
        left = (self.steps - xp.minimum(step, self.steps)) / self.steps
        return self.end + (self.rate - self.end) * left**self.power


class Cosine(Schedule):
    """minimum + (rate - minimum) * (1 + cos(pi * step / steps)) / 2; from `steps` on, the minimum.

    One cycle of Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.

    Args:
        rate: the rate at step 0.
        steps: how many steps the way down takes.
        minimum: the rate at the end.

    Raises ConfigError if a number makes no sense.
    """

    def __init__(self, rate: float, steps: int, minimum: float = 0.0) -> None:
        self.rate = check_rate("rate", rate)
        self.steps = check_integer("steps", steps)
        self.minimum = check_rate("minimum", minimum)

    def at(self, step: Any) -> Any:
        progress = namespace(step).minimum(step, self.steps) / self.steps
        return _anneal(self.rate, self.minimum, progress)


class CosineRestarts(Schedule):
    """`Cosine`, again and again, each cycle `multiplier` times as long as the one before.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Args:
        rate: the rate at the start of each cycle.
        first_steps: the length of the first cycle.
        multiplier: an integer; 1 keeps the length.
        minimum: the rate towards which each cycle goes.

    Raises ConfigError if a number makes no sense.
    """

    def __init__(self, rate: float, first_steps: int, multiplier: int = 1, minimum: float = 0.0) -> None:
        self.rate = check_rate("rate", rate)
        self.first_steps = check_integer("first_steps", first_steps)
        self.multiplier = check_integer("multiplier", multiplier)
        self.minimum = check_rate("minimum", minimum)

    def at(self, step: Any) -> Any:
        xp = namespace(step)
        if self.multiplier == 1:
            start, length = _whole_parts(step, self.first_steps) * self.first_steps, self.first_steps
            return _anneal(self.rate, self.minimum, (step - start) / length)
        # Cycles grow so fast that comparing with the start of each is cheap, and exact where a logarithm is not.
        start, length = 0, self.first_steps
        progress = step / length
        while start + length <= _LARGEST_STEP:
            start, length = start + length, length * self.multiplier
            progress = xp.where(step >= start, (step - start) / length, progress)
        return _anneal(self.rate, self.minimum, progress)


class Warmup(Schedule):
    """A straight line from `start` to the first rate of another schedule, then that schedule from its beginning.

    (Goyal et al., "Accurate, large minibatch SGD", arXiv:1706.02677, section 2.2.)

    Args:
        steps: how many steps the way up takes; at step number `steps` the schedule `then` begins.
        then: a schedule, or a number for a constant rate.
        start: the rate at step 0.

    Raises ConfigError if a number makes no sense, or `then` is no schedule.
    """

    def __init__(self, steps: int, then: Schedule | float, start: float = 0.0) -> None:
        self.steps = check_integer("steps", steps)
        self.then = then if isinstance(then, Schedule) else Constant(check_rate("then", then))
        self.start = check_rate("start", start)

    def at(self, step: Any) -> Any:
        xp = namespace(step)
        first = self.then.at(0)
        rising = self.start + (first - self.start) * (step / self.steps)
        return xp.where(step < self.steps, rising, self.then.at(xp.maximum(step - self.steps, 0)))


class OneCycle(Schedule):
    """Up to a maximum and down again, along half cosines (Smith and Topin, "Super-convergence", arXiv:1708.07120).

    From maximum / start_divisor up to the maximum at step warmup * steps - 1, then down to
    maximum / start_divisor / end_divisor at step steps - 1, and no change from there on. These are the conventions of
    PyTorch's OneCycleLR.

    Args:
        maximum: the largest rate.
        steps: how many steps the training takes.
        warmup: the part of the steps on the way up, in [0, 1).
        start_divisor: maximum / first rate.
        end_divisor: first rate / last rate.

    Raises ConfigError if a number makes no sense.
    """

    def __init__(
        self,
        maximum: float,
        steps: int,
        warmup: float = 0.3,
        start_divisor: float = 25.0,
        end_divisor: float = 1e4,
    ) -> None:
        self.maximum = check_rate("maximum", maximum)
        self.steps = check_integer("steps", steps)
        self.warmup = check_number("warmup", warmup, "a number in [0, 1)", lambda number: 0.0 <= number < 1.0)
        positive = "a number > 0"
        self.start_divisor = check_number("start_divisor", start_divisor, positive, lambda n: 0.0 < n < math.inf)
        self.end_divisor = check_number("end_divisor", end_divisor, positive, lambda n: 0.0 < n < math.inf)

    def at(self, step: Any) -> Any:
        xp = namespace(step)
        first = self.maximum / self.start_divisor
        peak = self.warmup * self.steps - 1.0
        progress_down = (xp.minimum(step, self.steps - 1) - peak) / (self.steps - 1 - peak)
        falling = _anneal(self.maximum, first / self.end_divisor, progress_down)
        if peak <= 0.0:
            return falling
        return xp.where(step < peak, _anneal(first, self.maximum, step / peak), falling)


def _whole_parts(step: Any, length: int) -> Any:
    """floor(step / length). The half keeps clear of the jumps, where a rounded quotient could fall on either side."""
    return namespace(step).floor((step + 0.5) / length)


def _anneal(start: float, end: float, progress: Any) -> Any:
    """From start to end along half a cosine: end + (start - end) * (1 + cos(pi * progress)) / 2.

    (1 + cos x) / 2 is written as cos^2(x / 2), which loses no digits near the end.
    """
    xp = namespace(progress)
    half = xp.cos((0.5 * xp.pi) * progress)
    return end + (start - end) * (half * half)
