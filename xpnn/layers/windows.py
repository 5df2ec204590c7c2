"""How layers with windows (convolution, pooling) and layers that pad or crop understand their settings."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from xpnn.config import check_integer
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Layer, Shape
from xpnn.ops.windows import Ints, Pairs, same_padding

Setting = int | tuple[int, ...]
"""One integer for all spatial axes, or one for each."""

Padding = str | int | tuple[Any, ...]
"""A name, one integer for all sides, or one integer or pair (before, after) for each spatial axis."""

_SAMPLES = {1: "(time, channels)", 2: "(height, width, channels)", 3: "(depth, height, width, channels)"}


def split_shape(layer: Layer, input_shape: Shape, axes: int) -> tuple[Shape, int]:
    """The spatial lengths and the number of channels of a sample.

    Raises:
        ShapeError: a sample does not have so many spatial axes and one of channels, or a spatial axis is empty.
    """
    several = any(isinstance(part, tuple) for part in input_shape)
    if several or len(input_shape) != axes + 1 or 0 in input_shape[:-1]:
        raise ShapeError(
            f"got samples of shape {input_shape}, wants {_SAMPLES[axes]}, channels last, with at least one position; "
            "reshape them, or use the layer for their number of axes",
            layer,
        )
    return input_shape[:-1], input_shape[-1]


def as_tuples(setting: Any) -> Any:
    """Lists as tuples, and NumPy's integers as Python's: so settings that mean the same are equal, and can be saved."""
    if isinstance(setting, (list, tuple)):
        return tuple(map(as_tuples, setting))
    return int(setting) if isinstance(setting, Integral) else setting


def per_axis(name: str, value: Any, axes: int, minimum: int = 1) -> Ints:
    """One integer for each of the spatial axes: an integer stands for all of them.

    Raises:
        ConfigError: the setting `name` is neither an integer nor a sequence of one for each axis, or one is smaller
            than `minimum`.
    """
    if not isinstance(value, (tuple, list)):
        return (check_integer(name, value, minimum),) * axes
    if len(value) != axes:
        raise ConfigError(f"{name}={value!r} makes no sense; give one integer, or {axes}, one for each spatial axis")
    return tuple(check_integer(f"{name}[{axis}]", number, minimum) for axis, number in enumerate(value))


def pairs_per_axis(name: str, value: Any, axes: int) -> Pairs:
    """One pair (before, after) for each of the spatial axes, from a setting such as a padding.

    It is given as an integer, for both sides of all axes; as one integer for each axis, for both its sides; or as one
    pair for each axis. With one axis, the pair may stand alone: (before, after).

    Raises:
        ConfigError: the setting `name` is none of these, or a number is negative.
    """
    if not isinstance(value, (tuple, list)):
        return ((check_integer(name, value, 0),) * 2,) * axes
    entries = list(value)
    if axes == 1 and len(entries) == 2 and not any(isinstance(entry, (tuple, list)) for entry in entries):
        entries = [entries]
    pairs: list[tuple[int, int]] = []
    for axis, entry in enumerate(entries):
        both = entry if isinstance(entry, (tuple, list)) else (entry, entry)
        if len(both) == 2:
            before, after = (check_integer(f"{name}[{axis}]", number, 0) for number in both)
            pairs.append((before, after))
    if len(pairs) != axes or len(entries) != axes:
        raise ConfigError(
            f"{name}={value!r} makes no sense; give an integer, or one integer or pair (before, after) for each of the "
            f"{axes} spatial axes"
        )
    return tuple(pairs)


def padding_setting(name: str, value: Any, axes: int, keywords: tuple[str, ...] = ("valid", "same")) -> str | Pairs:
    """The padding of a layer with windows: one of `keywords`, or pairs (before, after).

    Raises:
        ConfigError: the setting `name` is another string, or nothing that `pairs_per_axis` understands.
    """
    if isinstance(value, str):
        if value not in keywords:
            known = ", ".join(map(repr, keywords))
            raise ConfigError(f"{name}={value!r} is unknown; give {known}, an integer, or pairs (before, after)")
        return value
    return pairs_per_axis(name, value, axes)


def resolve_padding(
    setting: str | Pairs, size: Ints, kernel: Ints, stride: Ints, dilation: Ints | None = None
) -> Pairs:
    """The pairs that a `padding_setting` means for an input of this spatial size.

    "valid" is none; "same" gives ceil(length / stride) places along each axis; "causal" puts all before the input, so
    that a window reaches no later position than the place that it computes.
    """
    dilation = (1,) * len(kernel) if dilation is None else dilation
    if setting == "valid":
        return ((0, 0),) * len(kernel)
    if setting == "same":
        return tuple(map(same_padding, size, kernel, stride, dilation))
    if setting == "causal":
        return tuple((distance * (taps - 1), 0) for taps, distance in zip(kernel, dilation, strict=True))
    assert not isinstance(setting, str)
    return setting
