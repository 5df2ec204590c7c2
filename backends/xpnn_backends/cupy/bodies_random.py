"""Random masks and dropout on the GPU, with the bits that `xpnn_backends.philox` gives on the host."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn.random import RandomKey, mask_threshold
from xpnn_backends.cupy.kernels import blocks_for, generic, in_order, launch, number

FLOATS = ("float32", "float64", "float16", "bfloat16")
_TILE_THREADS = 128
_TILE = 16 * _TILE_THREADS
"""How many elements a block of `dropout` does at a time."""

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("random", "random_words", ()),
    ("random", "random_mask", ()),
    *[("random", "dropout", (dtype,)) for dtype in FLOATS],
]


def _key_arguments(key: RandomKey) -> tuple[Any, ...]:
    return np.uint64(key.seed), np.uint64(key.stream), *number(key.step)


def random_words(seed: int, stream: int, step: Any, count: int, first: int = 0) -> Any:
    """`count` words as `philox.random_words` gives them, from block of four number `first` on; for tests."""
    words = cupy.empty(count, dtype=cupy.uint64)
    if count:
        blocks = blocks_for(-(-count // 4))
        arguments = (words, count, *_key_arguments(RandomKey(seed, stream, step)), np.uint64(first))
        launch("random", "random_words", (), blocks, 256, arguments)
    return words


@handles_half
def random_mask(x: Any, key: RandomKey, rate: float) -> tuple[Any, Any]:
    """The mask is made where it is needed: nothing comes from the host."""
    mask = cupy.empty(x.shape, dtype=cupy.bool_)
    if mask.size:
        arguments = (mask, mask.size, *_key_arguments(key), np.uint32(mask_threshold(rate)))
        launch("random", "random_mask", (), blocks_for(-(-mask.size // 16)), 256, arguments)
    return mask, lambda dy: (None,)


@handles_half
def dropout(x: Any, key: RandomKey, rate: float) -> tuple[Any, Any]:
    """Forward and backward are one kernel, which draws the same bits again instead of keeping the mask."""
    if x.dtype.name not in FLOATS:
        return generic("dropout")(x, key, rate)
    dtype = x.dtype
    threshold = mask_threshold(rate)
    scale = 65536.0 / (65536 - threshold)

    def scaled_and_masked(values: Any) -> Any:
        values = in_order(values)
        result = cupy.empty(values.shape, dtype=values.dtype)
        if values.size:
            arguments = (values, result, values.size, *_key_arguments(key), np.uint32(threshold), scale)
            blocks = blocks_for(values.size, _TILE)
            launch("random", "dropout", (values.dtype.name,), blocks, _TILE_THREADS, arguments)
        return result

    def vjp(dy: Any) -> tuple[Any]:
        return (scaled_and_masked(dy).astype(dtype, copy=False),)

    return scaled_and_masked(x), vjp


BODIES: dict[str, Body] = {"random_mask": random_mask, "dropout": dropout}
