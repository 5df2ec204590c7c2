"""Normalisation: statistics, values and gradients of batch, layer and RMS norm, each in as few passes as there can be.

A batch norm sees its input as lines: some neighbouring rows of channels side by side, so that few channels fill whole
vectors too. Its sums are made in blocks of lines that stay in the first-level cache, whose mean and whose squares
around that mean are then put together: two passes over a block, one over the memory. Blocks do not depend on the number
of threads. Statistics are in float64, in which no float32 number overflows.
"""
# mypy: disable-error-code="no-untyped-def"

import math

import numpy as np
from numba.extending import register_jitable

from xpnn_backends.native.lanes import row_products, row_squares, row_sum
from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.sizes import BLOCK_LINES, BLOCK_ROWS
from xpnn_backends.native.sums import largest_of

_LARGE = 1e12
"""As in `xpnn.ops.standardization`: a row with a float64 above this is divided by its largest one first."""


@register_jitable
def _blocks(size, line):
    """How many blocks of lines `size` numbers make."""
    whole = BLOCK_LINES * line
    return (size + whole - 1) // whole


@kernel("T:1 int f8:1", parallel=True, work=0)
def batch_moments(part, parts, x, line, partial):
    """For each block and each place of a line: the mean of the numbers, and the sum of their squares around it."""
    first, last = share(_blocks(x.size, line), part, parts)
    for block in range(first, last):
        numbers = x[block * BLOCK_LINES * line : min((block + 1) * BLOCK_LINES * line, x.size)]
        found = partial[block * 2 * line : (block + 1) * 2 * line]
        means, squares = found[:line], found[line:]
        for j in range(line):
            means[j], squares[j] = 0.0, 0.0
        for start in range(0, numbers.size, line):
            given = numbers[start : start + line]
            for j in range(line):
                means[j] += np.float64(given[j])
        count = np.float64(numbers.size // line)
        for j in range(line):
            means[j] /= count
        for start in range(0, numbers.size, line):
            given = numbers[start : start + line]
            for j in range(line):
                difference = np.float64(given[j]) - means[j]
                squares[j] += difference * difference


@register_jitable
def _fold(sums, channels):
    """Add up what belongs to one channel in a line; all its places then hold the total."""
    for j in range(channels, sums.size):
        sums[j % channels] += sums[j]
    for j in range(channels, sums.size):
        sums[j] = sums[j % channels]


@kernel("f8:1 int int int number T:1 T:1 f8:1 T:1 T:1 T:1")
def batch_statistics(part, parts, partial, line, channels, rows, epsilon, weight, bias, sums, mean, variance, table):
    """Mean and variance of each channel from the blocks', and what `batch_normalize` needs of them.

    The table has three lines: the mean, weight / deviation, and the bias. `sums` has room for two lines.
    """
    real = mean.dtype.type
    totals, squares = sums[:line], sums[line:]
    for j in range(line):
        totals[j], squares[j] = 0.0, 0.0
    lines = rows * channels // line
    number = max(np.float64(rows), 1.0)
    for start in range(0, partial.size, 2 * line):
        count = np.float64(min(BLOCK_LINES, lines - start // (2 * line) * BLOCK_LINES))
        middle = partial[start : start + line]
        for j in range(line):
            totals[j] += count * middle[j]
    _fold(totals, channels)
    for j in range(line):
        totals[j] /= number
    for start in range(0, partial.size, 2 * line):
        count = np.float64(min(BLOCK_LINES, lines - start // (2 * line) * BLOCK_LINES))
        middle, around = partial[start : start + line], partial[start + line : start + 2 * line]
        for j in range(line):
            difference = middle[j] - totals[j]
            squares[j] += around[j] + count * difference * difference
    _fold(squares, channels)
    for j in range(line):
        channel = j % channels
        spread = squares[j] / number
        factor = np.float64(weight[channel]) if weight.size else 1.0
        table[j] = real(totals[j])
        table[line + j] = real(factor / math.sqrt(spread + epsilon))
        table[2 * line + j] = bias[channel] if bias.size else real(0.0)
        if j < channels:
            mean[j], variance[j] = real(totals[j]), real(spread)


def _normalizes(name, relu):
    """The kernel of that name: y = (x - mean) scale + shift, with max(y, 0) or not."""

    def run(part, parts, x, line, table, y):
        mean, scale, shift = table[:line], table[line : 2 * line], table[2 * line :]
        zero = x.dtype.type(0)
        first, last = share(x.size, part, parts, line)
        for start in range(first, last, line):
            given, made = x[start : start + line], y[start : start + line]
            for j in range(made.size):
                value = (given[j] - mean[j]) * scale[j] + shift[j]
                made[j] = zero if relu and value < zero else value

    run.__name__ = run.__qualname__ = name
    return kernel("T:1 int T:1 T:1", parallel=True)(run)


batch_normalize = _normalizes("batch_normalize", False)
batch_normalize_relu = _normalizes("batch_normalize_relu", True)


def _sums_gradients(name, relu):
    """The kernel of that name: for each block and place of a line, the sums of dz and of dz (x - mean).

    dz is dy; with relu, where y > 0, else 0.
    """

    def run(part, parts, x, dy, line, table, partial):
        mean, scale, shift = table[:line], table[line : 2 * line], table[2 * line :]
        zero = x.dtype.type(0)
        first, last = share(_blocks(x.size, line), part, parts)
        for block in range(first, last):
            begin, end = block * BLOCK_LINES * line, min((block + 1) * BLOCK_LINES * line, x.size)
            found = partial[block * 2 * line : (block + 1) * 2 * line]
            sums, products = found[:line], found[line:]
            for j in range(line):
                sums[j], products[j] = 0.0, 0.0
            for start in range(begin, end, line):
                given, cotangent = x[start : start + line], dy[start : start + line]
                for j in range(line):
                    difference = given[j] - mean[j]
                    dz = cotangent[j]
                    if relu:
                        dz = dz if difference * scale[j] + shift[j] > zero else zero
                    sums[j] += np.float64(dz)
                    products[j] += np.float64(dz) * np.float64(difference)

    run.__name__ = run.__qualname__ = name
    return kernel("T:1 T:1 int T:1 f8:1", parallel=True, work=0)(run)


batch_gradient_sums = _sums_gradients("batch_gradient_sums", False)
batch_gradient_sums_relu = _sums_gradients("batch_gradient_sums_relu", True)


@kernel("f8:1 int int int number T:1 f8:1 T:1 T:1 T:1")
def batch_gradient_totals(part, parts, partial, line, channels, rows, epsilon, variance, sums, dweight, dbias, factors):
    """dweight, dbias, and what `batch_gradient` needs: two lines, the means of dz and of dz (x - mean) / s^2."""
    real = variance.dtype.type
    totals, products = sums[:line], sums[line:]
    for j in range(line):
        totals[j], products[j] = 0.0, 0.0
    for start in range(0, partial.size, 2 * line):
        total, product = partial[start : start + line], partial[start + line : start + 2 * line]
        for j in range(line):
            totals[j] += total[j]
            products[j] += product[j]
    _fold(totals, channels)
    _fold(products, channels)
    count = max(np.float64(rows), 1.0)
    for j in range(line):
        spread = np.float64(variance[j % channels]) + epsilon
        factors[j] = real(totals[j] / count)
        factors[line + j] = real(products[j] / count / spread)
        if j < channels:
            if dweight.size:
                dweight[j] = real(products[j] / math.sqrt(spread))
            if dbias.size:
                dbias[j] = real(totals[j])


def _gradient(name, relu):
    """The kernel of that name: dx = scale (dz - <dz> - (x - mean) <dz (x - mean)> / s^2)."""

    def run(part, parts, x, dy, line, table, factors, dx):
        mean, scale, shift = table[:line], table[line : 2 * line], table[2 * line :]
        level, slope = factors[:line], factors[line:]
        zero = x.dtype.type(0)
        first, last = share(x.size, part, parts, line)
        for start in range(first, last, line):
            end = start + line
            given, cotangent, made = x[start:end], dy[start:end], dx[start:end]
            for j in range(made.size):
                difference = given[j] - mean[j]
                dz = cotangent[j]
                if relu:
                    dz = dz if difference * scale[j] + shift[j] > zero else zero
                made[j] = scale[j] * (dz - level[j] - difference * slope[j])

    run.__name__ = run.__qualname__ = name
    return kernel("T:1 T:1 int T:1 T:1 T:1", parallel=True)(run)


batch_gradient = _gradient("batch_gradient", False)
batch_gradient_relu = _gradient("batch_gradient_relu", True)


@register_jitable
def _scale_of(x):
    """A number to divide by, so that no square of a float64 overflows; 1 for all but very large ones."""
    if x.itemsize == 4:
        return 1.0
    largest = max(np.float64(largest_of(x, 0, x.size)), 0.0)
    for i in range(x.size):
        largest = max(largest, -np.float64(x[i]))
    return largest if _LARGE < largest < np.inf else 1.0


@kernel("T:1 int int number T:1 T:1 T:1 f8:1", parallel=True)
def row_norm(part, parts, x, columns, centre, epsilon, weight, bias, y, kept):
    """y = weight (x - mean) / s + bias, row by row, with s = sqrt(mean of (x - mean)^2 + epsilon).

    Without `centre`, the mean stays in x. Keeps each row's mean and 1 / s.
    """
    real = x.dtype.type
    first, last = share(x.size // columns, part, parts)
    for i in range(first, last):
        given, made = x[i * columns : (i + 1) * columns], y[i * columns : (i + 1) * columns]
        scale = _scale_of(given)
        # Divided before it is added up: no sum of large float64 numbers overflows.
        mean = scale * (row_sum(given, given, 0.0, 1.0 / scale) / columns) if centre else 0.0
        spread = row_squares(given, given, mean, 1.0 / scale) / columns
        inverse = 1.0 / (scale * math.sqrt(spread + epsilon / scale / scale))
        kept[2 * i], kept[2 * i + 1] = mean, inverse
        middle, factor = real(mean), real(inverse)
        if weight.size:
            for j in range(made.size):
                made[j] = (given[j] - middle) * factor * weight[j]
        else:
            for j in range(made.size):
                made[j] = (given[j] - middle) * factor
        if bias.size:
            for j in range(made.size):
                made[j] += bias[j]


@kernel("T:1 T:1 int int T:1 f8:1 T:1 T:1", parallel=True)
def row_norm_gradient(part, parts, x, dy, columns, centre, weight, kept, dx, partial):
    """dx = (g - <g> - z <g z>) / s with g = weight dy, row by row; without `centre`, without <g>.

    Adds up dy z and dy over the rows of each block.
    """
    real = x.dtype.type
    rows = x.size // columns
    first, last = share((rows + BLOCK_ROWS - 1) // BLOCK_ROWS, part, parts)
    for block in range(first, last):
        found = partial[block * 2 * columns : (block + 1) * 2 * columns]
        products, sums = found[:columns], found[columns:]
        for j in range(columns):
            products[j], sums[j] = real(0.0), real(0.0)
        for i in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)):
            start, end = i * columns, (i + 1) * columns
            given, cotangent, made = x[start:end], dy[start:end], dx[start:end]
            middle, factor = real(kept[2 * i]), real(kept[2 * i + 1])
            if weight.size:
                for j in range(made.size):
                    made[j] = cotangent[j] * weight[j]
            else:
                for j in range(made.size):
                    made[j] = cotangent[j]
            level = row_sum(made, made, 0.0, 1.0) / columns if centre else 0.0
            slope = row_products(given, made, kept[2 * i], kept[2 * i + 1]) / columns
            mean_of_g, mean_of_gz = real(level), real(slope)
            for j in range(made.size):
                z = (given[j] - middle) * factor
                products[j] += cotangent[j] * z
                sums[j] += cotangent[j]
                made[j] = (made[j] - mean_of_g - z * mean_of_gz) * factor


@kernel("T:1 int T:1 T:1")
def row_norm_totals(part, parts, partial, columns, dweight, dbias):
    """dweight and dbias: the sums of the blocks' sums; an empty one is not wanted."""
    real = partial.dtype.type
    for offset, out in ((0, dweight), (columns, dbias)):
        if out.size:
            for j in range(columns):
                out[j] = real(0.0)
            for start in range(offset, partial.size, 2 * columns):
                given = partial[start : start + columns]
                for j in range(columns):
                    out[j] += given[j]
