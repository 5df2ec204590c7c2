"""What a case of the matrix is: one op, with arguments to call it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xpnn import random
from xpnn.backend import host
from xpnn.dispatch import Array


@dataclass(frozen=True)
class Reals:
    """Random reals in [low, high], at least `margin` away from each number in `avoid` (kinks of the op).

    Drawn for the exact tier, they are multiples of 1/2 in the same range, kinks included.
    """

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    avoid: tuple[float, ...] = ()
    margin: float = 0.05

    def draw(self, seed: int, exact: bool) -> Array:
        xp = host().xp
        uniform = random.uniform(seed, random.stream(random.TESTING), 0, self.shape)
        values = self.low + (self.high - self.low) * uniform
        if exact:
            return xp.asarray(xp.round(values * 2.0) / 2.0)
        for point in self.avoid:
            offset = values - point
            away = xp.where(offset < 0, -self.margin, self.margin)
            values = xp.where(xp.abs(offset) < self.margin, point + away, values)
        return xp.asarray(values)  # NumPy makes scalars of arrays without axes


@dataclass(frozen=True)
class Distinct:
    """A random order of equally spaced reals: no two are equal or near (for ops with ties).

    Drawn for the exact tier, `ties` of them are equal each.
    """

    shape: tuple[int, ...]
    spacing: float = 0.25
    ties: int = 1

    def draw(self, seed: int, exact: bool) -> Array:
        xp = host().xp
        uniform = random.uniform(seed, random.stream(random.TESTING), 0, self.shape)
        flat = xp.reshape(uniform, (-1,))
        ranks = xp.argsort(xp.argsort(flat)) // (self.ties if exact else 1)
        return xp.reshape((ranks - flat.shape[0] // 2) * self.spacing, self.shape)


@dataclass(frozen=True)
class Probabilities:
    """Random rows of probabilities: positive, with sum 1 along the last axis, none below about 0.05 / classes."""

    shape: tuple[int, ...]

    def draw(self, seed: int, exact: bool) -> Array:
        xp = host().xp
        raw = 0.05 + random.uniform(seed, random.stream(random.TESTING), 0, self.shape)
        return raw / xp.sum(raw, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Integers:
    """Random int64 numbers from low to high - 1: labels, indices."""

    shape: tuple[int, ...]
    high: int
    low: int = 0

    def draw(self, seed: int, exact: bool) -> Array:
        xp = host().xp
        uniform = random.uniform(seed, random.stream(random.TESTING), 0, self.shape)
        return xp.astype(xp.floor(self.low + (self.high - self.low) * uniform), xp.int64)


@dataclass(frozen=True)
class Booleans:
    """Random bools, three of four True: masks. Those in `never` (an index of the first axes each) are False."""

    shape: tuple[int, ...]
    never: tuple[tuple[int, ...], ...] = ()

    def draw(self, seed: int, exact: bool) -> Array:
        xp = host().xp
        mask = random.uniform(seed, random.stream(random.TESTING), 0, self.shape) < 0.75
        for index in self.never:
            mask[index] = False
        return xp.asarray(mask, dtype=xp.bool)


@dataclass(frozen=True)
class Values:
    """Exactly these numbers, floats or integers."""

    values: Any
    dtype: str = "float64"

    def draw(self, seed: int, exact: bool) -> Array:
        return host().xp.asarray(self.values, dtype=getattr(host().xp, self.dtype))


ARRAY_SPECS = (Reals, Distinct, Probabilities, Integers, Booleans, Values)


@dataclass(frozen=True)
class Case:
    """One call of an op, checked in every tier that applies.

    Attributes:
        op: the op's name.
        arguments: array specifications and plain values, in the order of the op's signature.
        options: keyword arguments.
        label: tells several cases of one op apart.
        exact: True if on small dyadic numbers every result is exact, so that all backends must agree bit for bit.
        terms: the length of the longest sum behind one number of the result; rounding may grow with it.
        roundings: how many units of eps the rest of the formula may lose, relative to the largest result.
        differentiable: False if the op has no derivative at all.
    """

    op: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    exact: bool = False
    terms: int = 1
    roundings: float = 16.0
    differentiable: bool = True

    @property
    def id(self) -> str:
        """The case's name in reports."""
        return f"{self.op}-{self.label}" if self.label else self.op

    @property
    def bound(self) -> float:
        """The largest error that is accepted, in units of eps of the dtype, relative to the largest result."""
        return self.roundings + 2.0 * self.terms

    def draw(self, exact: bool = False) -> list[Any]:
        """The arguments, with host arrays (float64 or int64) for the array specifications."""
        return [
            argument.draw(position + 1, exact) if isinstance(argument, ARRAY_SPECS) else argument
            for position, argument in enumerate(self.arguments)
        ]
