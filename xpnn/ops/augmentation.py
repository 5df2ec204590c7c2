"""Random changes of images and series, one for each sample: the same ones on every backend."""

from __future__ import annotations

import math

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.random_mask import random_mask
from xpnn.random import RandomKey

_BITS = 16
"""A random integer below n is floor(n u / 2**16) with u of so many bits."""


@op
def random_flip(x: Array, key: RandomKey, rate: float, *, axis: int = -2) -> tuple[Array, Vjp]:
    """Each sample is mirrored along `axis` with probability `rate` (to the nearest 1/65536), else left as it is.

    Args:
        x: (batch, ...).
        key: which random bits to use; the same key flips the same samples on every backend.
        rate: in [0, 1).
        axis: any but that of the batch; -2 is the width of images (batch, height, width, channels).

    Returns:
        y of x's shape, and vjp(dy) -> (dx,): dy with the same samples mirrored.

    Raises:
        ShapeError: x has no such axis besides that of the batch.
    """
    if not -x.ndim < axis < x.ndim or axis == 0:
        raise ShapeError(f"random_flip: axis {axis} is none of those of one sample in x of shape {tuple(x.shape)}")
    xp = namespace(x)
    kept, _ = random_mask(_one_for_each_sample(x), key, rate)
    backwards = x.shape[axis] - 1 - xp.arange(x.shape[axis], dtype=xp.int32, device=device(x))

    def flip(values: Array) -> Array:
        return xp.where(kept, values, xp.take(values, backwards, axis=axis))

    def vjp(dy: Array) -> tuple[Array]:
        return (flip(dy),)

    return flip(x), vjp


@op
def random_shift(x: Array, key: RandomKey, *, largest: tuple[int, ...]) -> tuple[Array, Vjp]:
    """Each sample is moved along its spatial axes by a whole number of steps of its own; what comes in is zero.

    That is a crop at a random place of x padded with zeros: y[i] = x[i + s], and 0 where i + s lies outside. Each s
    is drawn from -largest to largest, all of them equally probable (to 1/65536).

    Args:
        x: (batch, *spatial, channels), as many spatial axes as `largest` has numbers.
        key: which random bits to use; the same key gives the same shifts on every backend.
        largest: for each spatial axis the largest shift, from 0 on and at most 16383.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,): dy moved back, dx[i] = dy[i - s].

    Raises:
        ShapeError: x has not that many axes.
    """
    if x.ndim != len(largest) + 2:
        raise ShapeError(
            f"random_shift: x has shape {tuple(x.shape)}; with {len(largest)} shifts it wants "
            f"{len(largest) + 2} axes, (batch, *spatial, channels)"
        )
    shifts = _random_shifts(x, key, largest)

    def vjp(dy: Array) -> tuple[Array]:
        return (_moved(dy, [-shift for shift in shifts]),)

    return _moved(x, shifts), vjp


def _one_for_each_sample(x: Array) -> Array:
    """Zeros of shape (batch, 1, 1, ...), as many axes as x has."""
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return namespace(x).zeros(shape, dtype=x.dtype, device=device(x))


def _random_shifts(x: Array, key: RandomKey, largest: tuple[int, ...]) -> list[Array]:
    """For each spatial axis integers from -largest to largest, of shape (batch, 1, 1, ...) without the channels."""
    xp = namespace(x)
    shape = (x.shape[0], len(largest), _BITS)
    bits, _ = random_mask(xp.zeros(shape, dtype=x.dtype, device=device(x)), key, 0.5)
    powers = xp.asarray([1 << place for place in range(_BITS)], dtype=xp.int32, device=device(x))
    # A bool array and integers: where instead of a product, which the standard does not define for them.
    words = xp.sum(xp.where(bits, powers, xp.zeros_like(powers)), axis=-1, dtype=powers.dtype)
    shifts = []
    for axis, limit in enumerate(largest):
        drawn = (words[:, axis, ...] * (2 * limit + 1)) // (1 << _BITS) - limit
        shifts.append(xp.reshape(drawn, (x.shape[0],) + (1,) * len(largest)))
    return shifts


def _moved(x: Array, shifts: list[Array]) -> Array:
    """x[i + s] along each spatial axis, and 0 where i + s lies outside: one gather of rows of channels."""
    xp = namespace(x)
    batch, *lengths, channels = x.shape
    if 0 in x.shape:
        return x
    axes = len(lengths)
    samples = xp.arange(batch, dtype=shifts[0].dtype, device=device(x))
    row = xp.reshape(samples, (batch,) + (1,) * axes)
    inside = None
    for axis, (length, shift) in enumerate(zip(lengths, shifts, strict=True)):
        places = xp.arange(length, dtype=shift.dtype, device=device(x))
        wanted = xp.reshape(places, (1,) * (axis + 1) + (length,) + (1,) * (axes - axis - 1)) + shift
        last = xp.full_like(wanted, length - 1)
        nearest = xp.minimum(xp.maximum(wanted, xp.zeros_like(wanted)), last)
        row = row * length + nearest
        fits = wanted == nearest
        inside = fits if inside is None else inside & fits
    rows = xp.reshape(x, (batch * math.prod(lengths), channels))
    gathered = xp.reshape(xp.take(rows, xp.reshape(row, (-1,)), axis=0), tuple(x.shape))
    return xp.where(xp.expand_dims(inside, axis=-1), gathered, xp.zeros_like(gathered))
