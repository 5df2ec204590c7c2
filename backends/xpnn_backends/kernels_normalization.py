"""Kernels of normalisation. See `kernels` for what a kernel is.

A batch norm sees its input as lines: `line` numbers, of some neighbouring rows of channels. Whole lines make up the
input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xpnn_backends.kernels_activations import relu as relu_of
from xpnn_backends.kernels_activations import relu_gradient
from xpnn_backends.native.sizes import BLOCK_LINES, BLOCK_ROWS
from xpnn_backends.recording import Kernel

_LONGEST_LINE = 128
_TOGETHER = 1 << 16
"""Numbers that are worked on together: they stay in the second-level cache."""


def line_length(rows: int, channels: int) -> int:
    """As many rows side by side as divide all of them and make a line of about _LONGEST_LINE numbers."""
    most = max(1, _LONGEST_LINE // max(channels, 1))
    return channels * next(count for count in range(min(most, max(rows, 1)), 0, -1) if rows % count == 0)


def block_count(size: int, line: int) -> int:
    """How many blocks of lines `size` numbers make."""
    return -(-size // (BLOCK_LINES * line)) if line else 0


def row_blocks(rows: int) -> int:
    """How many blocks of rows a layer norm has."""
    return -(-rows // BLOCK_ROWS)


def _blocks(line: int, *arrays: Any) -> Any:
    """Blocks of lines of each array, some at a time: (number of the first, each as (blocks, lines, line))."""
    size, together = arrays[0].size, 16
    whole = size // (BLOCK_LINES * line)
    for first in range(0, whole, together):
        last = min(first + together, whole)
        cut = slice(first * BLOCK_LINES * line, last * BLOCK_LINES * line)
        yield first, *(x[cut].reshape(last - first, BLOCK_LINES, line) for x in arrays)
    if whole * BLOCK_LINES * line < size:
        yield whole, *(x[whole * BLOCK_LINES * line :].reshape(1, -1, line) for x in arrays)


def _flat(*arrays: Any) -> list[Any]:
    return [x.reshape(-1) for x in arrays]


def _line_sums(numbers: Any) -> Any:
    """The sums of the lines of each block, in float64.

    A product with ones is several times as fast as `add.reduce`; a block has so few lines that little is lost.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.matmul(np.ones(numbers.shape[1], numbers.dtype), numbers)
    if not np.isfinite(found).all():
        return np.add.reduce(numbers, 1, dtype=np.float64)
    return found.astype(np.float64)


def _moments(x: Any, line: int, partial: Any) -> None:
    found = partial.reshape(-1, 2, line)
    for first, numbers in _blocks(line, *_flat(x)):
        here = found[first : first + len(numbers)]
        lines = numbers.shape[1]
        means = _line_sums(numbers) / lines
        middle = means.astype(x.dtype)
        off, here[:, 1] = _around(numbers, middle)
        here[:, 0] = middle + off
        if not np.isfinite(here).all():  # float32 overflows long before the mean does
            here[:, 0] = means
            here[:, 1] = _around(numbers, means)[1]


def _around(numbers: Any, middle: Any) -> tuple[Any, Any]:
    """(the means of numbers - middle over the lines of each block, the sums of (numbers - mean)^2)."""
    blocks, lines, line = numbers.shape
    repeats = _repeats(lines, 16)
    wide = np.tile(middle, (1, repeats))[:, None, :]
    around = (numbers.reshape(blocks, -1, repeats * line) - wide).reshape(numbers.shape)
    off = _line_sums(around) / lines
    with np.errstate(over="ignore", invalid="ignore"):
        np.square(around, out=around)
        # What the middle being off adds to the squares is taken away again.
        return off, np.maximum(_line_sums(around) - lines * off * off, 0.0)


def _repeats(lines: int, most: int) -> int:
    """How many lines are worked on as one, which is faster for NumPy: a divisor of them, and of `most`."""
    return math.gcd(lines, most)


