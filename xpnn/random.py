"""Random numbers that are the same on every backend.

They are counter-based: the n-th number is a function of (seed, stream, step, n) alone, by Philox4x64-10 (Salmon,
Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as numpy.random.Philox defines it.
A stream is a purpose and an index within it: parameter number, epoch, or number of the draw in a forward pass.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from xpnn.backend import host
from xpnn.dispatch import Array
from xpnn.errors import ConfigError

INITIALIZATION = 0
SHUFFLE = 1
DROPOUT = 2
SPLIT = 3
TESTING = 4
SAMPLING = 5


class RandomKey(NamedTuple):
    """Names a block of random numbers: seed and stream are ints, the step may be an array under jit."""

    seed: int
    stream: int
    step: Any


def stream(purpose: int, index: int = 0) -> int:
    """The stream number of draw number `index` (below 2**32) for a purpose."""
    return (purpose << 32) | index


def check_seed(seed: Any) -> int:
    """The seed as an int in [0, 2**64). Raises ConfigError for anything else."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise ConfigError(f"seed={seed!r} is a {type(seed).__name__}; give an integer from 0 to 2**64 - 1") from None
    if not 0 <= number < 2**64:
        raise ConfigError(f"seed={number} is out of range; give an integer from 0 to 2**64 - 1")
    return number


def mask_threshold(rate: float) -> int:
    """The 16-bit integer t with P(random 16 bits < t) = t / 65536 nearest to `rate`, which is less than 1."""
    return min(round(rate * 65536), 65535)


def uniform(seed: int, stream: int, step: int, shape: tuple[int, ...]) -> Array:
    """A host array of float64, uniform on the open interval (0, 1): (floor(word / 2**12) + 1/2) / 2**52."""
    count = 1
    for length in shape:
        count *= length
    backend = host()
    xp = backend.xp
    words = backend.random_words(seed, stream, step, count)
    fractions = (xp.astype(words >> 12, xp.float64) + 0.5) * 2.0**-52
    return xp.reshape(fractions, shape)


def permutation(seed: int, stream: int, step: int, count: int) -> Array:
    """A host array of int64: the numbers 0 to count - 1 in random order (a stable sort of random words)."""
    backend = host()
    xp = backend.xp
    words = backend.random_words(seed, stream, step, count)
    order = xp.argsort(words)  # several times as fast as a stable sort, and the same unless two words are equal
    ascending = words[order]
    if bool(xp.any(ascending[1:] == ascending[:-1])):
        order = xp.argsort(words, stable=True)
    return order
