"""Convolutions on plain NumPy: forward, and the gradients of the image and of the weights.

What the window sees is copied into the rows of a matrix, for a few images or lines at a time, so that it stays in the
cache, and multiplied with the weights (Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks
for Document Processing", 2006).

With few channels, one row of the matrix serves a strip of neighbouring places: their windows overlap, so that fewer
numbers are copied, in longer runs, and the product has more columns, which BLAS is faster with:

    weights of a strip of 2, for a window of 3:    w0  0
                                                   w1  w0
                                                   w2  w1
                                                   0   w2

`Geometry` has the sizes. A weight is (*kernel, inputs / groups, outputs), for any number of axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpnn_backends.kernels_activations import relu as relu_of
from xpnn_backends.native.windows import Geometry, Phase, phases

_BLOCK = 1 << 18
"""Numbers of the matrix of what the window sees: 1 MiB in float32, for the second-level cache."""
_SHORT_BLOCK = 1 << 15
"""Numbers of the results of a depthwise convolution that are worked on together."""
_LONG_LINE = 1 << 13
"""Numbers that NumPy's loop over one line should have: it needs as long for its start as for hundreds of them."""
_STRIP_COLUMNS = 32
"""Columns of a product that are enough for BLAS."""
_QUICK = 1_000_000
"""Multiplications of a product that OpenBLAS makes without packing its operands first."""
_FEWEST_ROWS = 64
"""Rows of such a product that are worth its call."""


class Piece(NamedTuple):
    """Results that are seen by the same taps.

    Attributes:
        three: the phases along the three axes.
        first: the position in the padded source that the first tap reads for the first result.
        strip: how many neighbouring results have a row of the matrix together.
        seen: how many pixels of a line such a row has.
        depth: the numbers in the row.
    """

    three: tuple[Phase, Phase, Phase]
    first: tuple[int, int, int]
    strip: int
    seen: int
    depth: int

    @property
    def taps(self) -> tuple[int, int, int]:
        """How many taps there are along the three axes."""
        one, two, three = (len(phase.taps) for phase in self.three)
        return one, two, three

    @property
    def places(self) -> tuple[int, int, int]:
        """How many results there are along the three axes."""
        one, two, three = (phase.length for phase in self.three)
        return one, two, three

    def of_single_places(self) -> Piece:
        """The same with one result for each row."""
        depth = self.depth // max(self.seen, 1) * self.taps[2]
        return self._replace(strip=1, seen=self.taps[2], depth=depth)


class Plan(NamedTuple):
    """A convolution of one image.

    Attributes:
        lengths: the source's, with zeros around.
        before: the zeros in front.
        pieces: which together make all results.
    """

    lengths: tuple[int, ...]
    before: tuple[int, ...]
    pieces: list[Piece]


