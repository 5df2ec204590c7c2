"""How the first values of a parameter are drawn.

Every initializer maps a shape and random numbers from the host to a float64 host array; the network rounds it to its
dtype and moves it once. So one seed gives the same bits on every backend.
"""

from __future__ import annotations

import math
from typing import Any

from xpnn import random
from xpnn.backend import host
from xpnn.config import Configurable
from xpnn.dispatch import Array


class Draw:
    """The random numbers of one parameter: a function of the network's seed and the parameter's number."""

    def __init__(self, seed: int, index: int) -> None:
        self.seed = seed
        self.index = index

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """float64, uniform on (0, 1)."""
        return random.uniform(self.seed, random.stream(random.INITIALIZATION, self.index), 0, shape)


class Initializer(Configurable):
    """Base: a subclass gives `sample`."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        """A float64 host array of `shape`."""
        raise NotImplementedError


class Zeros(Initializer):
    """All zeros."""

    def __init__(self) -> None:
        pass

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return _host().zeros(shape, dtype=_host().float64)


class GlorotUniform(Initializer):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010)."""

    def __init__(self) -> None:
        pass

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        fan_in, fan_out = fans(shape)
        limit = math.sqrt(6.0 / max(fan_in + fan_out, 1))
        return (2.0 * draw.uniform(shape) - 1.0) * limit


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(inputs, outputs) of one unit: for a weight (..., in, out), each times the product of the leading lengths."""
    if len(shape) < 2:
        length = shape[0] if shape else 1
        return length, length
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def _host() -> Any:
    return host().xp