def _cuts(rows: Any) -> Iterator[slice]:
    """Some rows at a time."""
    step = max(1, _TOGETHER // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _wide(line: int, *tables: Any, of: Any) -> tuple[int, list[list[Any]]]:
    """(the length of `of`'s wide lines, for each table its lines, repeated for a wide one)."""
    repeats = _repeats(of.size // line, BLOCK_LINES)
    return repeats * line, [[np.tile(row, repeats) for row in table.reshape(-1, line)] for table in tables]


MOMENTS = Kernel("batch_moments", _moments, "batch_moments")
"""batch_moments(x, line, partial): of each block and place of a line, the mean and the squares around it, summed."""


def _statistics(
    partial: Any,
    line: int,
    channels: int,
    rows: int,
    epsilon: float,
    weight: Any,
    bias: Any,
    sums: Any,
    mean: Any,
    variance: Any,
    table: Any,
) -> None:
    found = partial.reshape(-1, 2, line // max(channels, 1), channels)
    lines = rows * channels // line if line else 0
    counts = np.full(len(found), float(BLOCK_LINES))
    counts[-1:] = lines - BLOCK_LINES * (len(found) - 1)
    counts = counts[:, None, None]
    middle = np.add.reduce(found[:, 0] * counts, (0, 1)) / max(rows, 1)
    spread = np.add.reduce(found[:, 1] + counts * np.square(found[:, 0] - middle), (0, 1)) / max(rows, 1)
    lines_of = table.reshape(3, -1, channels)
    with np.errstate(over="ignore"):
        np.copyto(mean, middle, casting="unsafe")
        np.copyto(variance, spread, casting="unsafe")
    np.copyto(lines_of[0], middle, casting="unsafe")
    scale = 1.0 / np.sqrt(spread + epsilon)
    np.copyto(lines_of[1], scale * weight if weight.size else scale, casting="unsafe")
    np.copyto(lines_of[2], bias if bias.size else 0.0)


STATISTICS = Kernel("batch_statistics", _statistics, "batch_statistics", (7, 8, 9, 10))
"""batch_statistics(partial, line, channels, rows, epsilon, weight, bias, sums, mean, variance, table).

The mean and variance of each channel, and a table of three lines: mean, weight / deviation, bias.
"""


def _normalize(relu: bool) -> Callable[..., None]:
    def run(x: Any, line: int, table: Any, y: Any) -> None:
        wide, [[mean, scale, shift]] = _wide(line, table, of=x)
        given, made = x.reshape(-1, wide), y.reshape(-1, wide)
        for cut in _cuts(given):
            here = made[cut]
            np.subtract(given[cut], mean, out=here)
            np.multiply(here, scale, out=here)
            np.add(here, shift, out=here)
            if relu:
                relu_of(here, here)

    return run


NORMALIZE: dict[str | None, Kernel] = {
    None: Kernel("batch_normalize", _normalize(False), "batch_normalize"),
    "relu": Kernel("batch_normalize_relu", _normalize(True), "batch_normalize_relu"),
}
"""activation -> kernel(x, line, table, y): y = f((x - mean) scale + shift)."""


def _through(around: Any, dy: Any, scale: Any, shift: Any, room: Any) -> Any:
    """What relu lets through of dy, for lines of x - mean."""
    np.multiply(around, scale, out=room)
    relu_gradient(room, dy, room, -shift)
    return room


def _gradient_sums(relu: bool) -> Callable[..., None]:
    def run(x: Any, dy: Any, line: int, table: Any, partial: Any) -> None:
        wide, [[mean, scale, shift]] = _wide(line, table, of=x)
        found = partial.reshape(-1, 2, line)
        for first, numbers, cotangent in _blocks(line, *_flat(x, dy)):
            here = found[first : first + len(numbers)]
            around = numbers.reshape(-1, wide) - mean
            dz = cotangent.reshape(-1, wide)
            if relu:
                dz = _through(around, dz, scale, shift, np.empty_like(around))
            here[:, 0] = _line_sums(dz.reshape(numbers.shape))
            np.multiply(around, dz, out=around)
            here[:, 1] = _line_sums(around.reshape(numbers.shape))

    return run


GRADIENT_SUMS: dict[str | None, Kernel] = {
    None: Kernel("batch_gradient_sums", _gradient_sums(False), "batch_gradient_sums"),
    "relu": Kernel("batch_gradient_sums_relu", _gradient_sums(True), "batch_gradient_sums_relu"),
}
"""activation -> kernel(x, dy, line, table, partial): of each block, the sums of dz and dz (x - mean)."""


def _gradient_totals(
    partial: Any,
    line: int,
    channels: int,
    rows: int,
    epsilon: float,
    variance: Any,
    sums: Any,
    dweight: Any,
    dbias: Any,
    factors: Any,
) -> None:
    found = partial.reshape(-1, 2, line // max(channels, 1), channels)
    total, product = np.add.reduce(found, (0, 2))
    spread = variance.astype(np.float64) + epsilon
    if dweight.size:
        np.copyto(dweight, product / np.sqrt(spread), casting="unsafe")
    if dbias.size:
        np.copyto(dbias, total, casting="unsafe")
    lines_of = factors.reshape(2, -1, channels)
    np.copyto(lines_of[0], total / max(rows, 1), casting="unsafe")
    np.copyto(lines_of[1], product / max(rows, 1) / spread, casting="unsafe")


GRADIENT_TOTALS = Kernel("batch_gradient_totals", _gradient_totals, "batch_gradient_totals", (6, 7, 8, 9))
"""batch_gradient_totals(partial, line, channels, rows, epsilon, variance, sums, dweight, dbias, factors).

dweight and dbias (an empty one is not wanted), and two lines of factors: the means of dz and of dz (x - mean) / s^2.
"""


def _gradient(relu: bool) -> Callable[..., None]:
    def run(x: Any, dy: Any, line: int, table: Any, factors: Any, dx: Any) -> None:
        wide, [[mean, scale, shift], [level, slope]] = _wide(line, table, factors, of=x)
        given, cotangent, made = (each.reshape(-1, wide) for each in (x, dy, dx))
        for here in _cuts(given):
            around = given[here] - mean
            dz = cotangent[here]
            if relu:
                dz = _through(around, dz, scale, shift, made[here])
            np.multiply(around, slope, out=around)
            np.subtract(dz, around, out=around)
            np.subtract(around, level, out=around)
            np.multiply(around, scale, out=made[here])

    return run


GRADIENT: dict[str | None, Kernel] = {
    None: Kernel("batch_gradient", _gradient(False), "batch_gradient"),
    "relu": Kernel("batch_gradient_relu", _gradient(True), "batch_gradient_relu"),
}
"""activation -> kernel(x, dy, line, table, factors, dx): dx = scale (dz - <dz> - (x - mean) <dz (x - mean)> / s^2)."""


def _scale_of(rows: Any) -> Any:
    """What each row is divided by, so that no square overflows; as in `xpnn.ops.standardization`."""
    if rows.itemsize == 4 or not rows.size:
        return 1.0
    largest = np.maximum.reduce(np.abs(rows), 1, keepdims=True)
    return np.where((largest > 1e12) & np.isfinite(largest), largest, 1.0)


def _row_norm(x: Any, columns: int, centre: int, epsilon: float, weight: Any, bias: Any, y: Any, kept: Any) -> None:
    rows, made = x.reshape(-1, columns), y.reshape(-1, columns)
    saved = kept.reshape(-1, 2)
    for start in range(0, len(rows), 256):
        here = slice(start, start + 256)
        scale = _scale_of(rows[here])
        given = rows[here] / scale
        if centre:
            mean = np.add.reduce(given, 1, dtype=np.float64, keepdims=True) / columns
            saved[here, :1] = mean * scale
            around = given.astype(np.float64)
            np.subtract(around, mean, out=around)
        else:
            saved[here, 0] = 0.0
            around = given.astype(np.float64)
        spread = np.einsum("ij,ij->i", around, around)[:, None] / columns
        inverse = 1.0 / (scale * np.sqrt(spread + epsilon / scale / scale))
        saved[here, 1:] = inverse
        np.subtract(rows[here], saved[here, :1].astype(x.dtype), out=made[here])
        np.multiply(made[here], inverse.astype(x.dtype), out=made[here])
        if weight.size:
            np.multiply(made[here], weight.reshape(-1), out=made[here])
        if bias.size:
            np.add(made[here], bias.reshape(-1), out=made[here])


ROW_NORM = Kernel("row_norm", _row_norm, "row_norm", (6, 7))
"""row_norm(x, columns, centre, epsilon, weight, bias, y, kept): y = weight (x - mean) / s + bias, row by row.

Without `centre` the mean stays in x. Keeps the mean and 1 / s of each row. An empty weight is 1, an empty bias 0.
"""


def _row_norm_gradient(
    x: Any, dy: Any, columns: int, centre: int, weight: Any, kept: Any, dx: Any, partial: Any
) -> None:
    given, cotangent, made = (each.reshape(-1, columns) for each in (x, dy, dx))
    saved, found = kept.reshape(-1, 2).astype(x.dtype), partial.reshape(-1, 2, columns)
    for block in range(len(found)):
        here = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
        values = (given[here] - saved[here, :1]) * saved[here, 1:]
        found[block, 0] = np.add.reduce(cotangent[here] * values, 0)
        found[block, 1] = np.add.reduce(cotangent[here], 0)
        inner = cotangent[here] * weight.reshape(-1) if weight.size else cotangent[here]
        slope = np.add.reduce(inner * values, 1, keepdims=True) / columns
        level = np.add.reduce(inner, 1, keepdims=True) / columns if centre else 0.0
        made[here] = (inner - level - values * slope) * saved[here, 1:]


ROW_NORM_GRADIENT = Kernel("row_norm_gradient", _row_norm_gradient, "row_norm_gradient", (6, 7))
"""row_norm_gradient(x, dy, columns, centre, weight, kept, dx, partial), with the shares in dweight and dbias."""


def _row_norm_totals(partial: Any, columns: int, dweight: Any, dbias: Any) -> None:
    found = partial.reshape(-1, 2, columns)
    for part, out in enumerate((dweight, dbias)):
        if out.size:
            np.add.reduce(found[:, part], 0, out=out.reshape(-1))


ROW_NORM_TOTALS = Kernel("row_norm_totals", _row_norm_totals, "row_norm_totals", (2, 3))
"""row_norm_totals(partial, columns, dweight, dbias): the sums over the blocks; an empty one is not wanted."""
