"""Max-pooling in one pass: the channels of a place are one vector."""
# mypy: disable-error-code="no-untyped-def"

from numba.extending import register_jitable

from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.short_rows import largest_of_window, share_out


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
    place = channels * x.itemsize
    first, last = share(batch * down, part, parts)
    for line in range(first, last):
        sample, i = line // down, line % down
        top, bottom = _reach(i, stride_down, before_down, window_down, height)
        row = x.ctypes.data + (sample * height + top) * width * place
        for j in range(across):
            left, right = _reach(j, stride_across, before_across, window_across, width)
            made = y.ctypes.data + (line * across + j) * place
            largest_of_window(x, channels, (row + left * place, made, bottom - top, right - left, width * place, place))


@kernel("T:1 T:1 T:1 int int int int int int int int int int int int T:1", parallel=True, work=0)
def max_pool_gradient(
    part, parts, x, y, dy, batch, height, width, channels, down, across, window_down, window_across, stride_down,
    stride_across, before_down, before_across, dx,
):  # fmt: skip
    """dx: each dy goes to the first position under its window that holds the largest value."""
    zero = x.dtype.type(0)
    size, place = height * width * channels, channels * x.itemsize
    first, last = share(batch, part, parts)
    for sample in range(first, last):
        image = dx[sample * size : (sample + 1) * size]
        for k in range(image.size):
            image[k] = zero
        for i in range(down):
            top, bottom = _reach(i, stride_down, before_down, window_down, height)
            row = (sample * height + top) * width * place
            for j in range(across):
                left, right = _reach(j, stride_across, before_across, window_across, width)
                window, made = row + left * place, ((sample * down + i) * across + j) * place
                share_out(
                    x,
                    channels,
                    (
                        x.ctypes.data + window,
                        y.ctypes.data + made,
                        dy.ctypes.data + made,
                        dx.ctypes.data + window,
                        bottom - top,
                        right - left,
                        width * place,
                        place,
                    ),
                )
