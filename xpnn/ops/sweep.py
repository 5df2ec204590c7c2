"""How a window goes along one axis: what lies under it, sums over it, and their derivatives.

A window over several axes is a box, and a maximum or a sum over a box can be taken along one axis after the other.
"""

from __future__ import annotations

from typing import NamedTuple

from xpnn.dispatch import Array, device, namespace
from xpnn.ops.windows import Ints, Pairs, output_length, pad_spatial, spread

BLOCK = 32
"""The longest sum that is taken term by term; longer ones are taken in blocks, which is faster and rounds less."""


class Sweep(NamedTuple):
    """How the window goes along one axis of x, whose length is `length`."""

    axis: int
    length: int
    window: int
    stride: int
    padding: tuple[int, int]

    @property
    def places(self) -> int:
        """In how many places the window stops."""
        return output_length(self.length, self.window, self.stride, self.padding)

    def pad(self, x: Array, before: int, after: int, value: float = 0.0) -> Array:
        """x with `value` so many times before and after it along this axis."""
        return pad_spatial(x, [(0, 0)] * (self.axis - 1) + [(before, after)], value)


def sweeps_of(x: Array, window: Ints, stride: Ints, padding: Pairs) -> list[Sweep]:
    """One sweep for each spatial axis of x (batch, *spatial, channels)."""
    axes = range(1, x.ndim - 1)
    return [Sweep(*settings) for settings in zip(axes, x.shape[1:-1], window, stride, padding, strict=True)]


def taps_along(x: Array, sweep: Sweep, value: float = 0.0) -> list[Array]:
    """For each position in the window, what lies there in all places of the window; the padding is `value`."""
    padded = sweep.pad(x, *sweep.padding, value)
    reach = (sweep.places - 1) * sweep.stride + 1
    return [part(padded, sweep.axis, tap, tap + reach, sweep.stride) for tap in range(sweep.window)]


def add_taps(shares: list[Array], sweep: Sweep) -> Array:
    """The derivative of `taps_along`: the shares of each position in the window, added where they were taken from.

    Positions that are equal modulo the stride are added up together; then the `stride` results are interlaced.
    """
    xp = namespace(shares[0])
    axis = sweep.axis
    stride = sweep.stride if sweep.places > 1 else sweep.window
    rounds = (sweep.window - 1) // stride  # tap = phase + number * stride, with number from 0 to rounds
    phases: list[Array] = []
    for phase in range(stride):
        moved = [sweep.pad(share, number, rounds - number) for number, share in enumerate(shares[phase::stride])]
        phases.append(sum_of(moved) if moved else xp.zeros_like(phases[0]))
    padded = phases[0]
    if stride > 1:
        length = (sweep.places + rounds) * stride
        padded = xp.reshape(xp.stack(phases, axis=axis + 1), (*padded.shape[:axis], length, *padded.shape[axis + 1 :]))
    before, _ = sweep.padding
    end = min(before + sweep.length, padded.shape[axis])
    # Behind the last place of the window, x may have a rest that no window reaches.
    return sweep.pad(part(padded, axis, before, end), 0, before + sweep.length - end)


def starts_along(x: Array, sweep: Sweep) -> Array:
    """Where in x the window starts in each of its places; an array that broadcasts against the results."""
    xp = namespace(x)
    starts = xp.arange(sweep.places, dtype=xp.int32, device=device(x)) * sweep.stride - sweep.padding[0]
    return xp.reshape(starts, (sweep.places,) + (1,) * (x.ndim - sweep.axis - 1))


def counts_along(x: Array, sweep: Sweep) -> Array:
    """How many values of x, padding not counted, the window holds in each of its places."""
    xp = namespace(x)
    starts = starts_along(x, sweep)
    return xp.astype(xp.minimum(starts + sweep.window, sweep.length) - xp.maximum(starts, 0), x.dtype)


def window_sums(x: Array, sweep: Sweep) -> Array:
    """The sum in each place of the window along one axis."""
    if sweep.window <= BLOCK:
        return sum_of(taps_along(x, sweep))
    everywhere = _sums_of_neighbours(sweep.pad(x, *sweep.padding), sweep.axis, sweep.window)
    return part(everywhere, sweep.axis, 0, (sweep.places - 1) * sweep.stride + 1, sweep.stride)


def window_sums_gradient(dy: Array, sweep: Sweep) -> Array:
    """The derivative of `window_sums`: for each value, the sum of dy over the windows that it lies in."""
    if sweep.window <= BLOCK:
        return add_taps([dy] * sweep.window, sweep)
    starts = spread(dy, (1,) * (sweep.axis - 1) + (sweep.stride,))
    reach = sweep.window - 1
    before, _ = sweep.padding
    rest = max(before + sweep.length - reach - starts.shape[sweep.axis], 0)  # behind the last window
    everywhere = _sums_of_neighbours(sweep.pad(starts, reach, reach + rest), sweep.axis, sweep.window)
    return part(everywhere, sweep.axis, before, before + sweep.length)


def _sums_of_neighbours(x: Array, axis: int, count: int) -> Array:
    """At each position the sum of the `count` values from there on, from sums of 1, 2, 4, 8, ... values."""
    places = x.shape[axis] - count + 1
    terms: list[Array] = []
    power, sums, added = 1, x, 0
    while power <= count:
        if count & power:
            terms.append(part(sums, axis, added, added + places))
            added += power
        length = sums.shape[axis]
        if 2 * power <= count:
            sums = part(sums, axis, 0, length - power) + part(sums, axis, power, length)
        power *= 2
    return sum_of(terms)


def sum_along(x: Array, axis: int) -> Array:
    """The sum along an axis, in blocks: a plain sum rounds after each of its terms, and may lose 1e-3 in float32."""
    xp = namespace(x)
    length = x.shape[axis]
    if length <= BLOCK:
        return xp.sum(x, axis=axis)
    blocks = length // BLOCK
    shape = (*x.shape[:axis], blocks, BLOCK, *x.shape[axis + 1 :])
    sums = xp.sum(xp.reshape(part(x, axis, 0, blocks * BLOCK), shape), axis=axis + 1)
    if length % BLOCK:
        rest = xp.sum(part(x, axis, blocks * BLOCK, length), axis=axis, keepdims=True)
        sums = xp.concat([sums, rest], axis=axis)
    return sum_along(sums, axis)


def part(x: Array, axis: int, start: int, stop: int, step: int = 1) -> Array:
    """x[..., start:stop:step, ...] along `axis`."""
    return x[(slice(None),) * axis + (slice(start, stop, step), ...)]


def sum_of(terms: list[Array]) -> Array:
    """The sum of the terms, in pairs: its rounding grows with the logarithm of their number."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return sum_of(terms[:middle]) + sum_of(terms[middle:])
