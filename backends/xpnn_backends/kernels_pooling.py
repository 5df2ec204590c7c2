"""Kernels of max-pooling. See `kernels` for what a kernel is.

Images are (batch, height, width, channels); a sequence is an image of one row. Settings are, down and across: how many
places there are, the window, the stride, and the padding before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from xpnn_backends.kernels_activations import BITS
from xpnn_backends.recording import Kernel, RecordedArray

_BLOCK = 1 << 16
"""Numbers of y that are worked on together, in the second-level cache."""


def _taps(x: Any, settings: tuple[int, ...], fill: Any) -> tuple[Any, Iterator[Any]]:
    """(x with padding, the strided view of it under each position of the window)."""
    down, across, window_down, window_across, stride_down, stride_across, before_down, before_across = settings
    height = max((down - 1) * stride_down + window_down, before_down + x.shape[1])
    width = max((across - 1) * stride_across + window_across, before_across + x.shape[2])
    padded = x
    if (height, width) != x.shape[1:3]:
        padded = np.full((x.shape[0], height, width, x.shape[3]), fill, x.dtype)
        padded[:, before_down : before_down + x.shape[1], before_across : before_across + x.shape[2]] = x
    rows = [slice(i, i + (down - 1) * stride_down + 1, stride_down) for i in range(window_down)]
    columns = [slice(j, j + (across - 1) * stride_across + 1, stride_across) for j in range(window_across)]
    return padded, (padded[:, row, column] for row, column in itertools.product(rows, columns))


def _max_pool(x: Any, *rest: Any) -> None:
    *settings, y = rest
    _, taps = _taps(x, tuple(settings), -np.inf)
    np.copyto(y, next(taps))
    for tap in taps:
        np.maximum(y, tap, out=y)


def _gradient(x: Any, y: Any, dy: Any, *rest: Any) -> None:
    *settings, dx = rest
    sizes = tuple(settings)
    together = max(1, _BLOCK * len(y) // max(y.size, 1))
    for start in range(0, len(y), together):
        here = slice(start, start + together)
        _share_out(x[here], y[here], dy[here], sizes, dx[here])


def _share_out(x: Any, y: Any, dy: Any, sizes: tuple[int, ...], dx: Any) -> None:
    """Each dy goes to the first position under its window that holds the largest value.

    What a tap sees is copied first: runs of a few channels are slow to work on, and this way there is one such step.
    The bits of dy are given or kept: NumPy's `where` takes ten times as long.
    """
    window, stride = sizes[2:4], sizes[4:6]
    padded, taps = _taps(x, sizes, -np.inf)
    inside = None
    if padded is not x:
        # Padding never wins, not even where all of a window is minus infinity.
        inside = _taps(np.ones((1, *x.shape[1:3], 1), bool), sizes, False)[1]
    overlap = stride[0] < window[0] or stride[1] < window[1]
    whole = dx if padded is x else np.empty(padded.shape, x.dtype)
    whole[...] = 0.0
    _, targets = _taps(whole, (*sizes[:6], 0, 0), 0.0)
    left, seen, share = dy.copy(), np.empty_like(y), np.empty_like(y)
    mask = np.empty(y.shape, BITS[y.itemsize])
    left_bits, share_bits = left.view(mask.dtype), share.view(mask.dtype)
    for tap, target in zip(taps, targets, strict=True):
        np.copyto(seen, tap)
        found = seen == y
        np.logical_or(found, seen != seen, out=found)
        if inside is not None:
            np.logical_and(found, next(inside), out=found)
        np.copyto(mask, found)
        np.negative(mask, out=mask)
        np.bitwise_and(left_bits, mask, out=share_bits)
        np.bitwise_xor(left_bits, share_bits, out=left_bits)
        if overlap:
            np.add(target, share, out=target)
        else:
            np.copyto(target, share)
    if whole is not dx:
        top, start = sizes[6:]
        dx[...] = whole[:, top : top + x.shape[1], start : start + x.shape[2]]


def _native(name: str, images: int) -> Any:
    """The native kernel gets the lengths of the image besides."""

    def native(*operands: RecordedArray) -> Any:
        return name, (*operands[:images], *operands[0].shape, *operands[images:])

    return native


MAX_POOL = Kernel("max_pool", _max_pool, _native("max_pool", 1))
"""max_pool(x, *settings, y)."""

MAX_POOL_GRADIENT = Kernel("max_pool_gradient", _gradient, _native("max_pool_gradient", 3))
"""max_pool_gradient(x, y, dy, *settings, dx)."""
