# mypy: disable-error-code="no-untyped-def"
"""Convolution without columns of patches: tiles (see `tiles`) that read the image itself.

Channels come last, so that what a row of taps sees (kernel width x channels) lies side by side in the image, and what
the next place sees lies stride x channels further. A product of a matrix with such rows needs no copy of them: its rows
may overlap. Only the zeros around an image have to be there. So a thread copies one image (or a few small ones) between
zeros into scratch memory, which stays in the second-level cache, and multiplies it with all blocks of the packed
weights.

`sizes` and `table` are those of `windows.Correlation` and `windows.WeightSums`; `lanes` is the length of a vector,
`width` the columns of a block of packed weights.
"""

from __future__ import annotations

from numba.extending import register_jitable

from xpnn_backends.native.activations import slope_of_relu, slope_of_tanh, times_slope
from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.tiles import ACCUMULATE, RELU, multiply_block, pack_rows
from xpnn_backends.native.windows import HEAD_WORDS, PHASE_WORDS


@kernel("i8:1 int int int int int int T:1 T:1", parallel=True)
def pack_weights(part, parts, order, inputs, columns, groups, backward, lanes, width, weight, packed):
    """Pack the weights (taps, inputs, groups x columns) of a convolution: for each group, the taps in that order.

    Backward, they are the transposed ones: to be multiplied with the places, `columns` wide, to give the inputs.
    """
    taps = order.size
    row = groups * columns
    depth, wide = (columns, inputs) if backward else (inputs, columns)
    rows = taps * depth
    whole = rows * ((wide + lanes - 1) // lanes * lanes)
    first, last = share(groups * taps, part, parts)
    for unit in range(first, last):
        group, number = unit // taps, unit % taps
        start = order[number] * inputs * row + group * columns
        target = packed[group * whole : (group + 1) * whole]
        if backward:
            pack_rows(weight, start, 1, row, depth, wide, lanes, width, target, number * depth, rows)
        else:
            pack_rows(weight, start, row, 1, depth, wide, lanes, width, target, number * depth, rows)


@register_jitable
def clear(x):
    """Set all to 0."""
    zero = x.dtype.type(0)
    for i in range(x.size):
        x[i] = zero


@register_jitable
def put_between_zeros(image, planes, rows, row, scratch, all_planes, all_rows, whole_row, front, top, left):
    """Copy an image (planes, rows, row) into a larger one of zeros; a row has all channels."""
    plane = all_rows * whole_row
    clear(scratch[: front * plane])
    for d in range(planes):
        start = (front + d) * plane
        clear(scratch[start : start + top * whole_row])
        for h in range(rows):
            begin = start + (top + h) * whole_row
            clear(scratch[begin : begin + left])
            given = image[(d * rows + h) * row : (d * rows + h + 1) * row]
            made = scratch[begin + left : begin + left + row]
            for j in range(given.size):
                made[j] = given[j]
            clear(scratch[begin + left + row : begin + whole_row])
        clear(scratch[start + (top + rows) * whole_row : start + plane])
    clear(scratch[(front + planes) * plane : all_planes * plane])


@register_jitable
def copy_images(x, first, last, sizes, scratch):
    """Copy some images between zeros, one after the other. See `windows.Correlation.sizes` for the first ten sizes."""
    planes, rows, columns, channels = sizes[0], sizes[1], sizes[2], sizes[3]
    all_planes, all_rows, all_columns = sizes[4], sizes[5], sizes[6]
    size, padded = planes * rows * columns * channels, all_planes * all_rows * all_columns * channels
    for number in range(first, last):
        image = x[number * size : (number + 1) * size]
        target = scratch[(number - first) * padded : (number - first + 1) * padded]
        put_between_zeros(
            image, planes, rows, columns * channels, target, all_planes, all_rows, all_columns * channels,
            sizes[7], sizes[8], sizes[9] * channels,
        )  # fmt: skip


@register_jitable
def fill_row(y, start, step, rows, left, columns, bias, relu):
    """What a row of places is where no tap reaches: the bias, or 0."""
    zero = y.dtype.type(0)
    for i in range(rows):
        made = y[start + i * step : start + i * step + columns]
        for j in range(columns):
            value = bias[left + j] if bias.size else zero
            made[j] = zero if relu and value < zero else value


@register_jitable
def address_of(x, index):
    """The address of a number of an array."""
    return x.ctypes.data + index * x.itemsize


@register_jitable
def correlate_block(function, sizes, table, source, packed, bias, result, group, left, wide, step, first, last, flags):
    """A block of columns of one result, in its rows from `first` to `last - 1`: the rows of all phases are counted."""
    channels, all_rows, all_columns = sizes[3], sizes[5], sizes[6]
    result_rows, result_columns, columns, groups = sizes[11], sizes[12], sizes[13], sizes[14]
    row_numbers = columns * groups
    column = group * columns + left
    size = result.itemsize
    offset = address_of(bias, column) if bias.size else 0
    row = 0
    for phase in range(HEAD_WORDS, HEAD_WORDS + PHASE_WORDS * sizes[17], PHASE_WORDS):
        here = sizes[phase : phase + PHASE_WORDS]
        count_d, count_h, count_w = here[0], here[1], here[2]
        start, steps, depth = here[12], here[13], here[14]
        if row + count_d * count_h <= first or row >= last:
            row += count_d * count_h
            continue
        a_row, c_row = here[11] * channels, here[8] * row_numbers
        for i in range(count_d):
            for j in range(count_h):
                if first <= row < last:
                    line = (here[3] + here[6] * i) * result_rows + here[4] + here[7] * j
                    to = (line * result_columns + here[5]) * row_numbers + column
                    if steps:
                        place = (here[9] * i * all_rows + here[10] * j) * all_columns * channels
                        multiply_block(
                            function,
                            (
                                source + place * size,
                                a_row,
                                1,
                                packed,
                                step,
                                address_of(result, to),
                                c_row,
                                address_of(table, 2 * start),
                                steps,
                                depth,
                                count_w,
                                wide,
                                offset,
                                flags,
                            ),
                        )
                    else:
                        fill_row(result, to, c_row, count_w, column, wide, bias, flags & RELU)
                row += 1


@register_jitable
def rows_of_result(sizes):
    """How many rows one result has, in all phases."""
    rows = 0
    for phase in range(HEAD_WORDS, HEAD_WORDS + PHASE_WORDS * sizes[17], PHASE_WORDS):
        rows += sizes[phase] * sizes[phase + 1]
    return rows


@kernel("int int int int int int i8:1 i8:1 T:1 T:1 T:1 T:1 T:1", parallel=True)
def correlate(part, parts, function, depthwise, relu, lanes, width, images, sizes, table, x, packed, bias, scratch, y):
    """y = a convolution of x with packed weights, forward or backward, plus a bias (empty: none), and its ReLU.

    The threads share the rows of all results. Each takes some `images` at a time, so that weights that are larger than
    the cache are not read anew for each image.
    """
    source_size = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    result_size = sizes[10] * sizes[11] * sizes[12] * sizes[13] * sizes[14]
    padded = sizes[4] * sizes[5] * sizes[6] * sizes[3]
    columns, groups, copied, depth_in_all = sizes[13], sizes[14], sizes[15], sizes[16]
    if depthwise:
        columns, groups = groups, 1
    batch, rows = x.size // source_size, rows_of_result(sizes)
    if copied:
        parts = min(parts, scratch.size // (images * padded))
    if part >= parts:
        return
    scratch = scratch[part * images * padded :]
    group_channels = sizes[3] // groups
    group_size = depth_in_all * ((columns + lanes - 1) // lanes * lanes)
    first, last = share(batch * rows, part, parts)
    top = first // rows
    while top * rows < last:
        bottom = min(top + images, (last + rows - 1) // rows)
        if copied:
            copy_images(x, top, bottom, sizes, scratch)
        for group in range(groups):
            for left in range(0, columns, width):
                wide = min(width, columns - left)
                step = columns if depthwise else (wide + lanes - 1) // lanes * lanes
                block = address_of(packed, left if depthwise else group * group_size + left * depth_in_all)
                channel = left if depthwise else group * group_channels
                for image in range(top, bottom):
                    if copied:
                        source = address_of(scratch, (image - top) * padded + channel)
                    else:
                        source = address_of(x, image * source_size + channel)
                    correlate_block(
                        function, sizes, table, source, block, bias,
                        y[image * result_size : (image + 1) * result_size],
                        group, left, wide, step, first - image * rows, last - image * rows, RELU if relu else 0,
                    )  # fmt: skip
        top = bottom


@kernel("int int int int int int i8:1 i8:1 T:1 T:1 T:1 T:1", parallel=True)
def weight_sums(part, parts, function, depthwise, width, images, band, blocks, sizes, table, x, dy, scratch, sums):
    """For each block of the batch: the gradient of the weights, (blocks, taps, inputs, outputs).

    The threads share the blocks of the batch, and those of the columns: how the numbers are added up does not depend on
    how many threads there are. Some `images` are worked on together, `band` rows of their places at a time, which
    stay in the first-level cache.
    """
    source_size = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    padded = sizes[4] * sizes[5] * sizes[6] * sizes[3]
    channels, copied = sizes[3], sizes[10]
    outputs, groups, places, rows, row_length = sizes[11], sizes[12], sizes[13], sizes[14], sizes[15]
    tap_count, tap_rows, a_row, a_k = sizes[16], sizes[17], sizes[18], sizes[19]
    if depthwise:
        groups = 1
    columns, batch, size = outputs // groups, x.size // source_size, x.itemsize
    if copied:
        parts = min(parts, scratch.size // (images * padded))
    if part >= parts:
        return
    scratch = scratch[part * images * padded :]
    wide_blocks = (columns + width - 1) // width
    all_sums = sums.size // blocks
    first, last = share(blocks * groups * wide_blocks, part, parts)
    each = groups * wide_blocks
    for block in range(blocks):
        begin, end = max(first - block * each, 0), min(last - block * each, each)
        if begin >= end:
            continue
        top, stop = share(batch, block, blocks)
        start = top
        while top < stop:
            bottom = min(top + images, stop)
            if copied:
                copy_images(x, top, bottom, sizes, scratch)
                source = address_of(scratch, 0)
            else:
                source = address_of(x, top * source_size)
            for unit in range(begin, end):
                group, left = unit // wide_blocks, unit % wide_blocks * width
                wide = min(width, columns - left)
                column = group * columns + left
                given = address_of(dy, top * places * outputs + column)
                made = address_of(sums, block * all_sums + column)
                seen = source + (left if depthwise else group * (channels // groups)) * size
                for line in range(0, (bottom - top) * rows, band):
                    lines = min(band, (bottom - top) * rows - line)
                    flags = ACCUMULATE if line > 0 or top > start else 0
                    for tap in range(tap_count):
                        multiply_block(
                            function,
                            (
                                seen + sizes[20 + tap] * size,
                                a_row,
                                a_k,
                                given,
                                outputs,
                                made + tap * tap_rows * outputs * size,
                                outputs,
                                address_of(table, 2 * line),
                                lines,
                                row_length,
                                tap_rows,
                                wide,
                                0,
                                flags,
                            ),
                        )
            top = bottom


@kernel("int T:1 T:1", parallel=True)
def add_blocks(part, parts, blocks, sums, total):
    """total = the sum of the blocks, one after the other."""
    first, last = share(total.size, part, parts, 16)
    made = total[first:last]
    for block in range(blocks):
        given = sums[block * total.size + first : block * total.size + last]
        if block == 0:
            for i in range(made.size):
                made[i] = given[i]
        else:
            for i in range(made.size):
                made[i] += given[i]


def _place_gradient(name, derivative):
    """The kernel of that name: dz = derivative(kept, dy), and the sums of the rows of dz for each block of the rows.

    There are many rows, and they may be short: some rows at a time are one row, so that loops fill whole vectors and
    threads can share the rows. `sums` is (blocks, rows at a time, channels).
    """

    def run(part, parts, kept, dy, channels, blocks, dz, sums):
        rows, period = dz.size // channels, sums.size // blocks
        first, last = share(blocks, part, parts)
        for block in range(first, last):
            total = sums[block * period : (block + 1) * period]
            clear(total)
            top, bottom = share(rows, block, blocks)
            for start in range(top * channels, bottom * channels, period):
                end = min(start + period, bottom * channels)
                value, given, made = kept[start:end], dy[start:end], dz[start:end]
                for j in range(made.size):
                    g = derivative(value[j], given[j])
                    made[j] = g
                    total[j] += g

    run.__name__ = run.__qualname__ = name
    return kernel("T:1 T:1 int int T:1 T:1", parallel=True)(run)


relu_place_gradient = _place_gradient("relu_place_gradient", slope_of_relu)
tanh_place_gradient = _place_gradient("tanh_place_gradient", slope_of_tanh)
slope_place_gradient = _place_gradient("slope_place_gradient", times_slope)


@kernel("T:1 int int T:1", parallel=True, work=0)
def place_sums(part, parts, dy, channels, blocks, sums):
    """The sums of the rows of dy for each block of the rows, as in `_place_gradient`."""
    rows, period = dy.size // channels, sums.size // blocks
    first, last = share(blocks, part, parts)
    for block in range(first, last):
        total = sums[block * period : (block + 1) * period]
        clear(total)
        top, bottom = share(rows, block, blocks)
        for start in range(top * channels, bottom * channels, period):
            given = dy[start : min(start + period, bottom * channels)]
            for j in range(given.size):
                total[j] += given[j]
