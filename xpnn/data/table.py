"""What every reader gives: samples, targets, and what their columns are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xpnn.dispatch import Array
from xpnn.errors import DataError


@dataclass(frozen=True)
class Table:
    """A data set as it was read, on the host.

    Attributes:
        x: (samples, features), float64 (float32 where an image file fits into it); finite.
        y: (samples,), numbers or text as they stood in the file; None where the file is read without a target.
        features: the names of the columns of x.
        target: the name of y.
        task: "classification" or "regression" where the data set says so, else None.
        class_names: the names of the classes 0, 1, ... where y holds their numbers, else ().
        image: True if the features are pixels, which are all scaled alike.
        image_shape: (height, width, channels) where a row of x is an image of that shape, in C order.
        white: what a white pixel is in it, where the data set says so.
        held_out: a second table for validation, where the data set comes with one.
        split: False for a data set that is learnt as a whole, such as the four points of XOR.
        defaults: options of `xpnn train` that work well for this data set.
    """

    x: Array
    y: Array | None
    features: tuple[str, ...]
    target: str = "y"
    task: str | None = None
    class_names: tuple[str, ...] = ()
    image: bool = False
    image_shape: tuple[int, int, int] | None = None
    white: float | None = None
    held_out: Table | None = None
    split: bool = True
    defaults: dict[str, Any] = field(default_factory=dict)


def image_shape_of(sample: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(height, width, channels) of samples of that shape: (height, width) has one channel; None for other shapes."""
    if len(sample) == 2:
        return (sample[0], sample[1], 1)
    return (sample[0], sample[1], sample[2]) if len(sample) == 3 else None


def check_channels_last(shape: tuple[int, int, int]) -> None:
    """Raise DataError for images whose channels seem to come first, as PyTorch has them: a height of 1, 3 or 4."""
    if shape[0] in (1, 3, 4) and shape[2] > 4:
        raise DataError(
            f"images of shape {shape} seem to have their channels first; xpnn wants (height, width, channels): save "
            "images.transpose(0, 2, 3, 1)"
        )
