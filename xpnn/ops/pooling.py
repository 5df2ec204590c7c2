"""Pooling: the largest or the mean value in each place of a window, over x (batch, *spatial, channels).

A window is a box, so that its maximum is the maximum along one axis of the maxima along the next, and its sum likewise:
each axis is pooled by itself, which takes a + b steps for a window of a b positions. All spatial axes are treated
alike, however many there are.

Tuples of settings have one entry for each spatial axis; `padding` has pairs (before, after).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.sweep import (
    Sweep,
    add_taps,
    counts_along,
    part,
    starts_along,
    sum_along,
    sum_of,
    sweeps_of,
    taps_along,
    window_sums,
    window_sums_gradient,
)
from xpnn.ops.windows import Ints, Pairs, output_size


@op
def max_pool(x: Array, *, window: Ints, stride: Ints, padding: Pairs) -> tuple[Array, Vjp]:
    """The largest value in each place of the window, for each channel.

    The derivative passes dy to the first maximum of each window, in C order; a value that is the maximum of several
    windows gets the sum. A NaN counts as larger than any number. Padding never wins, not even against minus infinity.
    Source: Zhou and Chellappa, "Computation of optical flow using a neural network", ICNN 1988.

    Args:
        x: (batch, *spatial, channels).
        window: the size of the window.
        stride: between its places.
        padding: (before, after) for each axis, each smaller than the window.

    Returns:
        y (batch, *places, channels) with floor((length + before + after - window) / stride) + 1 places along an axis,
        and vjp(dy) -> (dx,).

    Raises:
        ShapeError: the settings do not fit x, the window is larger than the padded input, or a window would hold
            nothing but padding.
    """
    check_pooling("max_pool", x, window, stride, padding)
    y = x
    vjps: list[Vjp] = []
    # The last axis first: the first maximum of the rows, each with its own first maximum, is the first in C order.
    for sweep in reversed(sweeps_of(x, window, stride, padding)):
        y, vjp_along = _max_along(y, sweep)
        vjps.append(vjp_along)

    def vjp(dy: Array) -> tuple[Array]:
        for vjp_along in reversed(vjps):
            (dy,) = vjp_along(dy)
        return (dy,)

    return y, vjp


def _max_along(x: Array, sweep: Sweep) -> tuple[Array, Vjp]:
    """`max_pool` along one axis."""
    xp = namespace(x)
    taps = taps_along(x, sweep, -math.inf)
    y = taps[0]
    for tap in taps[1:]:
        y = xp.maximum(y, tap)
    starts = None if sweep.padding == (0, 0) else starts_along(x, sweep)

    def vjp(dy: Array) -> tuple[Array]:
        left = dy  # of the windows whose maximum has not come yet
        shares: list[Array] = []
        for number, tap in enumerate(taps[:-1]):
            found = (tap == y) | (tap != tap)  # a NaN is not even equal to itself
            if starts is not None:
                found = found & (starts >= -number) & (starts < sweep.length - number)
            shares.append(xp.where(found, left, 0.0))
            left = xp.where(found, 0.0, left)
        shares.append(left)  # no window is all padding: what has found no maximum before finds it under the last tap
        return (add_taps(shares, sweep),)

    return y, vjp


@op
def average_pool(
    x: Array, *, window: Ints, stride: Ints, padding: Pairs, count_padding: bool = True
) -> tuple[Array, Vjp]:
    """The mean value in each place of the window, for each channel.

    Each value gets an equal share of the dy of every window that it lies in. The values are multiplied by a power of 2
    first, which changes no digit and keeps their sum from overflowing.

    Args:
        x: (batch, *spatial, channels).
        window: the size of the window.
        stride: between its places.
        padding: (before, after) for each axis, each smaller than the window.
        count_padding: True if the mean is over the whole window, with zeros for the padding; False if it is over the
            values of x in the window.

    Returns:
        y (batch, *places, channels) with floor((length + before + after - window) / stride) + 1 places along an axis,
        and vjp(dy) -> (dx,).

    Raises:
        ShapeError: the settings do not fit x, the window is larger than the padded input, or a window would hold
            nothing but padding.
    """
    check_pooling("average_pool", x, window, stride, padding)
    scale = _safe_scale(math.prod(window))
    total = x * scale
    count: Any = math.prod(window)
    sweeps = sweeps_of(x, window, stride, padding)
    if not count_padding and any(sweep.padding != (0, 0) for sweep in sweeps):
        count = 1.0
        for sweep in sweeps:
            count = count * counts_along(x, sweep)
    for sweep in sweeps:
        total = window_sums(total, sweep)
    y = total / (count * scale)

    def vjp(dy: Array) -> tuple[Array]:
        dx = dy / count
        for sweep in sweeps:
            dx = window_sums_gradient(dx, sweep)
        return (dx,)

    return y, vjp


@op
def adaptive_average_pool(x: Array, *, size: Ints) -> tuple[Array, Vjp]:
    """Means over regions that divide the input evenly, however large it is, for each channel.

    Along an axis of length n, region i of s holds the positions from floor(i n / s) up to, and without,
    ceil((i + 1) n / s). Where s does not divide n, neighbours may overlap by one position; where s is larger than n,
    positions repeat.
    Source: as in PyTorch (AdaptiveAvgPool2d); for He, Zhang, Ren and Sun, "Spatial pyramid pooling", ECCV 2014, the
    regions are the same.

    Args:
        x: (batch, *spatial, channels).
        size: how many regions there are along each axis.

    Returns:
        y (batch, *size, channels), and vjp(dy) -> (dx,).

    Raises:
        ShapeError: size does not have one positive integer for each spatial axis of x, or such an axis is empty.
    """
    _check_spatial("adaptive_average_pool", x, len(size))
    if min(size, default=1) < 1:
        raise ShapeError(f"adaptive_average_pool: size={size} does not fit; give integers of at least 1")
    lengths = tuple(x.shape[1:-1])
    if all(length % regions == 0 for length, regions in zip(lengths, size, strict=True)):
        even = tuple(length // regions for length, regions in zip(lengths, size, strict=True))
        return average_pool(x, window=even, stride=even, padding=((0, 0),) * len(even))
    y = x
    vjps: list[Vjp] = []
    for axis, regions in enumerate(size, start=1):
        y, vjp_along = _adaptive_average_along(y, axis, regions)
        vjps.append(vjp_along)

    def vjp(dy: Array) -> tuple[Array]:
        for vjp_along in reversed(vjps):
            (dy,) = vjp_along(dy)
        return (dy,)

    return y, vjp


def _adaptive_average_along(x: Array, axis: int, size: int) -> tuple[Array, Vjp]:
    """`adaptive_average_pool` along one axis."""
    xp = namespace(x)
    length = x.shape[axis]
    regions = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
    means = [_mean_along(part(x, axis, start, stop), axis) for start, stop in regions]
    y = xp.concat(means, axis=axis)

    def vjp(dy: Array) -> tuple[Array]:
        # Between two of these cuts, all positions lie in the same regions and get the same gradient.
        cuts = sorted({cut for region in regions for cut in region})
        pieces: list[Array] = []
        for start, stop in itertools.pairwise(cuts):
            around = [i for i, region in enumerate(regions) if region[0] <= start and stop <= region[1]]
            shares = [part(dy, axis, i, i + 1) / (regions[i][1] - regions[i][0]) for i in around]
            shape = (*x.shape[:axis], stop - start, *dy.shape[axis + 1 :])
            pieces.append(xp.broadcast_to(sum_of(shares), shape))
        return (xp.concat(pieces, axis=axis),)

    return y, vjp


@op
def global_max_pool(x: Array, mask: Array | None = None) -> tuple[Array, Vjp]:
    """The largest value of each channel over all positions: (batch, *spatial, channels) -> (batch, channels).

    The derivative passes dy to the first maximum, in C order. A NaN counts as larger than any number.

    Args:
        x: (batch, *spatial, channels).
        mask: (batch, *spatial), True for the positions that count, or None for all. A sample in which none counts
            gives 0.

    Returns:
        y (batch, channels), and vjp(dy) -> (dx, None).

    Raises:
        ShapeError: x has no positions, or the mask has another shape.
    """
    xp = namespace(x)
    rows, counting = _rows("global_max_pool", x, mask)
    if counting is not None:
        rows = xp.where(counting, rows, -math.inf)
    largest = xp.max(rows, axis=1)
    something = None if counting is None else xp.any(counting, axis=1)
    y = largest if something is None else xp.where(something, largest, 0.0)

    def vjp(dy: Array) -> tuple[Array, None]:
        best = rows == xp.expand_dims(largest, axis=1)
        best = best | (rows != rows)
        if counting is not None:
            best = best & counting
        first = xp.argmax(xp.astype(best, xp.int32), axis=1, keepdims=True)
        numbers = xp.arange(rows.shape[1], dtype=first.dtype, device=device(x))
        chosen = xp.reshape(numbers, (1, -1, 1)) == first
        if counting is not None:
            chosen = chosen & counting  # in a sample in which nothing counts, argmax gives 0
        return xp.reshape(xp.where(chosen, xp.expand_dims(dy, axis=1), 0.0), x.shape), None

    return y, vjp


@op
def global_average_pool(x: Array, mask: Array | None = None) -> tuple[Array, Vjp]:
    """The mean of each channel over all positions: (batch, *spatial, channels) -> (batch, channels).

    Source: Lin, Chen and Yan, "Network in network", ICLR 2014.

    Args:
        x: (batch, *spatial, channels).
        mask: (batch, *spatial), True for the positions that count, or None for all. A sample in which none counts
            gives 0.

    Returns:
        y (batch, channels), and vjp(dy) -> (dx, None).

    Raises:
        ShapeError: x has no positions, or the mask has another shape.
    """
    xp = namespace(x)
    rows, counting = _rows("global_average_pool", x, mask)
    positions = rows.shape[1]
    scale = _safe_scale(positions)
    count: Any = positions
    if counting is not None:
        rows = xp.where(counting, rows, 0.0)
        count = xp.maximum(xp.sum(xp.astype(counting, x.dtype), axis=1), 1.0)
    y = sum_along(rows * scale, 1) / (count * scale)

    def vjp(dy: Array) -> tuple[Array, None]:
        dx = xp.broadcast_to(xp.expand_dims(dy / count, axis=1), rows.shape)
        if counting is not None:
            dx = xp.where(counting, dx, 0.0)
        return xp.reshape(dx, x.shape), None

    return y, vjp


def _check_spatial(name: str, x: Array, axes: int) -> None:
    """Raise ShapeError unless x has so many spatial axes, none of them empty."""
    if x.ndim != axes + 2 or 0 in x.shape[1:-1]:
        raise ShapeError(
            f"{name}: x has shape {tuple(x.shape)}; the settings want (batch, *spatial, channels) with {axes} spatial "
            "axes, none of them empty"
        )


def check_pooling(name: str, x: Array, window: Ints, stride: Ints, padding: Pairs) -> None:
    """Raise ShapeError unless the settings fit x and every window holds a value of x."""
    _check_spatial(name, x, len(window))
    try:
        output_size(tuple(x.shape[1:-1]), window, stride, padding)
    except ShapeError as error:
        raise ShapeError(f"{name}: {error}") from None
    if any(max(pair) >= length for pair, length in zip(padding, window, strict=True)):
        raise ShapeError(
            f"{name}: with padding {padding}, a window of {window} would hold nothing but padding; give less padding "
            "than the window is long"
        )


def _rows(name: str, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """x as (batch, positions, channels), and the mask as (batch, positions, 1)."""
    if x.ndim < 3 or 0 in x.shape[1:-1]:
        raise ShapeError(f"{name}: x has shape {tuple(x.shape)}; wants (batch, *spatial, channels), spatial not empty")
    xp = namespace(x)
    positions = math.prod(x.shape[1:-1])
    rows = xp.reshape(x, (x.shape[0], positions, x.shape[-1]))
    if mask is None:
        return rows, None
    if tuple(mask.shape) != tuple(x.shape[:-1]):
        raise ShapeError(
            f"{name}: the mask has shape {tuple(mask.shape)}, x {tuple(x.shape)}; give one truth value for each "
            "position of each sample"
        )
    return rows, xp.reshape(mask, (x.shape[0], positions, 1))


def _safe_scale(count: int) -> float:
    """A power of 2 such that `count` numbers that are multiplied by it have a sum which does not overflow."""
    return 0.5 ** (count - 1).bit_length()


def _mean_along(x: Array, axis: int) -> Array:
    """The mean along an axis, which stays with length 1; like `average_pool`, safe from overflow."""
    xp = namespace(x)
    count = x.shape[axis]
    scale = _safe_scale(count)
    return xp.expand_dims(sum_along(x * scale, axis), axis=axis) / (count * scale)