@lru_cache(maxsize=256)
def _plan(geometry: Geometry, backward: bool) -> Plan:
    source = geometry.places if backward else geometry.image
    inputs, outputs, groups = geometry.channels
    channels, columns = (outputs, inputs) if backward else (inputs, outputs)
    along = [phases(geometry, axis, backward) for axis in range(3)]
    before = tuple(max(0, *(-phase.reach[0] for phase in found)) for found in along)
    lengths = tuple(
        front + max(length, *(phase.reach[1] + 1 for phase in found))
        for front, length, found in zip(before, source, along, strict=True)
    )
    pieces = []
    # Backward, each piece makes some of the results, with some of the taps.
    for one, two, row in itertools.product(*along):
        three = one, two, row
        taps = [len(phase.taps) for phase in three]
        strip, seen = 1, taps[2]
        if groups == 1 and taps[2] > 1 and row.is_row:
            most = min(_STRIP_COLUMNS // columns, row.length)
            strip = next((count for count in range(most, 1, -1) if row.length % count == 0), 1)
            seen += (strip - 1) * row.advance
        first = [
            front + phase.taps[0][1] if phase.taps else 0 for front, phase in zip(before, three, strict=True)
        ]  # fmt: skip
        depth = taps[0] * taps[1] * seen * (channels // groups)
        pieces.append(Piece(three, (first[0], first[1], first[2]), strip, seen, depth))
    return Plan(lengths, before, pieces)


class _Source:
    """What the rows of the matrix hold, of some images after the other: (n, *positions, *pixels, channels).

    Images (n, *lengths, channels) get zeros around in memory that is used again and again.
    """

    def __init__(self, plan: Plan, source: Any, together: int) -> None:
        self._source = source
        self._views: dict[tuple[int, int], Any] = {}
        self._is_padded = plan.lengths != source.shape[1:-1]
        self._room = source
        if self._is_padded:
            self._room = np.zeros((min(together, len(source)), *plan.lengths, source.shape[-1]), source.dtype)
        inner = zip(plan.before, source.shape[1:-1], strict=True)
        self._inner = self._room[:, *(slice(front, front + length) for front, length in inner), :]
        self._part = slice(0)

    def select(self, part: slice) -> None:
        """Turn to these images."""
        self._part = part
        if self._is_padded:
            self._part = slice(part.stop - part.start)
            self._inner[self._part] = self._source[part]

    def is_finite(self) -> bool:
        """False where these images hold a NaN or an infinity."""
        numbers = self._room[self._part].reshape(-1)
        return math.isfinite(np.dot(numbers, numbers))

    def seen(self, number: int, piece: Piece) -> Any:
        """Of these images, by the piece with that number in the plan."""
        key = number, piece.strip
        if key not in self._views:
            self._views[key] = _seen(self._room, piece)
        return self._views[key][self._part]


def _distance(phase: Phase) -> int:
    """Between what neighbouring taps read; they are equally far from each other."""
    return (phase.taps[-1][1] - phase.taps[0][1]) // max(1, len(phase.taps) - 1)


def _seen(padded: Any, piece: Piece) -> Any:
    """What the rows of the matrix hold: a view (n, *positions, *pixels, channels)."""
    whole, *strides, channel = padded.strides
    steps = [stride * phase.advance for stride, phase in zip(strides, piece.three, strict=True)]
    between = [stride * _distance(phase) for stride, phase in zip(strides, piece.three, strict=True)]
    steps[2] *= piece.strip
    down, across, places = piece.places
    shape = (len(padded), down, across, places // piece.strip, *piece.taps[:2], piece.seen, padded.shape[-1])
    corner = padded[:, *(slice(position, None) for position in piece.first), :]
    return np.lib.stride_tricks.as_strided(corner, shape, (whole, *steps, *between, channel), writeable=False)


def _cuts(first: int, last: int, numbers: int, block: int) -> list[slice]:
    """The images from `first` to `last` - 1, each of which makes so many numbers, cut into blocks of equal length."""
    count = last - first
    blocks = min(count, -(-count * numbers // block))
    step = max(1, -(-count // max(1, blocks)))
    return [slice(start, min(start + step, last)) for start in range(first, last, step)]


def _lines(numbers: int, lines: int, block: int) -> Iterator[slice]:
    """All lines of some images at once, or a few of them, if they make more numbers than a block."""
    step = lines if numbers <= block else max(1, block * lines // numbers)
    for first in range(0, lines, step):
        yield slice(first, min(first + step, lines))


class _Rows:
    """Copies what the window sees into the rows of a matrix, in memory that is used again and again."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._room: Any = np.zeros(0)

    def __call__(self, seen: Any) -> Any:
        """(groups, n x positions, pixels x channels of a group)."""
        if self._room.size < seen.size:
            self._room = np.empty(seen.size, seen.dtype)
        if self._groups == 1:
            copied = self._room[: seen.size].reshape(seen.shape)
            np.copyto(copied, seen)
            return copied.reshape(1, math.prod(seen.shape[:4]), -1)
        split = seen.reshape(*seen.shape[:-1], self._groups, seen.shape[-1] // self._groups)
        split = split.transpose(7, 0, 1, 2, 3, 4, 5, 6, 8)
        copied = self._room[: seen.size].reshape(split.shape)
        np.copyto(copied, split)
        return copied.reshape(self._groups, math.prod(seen.shape[:4]), -1)


def _weights(weight: Any, geometry: Geometry, piece: Piece, backward: bool) -> Any:
    """For the rows of the matrix: (groups, pixels x channels of a group, strip x results of a group)."""
    inputs, outputs, groups = geometry.channels
    all_taps = weight.reshape(*geometry.kernel, inputs // groups, groups, outputs // groups)
    chosen = np.ix_(*([number for number, _ in phase.taps] for phase in piece.three))
    taps = all_taps[chosen].transpose((4, 0, 1, 2, 5, 3) if backward else (4, 0, 1, 2, 3, 5))
    if piece.strip == 1:
        return taps.reshape(groups, -1, taps.shape[-1])
    _, one, two, three, depth, columns = taps.shape
    strip = np.zeros((one, two, piece.seen, depth, piece.strip, columns), weight.dtype)
    for place in range(piece.strip):
        start = place * piece.three[2].advance
        strip[:, :, start : start + three, :, place] = taps[0]
    return strip.reshape(1, -1, piece.strip * columns)


def _portions(rows: int, size: int) -> int:
    """Into how many products one with so many rows, and so many multiplications for each of them, is cut."""
    most = _QUICK // max(size, 1)
    if rows <= most or most < _FEWEST_ROWS:
        return 1
    found = next((count for count in range(-(-rows // most), rows // _FEWEST_ROWS + 1) if rows % count == 0), 1)
    return found


def _multiply(matrix: Any, weights: Any, target: Any) -> None:
    """target = matrix x weights, for each group."""
    groups, rows, depth = matrix.shape
    if groups > 1:
        target[...] = np.matmul(matrix, weights).transpose(1, 0, 2).reshape(target.shape)
        return
    columns = weights.shape[2]
    portions = _portions(rows, depth * columns)
    given = matrix.reshape(portions, -1, depth)
    if target.flags.c_contiguous:
        np.matmul(given, weights, out=target.reshape(portions, -1, columns))
    else:
        target[...] = np.matmul(given, weights).reshape(target.shape)


def correlate(x: Any, weight: Any, bias: Any, geometry: Geometry, backward: bool, relu: bool, y: Any) -> None:
    """y = the convolution of x with a bias, which may be empty, and with its ReLU; see `kernels_convolution`."""
    given, result = (geometry.places, geometry.image) if backward else (geometry.image, geometry.places)
    inputs, outputs, groups = geometry.channels
    channels, columns = (outputs, inputs) if backward else (inputs, outputs)
    source, made = x.reshape(-1, *given, channels), y.reshape(-1, *result, columns)
    plan = _plan(geometry, backward)
    if geometry.is_depthwise:
        numbers, block = math.prod(result) * columns, _SHORT_BLOCK
    else:
        numbers = max(math.prod(piece.places) // piece.strip * piece.depth * groups for piece in plan.pieces)
        block = _BLOCK
    cuts = _cuts(0, len(source), numbers, block)
    repeats = math.prod(result[1:]) if math.prod(result[1:]) * columns <= _LONG_LINE else result[2]
    line_bias = np.tile(bias, repeats)
    targets = [made[:, *(slice(phase.first, None, phase.step) for phase in piece.three), :] for piece in plan.pieces]
    weights: dict[tuple[int, int], Any] = {}

    reader, rows = _Source(plan, source, cuts[0].stop - cuts[0].start), _Rows(groups)
    for cut in cuts:
        reader.select(cut)
        for number, piece in enumerate(plan.pieces):
            target = targets[number][cut]
            if not all(piece.taps):
                target[...] = 0.0
                continue
            if piece.strip > 1 and not reader.is_finite():
                # The zeros among the weights would carry a NaN or an infinity over to neighbouring places.
                piece = piece.of_single_places()
            for lines in _lines(len(target) * numbers, piece.places[1], block):
                seen, wanted = reader.seen(number, piece)[:, :, lines], target[:, :, lines]
                if geometry.is_depthwise:
                    _depthwise(seen, weight.reshape(*geometry.kernel, -1), piece, wanted)
                    continue
                if (number, piece.strip) not in weights:
                    weights[number, piece.strip] = _weights(weight, geometry, piece, backward)
                _multiply(rows(seen), weights[number, piece.strip], wanted)
        whole = made[cut].reshape(-1, repeats * columns)
        if bias.size:
            np.add(whole, line_bias, out=whole)
        if relu:
            relu_of(whole, whole)


def _each_tap(piece: Piece) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(its place among those of the piece, its place in the window) of each tap."""
    for place in itertools.product(*(range(count) for count in piece.taps)):
        yield place, tuple(phase.taps[number][0] for phase, number in zip(piece.three, place, strict=True))


def _depthwise(seen: Any, weight: Any, piece: Piece, made: Any) -> None:
    """One weight for each tap and channel; they are repeated for all places of a line, to be one loop for NumPy."""
    product = None
    for place, tap in _each_tap(piece):
        line = np.tile(weight[tap], (seen.shape[3], 1))
        if product is None:
            product = np.empty(made.shape, made.dtype)
            np.multiply(seen[:, :, :, :, *place], line, out=made)
        else:
            np.multiply(seen[:, :, :, :, *place], line, out=product)
            np.add(made, product, out=made)


def sum_rows(matrix: Any, total: Any) -> None:
    """total = the sum of the rows of a matrix in C order: of many side by side, where they are short."""
    rows, columns = matrix.shape
    together = max(1, min(512 // max(columns, 1), rows // 8))
    whole = rows // together * together
    wide = np.add.reduce(matrix[:whole].reshape(-1, together * columns), 0)
    np.add.reduce(wide.reshape(together, columns), 0, out=total)
    for row in matrix[whole:]:
        np.add(total, row, out=total)


def weight_gradient(x: Any, dy: Any, geometry: Geometry, sums: Any) -> None:
    """Each row of sums = the gradient of the weights, flat, for a part of the batch; see `kernels_convolution`."""
    inputs, outputs, groups = geometry.channels
    images, places = x.reshape(-1, *geometry.image, inputs), dy.reshape(-1, *geometry.places, outputs)
    plan = _plan(geometry, False)
    (piece,) = plan.pieces
    if geometry.is_depthwise:
        numbers, block = math.prod(geometry.places) * outputs, _SHORT_BLOCK
    else:
        numbers, block = math.prod(geometry.places) // piece.strip * piece.depth * groups, _BLOCK
    bounds = [len(images) * number // len(sums) for number in range(len(sums) + 1)]
    parts = [_cuts(first, last, numbers, block) for first, last in itertools.pairwise(bounds)]

    most = max(cut.stop - cut.start for part in parts for cut in part)
    reader, rows = _Source(plan, images, most), _Rows(groups)
    for number in range(len(sums)):
        found = np.zeros((groups, piece.depth, piece.strip * outputs // groups), x.dtype)
        for cut in parts[number]:
            reader.select(cut)
            for lines in _lines((cut.stop - cut.start) * numbers, geometry.places[1], block):
                seen, cotangent = reader.seen(0, piece)[:, :, lines], places[cut, :, lines]
                if geometry.is_depthwise:
                    _add_depthwise(seen, cotangent, piece, found)
                else:
                    _add_product(rows(seen), cotangent, found)
        _of_taps(found, piece, geometry, sums[number])


def _add_product(matrix: Any, cotangent: Any, found: Any) -> None:
    """found += the transposed matrix times the places' gradients, for each group."""
    groups, depth, columns = found.shape
    if groups > 1:
        found += np.matmul(matrix.transpose(0, 2, 1), cotangent.reshape(-1, groups, columns).transpose(1, 0, 2))
        return
    portions = _portions(matrix.shape[1], depth * columns)
    cut = matrix.reshape(portions, -1, depth).transpose(0, 2, 1)
    products = np.matmul(cut, cotangent.reshape(portions, -1, columns))
    found[0] += np.add.reduce(products, 0) if portions > 1 else products[0]


def _of_taps(found: Any, piece: Piece, geometry: Geometry, total: Any) -> None:
    """Of all that a strip sees, and the gradients of all its places: for each place, what it sees."""
    inputs, outputs, groups = geometry.channels
    made = total.reshape(*piece.taps, -1, groups, outputs // groups)
    if geometry.is_depthwise:
        made[...] = found.reshape(groups, *piece.taps, 1, 1).transpose(1, 2, 3, 4, 0, 5)
        return
    every = found.reshape(groups, *piece.taps[:2], piece.seen, inputs // groups, piece.strip, outputs // groups)
    every = every.transpose(5, 1, 2, 3, 4, 0, 6)
    made[...] = every[0, :, :, : piece.taps[2]]
    for place in range(1, piece.strip):
        start = place * piece.three[2].advance
        made += every[place, :, :, start : start + piece.taps[2]]


def _add_depthwise(seen: Any, cotangent: Any, piece: Piece, sums: Any) -> None:
    """sums (channels, taps, 1) += the products of what each tap sees with the places' gradients."""
    product = np.empty(cotangent.shape, cotangent.dtype)
    found = np.empty(cotangent.shape[-1], cotangent.dtype)
    for number, (place, _) in enumerate(_each_tap(piece)):
        np.multiply(seen[:, :, :, :, *place], cotangent, out=product)
        sum_rows(product.reshape(-1, product.shape[-1]), found)
        sums[:, number, 0] += found
