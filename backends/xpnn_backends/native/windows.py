"""Where a convolution reads and writes, as tables of integers for the native kernels.

A convolution and its gradient with respect to its input are one computation: each result is the sum, over some taps, of
a weight matrix times a pixel of the source. Along one axis, the result at position first + step i comes from the
source positions advance i + shift, one for each tap:

- forward, with the image as the source: one phase (first 0, step 1), advance = stride, shift = dilation tap - padding;
- backward, with the places as the source: result position q comes from place p where q = stride p + dilation tap -
  padding. The positions q that leave the same remainder when divided by the stride are seen by the same taps: they
  are a phase of their own, with step = stride and advance 1. So no multiplication by a zero between spread places
  is made (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

Three = tuple[int, int, int]


class Geometry(NamedTuple):
    """The sizes of a convolution with three spatial axes (of length 1, where there are fewer), and its settings.

    All entries are three integers, so that NumPy can compare two of these as arrays.

    Attributes:
        image: the lengths of what a convolution reads.
        places: the lengths of what it writes.
        kernel: the lengths of the window.
        stride: the distance between its places.
        before: the zeros in front of the image.
        dilation: the distance between the taps.
        channels: those of the image, those of the places, and the number of groups.
    """

    image: Three
    places: Three
    kernel: Three
    stride: Three
    before: Three
    dilation: Three
    channels: Three

    @property
    def taps(self) -> int:
        """How many taps the window has."""
        return math.prod(self.kernel)

    @property
    def is_depthwise(self) -> bool:
        """True if each channel is a group."""
        inputs, outputs, groups = self.channels
        return inputs == outputs == groups > 1


class Phase(NamedTuple):
    """Positions of a result along one axis that are seen by the same taps: first + step i, for i < length.

    Tap number k, for (k, shift) in `taps`, reads the source at advance i + shift. The shifts grow.
    """

    length: int
    first: int
    step: int
    advance: int
    taps: list[tuple[int, int]]

    @property
    def reach(self) -> tuple[int, int]:
        """The first and the last position of the source that is read."""
        if not self.taps or not self.length:
            return 0, 0
        return self.taps[0][1], self.advance * (self.length - 1) + self.taps[-1][1]

    @property
    def is_row(self) -> bool:
        """True if the taps read positions side by side."""
        return all(shift == self.taps[0][1] + number for number, (_, shift) in enumerate(self.taps))


def phases(geometry: Geometry, axis: int, backward: bool) -> list[Phase]:
    """The phases along one axis: of the places (forward), or of the image (backward)."""
    image, places, kernel, stride, before, dilation = (each[axis] for each in geometry[:6])
    if not backward:
        return [Phase(places, 0, 1, stride, [(k, dilation * k - before) for k in range(kernel)])]
    found = []
    for first in range(min(stride, image)):
        reached = [(k, first + before - dilation * k) for k in range(kernel)]
        taps = sorted(((k, q // stride) for k, q in reached if q % stride == 0), key=lambda tap: tap[1])
        found.append(Phase(-(-(image - first) // stride), first, stride, 1, taps))
    return found


class Correlation(NamedTuple):
    """A convolution, forward or backward, as its native kernel reads it.

    Attributes:
        sizes: the source's three lengths and channels; its lengths with zeros around; the zeros in front; the result's
            lengths and the channels of a group; groups; 1 if the source is copied between zeros, else 0; the rows of
            the packed weights of one group; the number of phases. Then, for each phase: the lengths, first positions,
            steps and advances along the three axes; where its table begins, its steps, and their depth.
        table: for each step, how many numbers it lies beyond the source, and how many rows beyond the packed weights.
        order: the taps in the order in which their weights are packed.
        padded: the numbers of one source image with zeros around; 0 if it is not copied.
    """

    sizes: list[int]
    table: list[int]
    order: list[int]
    padded: int


PHASE_WORDS = 15
"""Integers that describe a phase in `Correlation.sizes`."""
HEAD_WORDS = 18
"""Integers in front of them."""


def correlation(geometry: Geometry, backward: bool) -> Correlation:
    """The tables of a convolution, forward or backward."""
    inputs, outputs, groups = geometry.channels
    source, result = (geometry.places, geometry.image) if backward else (geometry.image, geometry.places)
    channels, columns = (outputs, inputs) if backward else (inputs, outputs)
    depth = channels // groups
    along = [phases(geometry, axis, backward) for axis in range(3)]
    before = [max(0, *(-phase.reach[0] for phase in found)) for found in along]
    padded = [
        front + max(length, *(phase.reach[1] + 1 for phase in found))
        for front, length, found in zip(before, source, along, strict=True)
    ]
    copied = padded != list(source)
    table: list[int] = []
    order: list[int] = []
    described: list[int] = []
    for three in itertools.product(*along):
        start, row = len(table) // 2, three[2]
        joined = groups == 1 and len(row.taps) > 0 and row.is_row
        for (d, shift_d), (h, shift_h) in itertools.product(three[0].taps, three[1].taps):
            line = ((before[0] + shift_d) * padded[1] + before[1] + shift_h) * padded[2] + before[2]
            for number, (w, shift) in enumerate(row.taps):
                if number == 0 or not joined:
                    table += [(line + shift) * channels, len(order) * depth]
                order.append((d * geometry.kernel[1] + h) * geometry.kernel[2] + w)
        described += [getattr(phase, name) for name in ("length", "first", "step", "advance") for phase in three]
        described += [start, len(table) // 2 - start, depth * (len(row.taps) if joined else 1)]
    head = [*source, channels, *padded, *before, *result, columns // groups, groups, int(copied), len(order) * depth]
    head.append(len(described) // PHASE_WORDS)
    assert len(head) == HEAD_WORDS
    return Correlation(head + described, table, order, math.prod(padded) * channels if copied else 0)


class WeightSums(NamedTuple):
    """The gradient of a convolution's weights, as its native kernel reads it.

    For each tap, it is the product of the transposed matrix of what the tap sees, a row for each place, with the matrix
    of the places' gradients. Taps that lie side by side are one: what they see are overlapping rows.

    Attributes:
        sizes: the first ten as in `Correlation.sizes`; 1 if the image is copied between zeros, else 0; channels of the
            places, groups; places, rows of places, and places in a row; how many products there are, and the rows of
            each; the numbers between rows, and between what neighbouring places see; then, for each product, where in
            the image it begins.
        table: for each row of the places of `images` images: how many numbers it lies beyond the first in the image,
            and how many places beyond the first.
        padded: the numbers of one image with zeros around; 0 if it is not copied.
    """

    sizes: list[int]
    table: list[int]
    padded: int


def weight_sums(geometry: Geometry, images: int) -> WeightSums:
    """The tables for the gradient of the weights, with so many images at a time."""
    inputs, outputs, groups = geometry.channels
    image, places, kernel = geometry.image, geometry.places, geometry.kernel
    stride, before, dilation = geometry.stride, geometry.before, geometry.dilation
    padded = [
        max(front + length, step * (count - 1) + distance * (taps - 1) + 1)
        for front, length, step, count, distance, taps in zip(
            before, image, stride, places, dilation, kernel, strict=True
        )
    ]
    depthwise = geometry.is_depthwise
    joined = depthwise or (groups == 1 and dilation[2] == 1)
    starts = [
        (((d * dilation[0] * padded[1]) + h * dilation[1]) * padded[2] + w * dilation[2]) * inputs
        for d, h, w in itertools.product(range(kernel[0]), range(kernel[1]), range(1 if joined else kernel[2]))
    ]
    table: list[int] = []
    whole = math.prod(padded) * inputs
    for number, d, h in itertools.product(range(images), range(places[0]), range(places[1])):
        line = ((number * places[0] + d) * places[1]) + h
        row = (d * stride[0] * padded[1] + h * stride[1]) * padded[2] * inputs
        table += [number * whole + row, line * places[2]]
    copied = padded != list(image)
    rows = inputs // groups * (kernel[2] if joined else 1)
    sizes = [*image, inputs, *padded, *before, int(copied), outputs, groups, math.prod(places)]
    sizes += [places[0] * places[1], places[2], len(starts), rows]
    sizes += [dilation[2] * inputs if depthwise else 1, stride[2] * inputs, *starts]
    return WeightSums(sizes, table, whole if copied else 0)
