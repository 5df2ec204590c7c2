"""Max-pooling in one pass: the channels of a place are one vector."""
# mypy: disable-error-code="no-untyped-def"

from numba.extending import register_jitable

from xpnn_backends.native.registry import kernel, share


@register_jitable
def _reach(place, stride, before, window, length):
    """(first, last + 1) of the positions in [0, length) under the window at a place."""
    start = place * stride - before
    return max(start, 0), min(start + window, length)


@kernel("T:1 int int int int int int int int int int int int T:1", parallel=True, work=0)
def max_pool(
    part, parts, x, batch, height, width, channels, down, across, window_down, window_across, stride_down,
    stride_across, before_down, before_across, y,
):  # fmt: skip
    """y = the largest value under the window at each of `down` x `across` places; a NaN is larger than all."""
    first, last = share(batch * down, part, parts)
    for line in range(first, last):
        sample, i = line // down, line % down
        top, bottom = _reach(i, stride_down, before_down, window_down, height)
        for j in range(across):
            left, right = _reach(j, stride_across, before_across, window_across, width)
            made = y[(line * across + j) * channels :][:channels]
            start = x[((sample * height + top) * width + left) * channels :][:channels]
            for c in range(channels):
                made[c] = start[c]
            for row in range(top, bottom):
                for column in range(left, right):
                    given = x[((sample * height + row) * width + column) * channels :][:channels]
                    for c in range(channels):
                        larger = (given[c] > made[c]) | (given[c] != given[c])
                        made[c] = given[c] if larger else made[c]


@kernel("T:1 T:1 T:1 int int int int int int int int int int int int T:1 T:1", parallel=True, work=0)
def max_pool_gradient(
    part, parts, x, y, dy, batch, height, width, channels, down, across, window_down, window_across, stride_down,
    stride_across, before_down, before_across, room, dx,
):  # fmt: skip
    """dx: each dy goes to the first position under its window that holds the largest value.

    `room` has one number for each channel and thread: what of dy has not found its position yet.
    """
    zero = x.dtype.type(0)
    rest = room[part * channels : (part + 1) * channels]
    first, last = share(batch, part, parts)
    for sample in range(first, last):
        size = height * width * channels
        image = dx[sample * size : (sample + 1) * size]
        for k in range(size):
            image[k] = zero
        for i in range(down):
            top, bottom = _reach(i, stride_down, before_down, window_down, height)
            for j in range(across):
                left, right = _reach(j, stride_across, before_across, window_across, width)
                place = ((sample * down + i) * across + j) * channels
                largest, cotangent = y[place:][:channels], dy[place:][:channels]
                for c in range(channels):
                    rest[c] = cotangent[c]
                for row in range(top, bottom):
                    for column in range(left, right):
                        place = (row * width + column) * channels
                        given, made = x[sample * size + place :][:channels], image[place:][:channels]
                        for c in range(channels):
                            found = (given[c] == largest[c]) | (given[c] != given[c])
                            made[c] += rest[c] if found else zero
                            rest[c] = zero if found else rest[c]
