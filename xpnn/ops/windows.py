"""What convolution and pooling share: a window that steps over the spatial axes of x (batch, *spatial, channels).

A window has `kernel` positions along an axis, `dilation` apart; they are called its taps. It starts at 0, at `stride`,
at 2 `stride`, ... of the padded input, as long as it lies inside. All values under one tap, in all places of the
window, are then one strided slice of x; a convolution is a sum over the taps, a pooling a maximum or a mean over them.
Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016.

Tuples of settings have one entry for each spatial axis; `padding` has pairs (before, after).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from xpnn.dispatch import Array, device, namespace
from xpnn.errors import ShapeError

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def span(kernel: int, dilation: int = 1) -> int:
    """How many positions a window reaches over, from its first tap to its last: dilation (kernel - 1) + 1."""
    return dilation * (kernel - 1) + 1


def output_length(length: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int = 1) -> int:
    """In how many places the window fits: floor((length + before + after - span) / stride) + 1; 0 if in none."""
    room = length + sum(padding) - span(kernel, dilation)
    return room // stride + 1 if room >= 0 else 0


def output_size(size: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints | None = None) -> Ints:
    """`output_length` for each axis.

    Raises:
        ShapeError: a setting does not have one entry for each axis, or is out of range; or the window is larger than
            the padded input.
    """
    dilation = (1,) * len(kernel) if dilation is None else dilation
    check_settings(len(size), kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    lengths = tuple(map(output_length, size, kernel, stride, padding, dilation))
    if 0 in lengths:
        padded = tuple(length + sum(pair) for length, pair in zip(size, padding, strict=True))
        reach = tuple(map(span, kernel, dilation))
        dilated = f" (kernel {kernel} with dilation {dilation})" if reach != tuple(kernel) else ""
        raise ShapeError(
            f"the window of {reach}{dilated} is larger than the padded input of {padded} (input {tuple(size)}, padding "
            f"{padding}); make the kernel or the dilation smaller, or the padding larger"
        )
    return lengths


def check_settings(axes: int, *, padding: Pairs, **settings: Ints) -> None:
    """Raise ShapeError unless each setting has one positive integer for each of the axes, padding pairs from 0 on."""
    for name, value in settings.items():
        if len(value) != axes or min(value, default=1) < 1:
            raise ShapeError(f"{name}={value} does not fit; give {axes} integers of at least 1, one per spatial axis")
    if len(padding) != axes or any(len(pair) != 2 or min(pair) < 0 for pair in padding):
        raise ShapeError(f"padding={padding} does not fit; give {axes} pairs (before, after) of integers of at least 0")


def same_padding(length: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) such that the window fits in ceil(length / stride) places; an odd zero goes after."""
    places = -(-length // stride)
    total = max((places - 1) * stride + span(kernel, dilation) - length, 0)
    return total // 2, total - total // 2


def taps(kernel: Ints) -> Iterator[Ints]:
    """The window's positions in C order: (0, 0), (0, 1), ..."""
    return itertools.product(*map(range, kernel))


def slice_under_tap(padded: Array, tap: Ints, size: Ints, stride: Ints, dilation: Ints | None = None) -> Array:
    """What lies under one tap in all places of the window: (batch, *padded spatial, ...) -> (batch, *size, ...).

    Args:
        padded: the padded input.
        tap: one of `taps(kernel)`.
        size: the number of places along each axis (`output_size`).
        stride: between the places.
        dilation: between the taps; 1 if not given.
    """
    dilation = (1,) * len(tap) if dilation is None else dilation
    slices = []
    for position, count, step, distance in zip(tap, size, stride, dilation, strict=True):
        start = position * distance
        slices.append(slice(start, start + (count - 1) * step + 1, step))
    return padded[(slice(None), *slices, ...)]


def pad_spatial(x: Array, padding: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """x with `value` on both sides of its spatial axes, so many times before and after."""
    xp = namespace(x)
    for axis, (before, after) in enumerate(padding, start=1):
        if before > 0:
            x = xp.concat([_filled_like(x, axis, before, value), x], axis=axis)
        if after > 0:
            x = xp.concat([x, _filled_like(x, axis, after, value)], axis=axis)
    return x


def _filled_like(x: Array, axis: int, length: int, value: float) -> Array:
    """An array of `value` that fits beside x along `axis`."""
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    return namespace(x).full(shape, value, dtype=x.dtype, device=device(x))


def crop_spatial(x: Array, cropping: Sequence[tuple[int, int]]) -> Array:
    """x without so many positions at both ends of its spatial axes; the inverse of `pad_spatial`."""
    if not any(before or after for before, after in cropping):
        return x
    lengths = x.shape[1 : 1 + len(cropping)]
    kept = [slice(before, length - after) for length, (before, after) in zip(lengths, cropping, strict=True)]
    return x[(slice(None), *kept, ...)]


def spread(x: Array, stride: Ints) -> Array:
    """The values of x `stride` apart, with zeros between them: an axis of length n gets length (n - 1) stride + 1.

    For stride 3: a b c -> a 0 0 b 0 0 c. This is the derivative of a strided slice.
    """
    xp = namespace(x)
    for axis, step in enumerate(stride, start=1):
        if step == 1:
            continue
        before, length, behind = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        zeros = xp.zeros((*before, length, step - 1, *behind), dtype=x.dtype, device=device(x))
        followed = xp.concat([xp.expand_dims(x, axis=axis + 1), zeros], axis=axis + 1)  # each value, then its zeros
        flat = xp.reshape(followed, (*before, length * step, *behind))
        x = crop_spatial(flat, [(0, 0)] * (axis - 1) + [(0, step - 1)])
    return x
