"""Random words from Philox4x64-10, as numpy.random.Philox defines it (Salmon et al., SC 2011)."""

from __future__ import annotations

from typing import Any

import numpy as np


def random_words(seed: int, stream: int, step: int, count: int) -> Any:
    """`count` uint64 words of the stream with key (seed, stream), from counter (0, 0, step, 0) on."""
    key = np.array([seed, stream], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=np.array([0, 0, step, 0], dtype=np.uint64))
    return generator.random_raw(count)


def keep_mask(seed: int, stream: int, step: int, shape: tuple[int, ...], threshold: int) -> Any:
    """A bool array, True where the next 16-bit piece (low piece of each word first) is >= threshold."""
    count = 1
    for length in shape:
        count *= length
    words = random_words(seed, stream, step, -(-count // 4))
    return (words.astype("<u8", copy=False).view("<u2")[:count] >= threshold).reshape(shape)
