"""Random bits: Philox4x64-10, as `xpnn_backends.philox` and numpy.random.Philox give them, word for word.

Block number n of the stream (seed, stream) in a step is a function of (n, step) alone (Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011), so that threads need not wait for each other.
"""

import numpy as np
from numba.extending import register_jitable

from xpnn_backends.native.intrinsics import multiply_wide
from xpnn_backends.native.registry import kernel, share

_MULTIPLIER_0 = np.uint64(0xD2E7470EE14C6C93)
_MULTIPLIER_1 = np.uint64(0xCA5A826395121157)
_WEYL_0 = np.uint64(0x9E3779B97F4A7C15)  # 2^64 (sqrt(5) - 1) / 2
_WEYL_1 = np.uint64(0xBB67AE8584CAA73B)  # 2^64 (sqrt(3) - 1)

PIECES = 16
"""16-bit pieces in a block of four words: so many elements of a mask."""

_BLOCKS = 64
"""Blocks whose mask is made at a time: it is used while it is in the first-level cache."""


@register_jitable
def philox(seed, stream, step, block):
    """The four words of a block: ten rounds on the counter (block + 1, 0, step, 0)."""
    key0, key1 = np.uint64(seed), np.uint64(stream)
    # NumPy counts up before it makes the first block.
    a, b, c, d = np.uint64(block) + np.uint64(1), np.uint64(0), np.uint64(step), np.uint64(0)
    for _ in range(10):
        low0, high0 = multiply_wide(_MULTIPLIER_0, a)
        low1, high1 = multiply_wide(_MULTIPLIER_1, c)
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
        key0 += _WEYL_0
        key1 += _WEYL_1
    return a, b, c, d


@register_jitable
def compared(word, complement):
    """Four bytes, 1 where a 16-bit piece of the word is at least the threshold, else 0.

    Each second piece has room above it: added to 2^16 - threshold, it carries into bit 16 if it is large enough.
    """
    pieces = np.uint64(0x0000FFFF0000FFFF)
    bits = np.uint64(0x0000000100000001)
    even = (((word & pieces) + complement) >> np.uint64(16)) & bits
    odd = ((((word >> np.uint64(16)) & pieces) + complement) >> np.uint64(16)) & bits
    both = even | (odd << np.uint64(8))
    return (both | (both >> np.uint64(16))) & np.uint64(0x01010101)


@register_jitable
def make_mask(seed, stream, step, threshold, mask, first, last):
    """The elements of a mask that are those of the blocks of random words from `first` to `last` - 1."""
    complement = np.uint64(0x10000 - threshold) * np.uint64(0x0000000100000001)
    whole = min(last, mask.size // PIECES)
    # Eight elements at a time; the lowest byte comes first, as on all machines that Numba knows.
    eights = mask[first * PIECES : max(first, whole) * PIECES].view(np.uint64)
    for block in range(whole - first):
        a, b, c, d = philox(seed, stream, step, first + block)
        eights[2 * block] = compared(a, complement) | (compared(b, complement) << np.uint64(32))
        eights[2 * block + 1] = compared(c, complement) | (compared(d, complement) << np.uint64(32))
    if whole < last:
        words = philox(seed, stream, step, whole)
        rest = mask[whole * PIECES :]
        for i in range(rest.size):
            piece = (words[i // 4] >> np.uint64(i % 4 * 16)) & np.uint64(0xFFFF)
            rest[i] = piece >= np.uint64(threshold)


@kernel("int int number int b1:1", parallel=True)
def keep_mask(part, parts, seed, stream, step, threshold, mask):
    """mask[i] = (random 16 bits number i >= threshold)."""
    first, last = share((mask.size + PIECES - 1) // PIECES, part, parts)
    make_mask(seed, stream, np.int64(step), threshold, mask, first, last)


@kernel("int int number int number T:1 b1:1 T:1", parallel=True)
def dropout(part, parts, seed, stream, step, threshold, scale, x, mask, y):
    """The mask, and y = scale x where it is True, else 0."""
    first, last = share((mask.size + PIECES - 1) // PIECES, part, parts)
    for start in range(first, last, _BLOCKS):
        end = min(start + _BLOCKS, last)
        make_mask(seed, stream, np.int64(step), threshold, mask, start, end)
        here = slice(start * PIECES, min(end * PIECES, mask.size))
        multiply_where(x[here], mask[here], scale, y[here])


@register_jitable
def multiply_where(x, mask, scale, out):
    """out = scale x where the mask is True, else 0."""
    factor, zero = x.dtype.type(scale), x.dtype.type(0)
    for i in range(out.size):
        out[i] = x[i] * factor if mask[i] else zero


@kernel("T:1 b1:1 number T:1", parallel=True)
def masked(part, parts, x, mask, scale, out):
    """out = scale x where the mask is True, else 0."""
    first, last = share(x.size, part, parts, 16)
    multiply_where(x[first:last], mask[first:last], scale, out[first:last])
