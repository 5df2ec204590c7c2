"""Convolution over 1, 2 or 3 spatial axes, and its transpose; channels come last.

A convolution is a sum over the taps of its window: for each tap, what lies under it (a strided slice of the padded
input, one row per place of the window) times the weight of that tap (a matrix, in x out). Its two derivatives have the
same form, and so has the transposed convolution, which is the derivative with respect to the input.
Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016.
"""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import OPS, Array, Vjp, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.windows import (
    Ints,
    Pairs,
    check_settings,
    crop_spatial,
    output_size,
    pad_spatial,
    slice_under_tap,
    span,
    spread,
    taps,
)


@op
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
    groups: int = 1,
    activation: str | None = None,
    input_gradient: bool = True,
) -> tuple[Array, Vjp]:
    """y[n, p, o] = f(sum over taps t and channels c of x[n, stride p + dilation t, c] weight[t, c, o] + bias[o]).

    x is padded with zeros first. (Mathematics calls this cross-correlation: the kernel is not flipped.) With `groups`,
    the channels of x and y are split into as many groups, in order, and each group of y sees its own group of x alone.

    Args:
        x: (batch, *spatial, in), with 1 to 3 spatial axes.
        weight: (*kernel, in / groups, out).
        bias: (out,), or None.
        stride: distance between places of the window; one integer for each spatial axis, as in all settings here.
        padding: pairs (before, after): zeros put on both sides of x.
        dilation: distance between the taps of the window.
        groups: divides in and out.
        activation: a name in `xpnn.ops.linear.FUSABLE`, or None.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        y of shape (batch, *places, out), with floor((length + before + after - span) / stride) + 1 places along an
        axis and span = dilation (kernel - 1) + 1; and vjp(dy) -> (dx, dweight, dbias), with None for what is not there.

    Raises:
        ShapeError: shapes or settings do not fit together, or the window is larger than the padded x.
    """
    check_arrays("conv", x, weight, bias, groups)
    kernel, spatial = tuple(weight.shape[:-2]), tuple(x.shape[1:-1])
    size = output_size(spatial, kernel, stride, padding, dilation)
    padded = pad_spatial(x, padding)
    y = _correlate(padded, weight, size, stride, dilation, groups)
    if bias is not None:
        y = y + bias
    if activation is not None:
        y, activation_vjp = OPS[activation](y)

    def vjp(dy: Array) -> tuple[Any, ...]:
        if activation is not None:
            (dy,) = activation_vjp(dy)
        dx = None
        if input_gradient:
            dx = crop_spatial(_transpose(dy, weight, padded.shape[1:-1], stride, dilation, groups), padding)
        dweight = weight_gradient(padded, dy, weight, stride, dilation, groups)
        return dx, dweight, None if bias is None else _bias_gradient(dy)

    return y, vjp


@op
def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Ints,
    padding: Pairs,
    output_padding: Ints,
    dilation: Ints,
    groups: int = 1,
    activation: str | None = None,
    input_gradient: bool = True,
) -> tuple[Array, Vjp]:
    """The derivative of `conv` with respect to its input, as an op: each number of x writes a weighted window into y.

    y[n, stride p + dilation t - before, o] = f(sum over places p, taps t and channels c of x[n, p, c] weight[t, o, c]
    + bias[o]), with places outside y left out. Also called fractionally strided convolution, or deconvolution.

    Args:
        x: (batch, *spatial, in), with 1 to 3 spatial axes.
        weight: (*kernel, out / groups, in): that of the `conv` that leads from y to x.
        bias: (out,), or None.
        stride: distance between the windows in y; one integer for each spatial axis, as in all settings here.
        padding: pairs (before, after): that much is cut off from y.
        output_padding: that much is added to y behind its end, before the cut: several lengths of y lead to the same
            length of x if the stride is larger than 1.
        dilation: distance between the taps of the window.
        groups: divides in and out.
        activation: a name in `xpnn.ops.linear.FUSABLE`, or None.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        y of shape (batch, *lengths, out), with (length - 1) stride + span + output_padding - before - after along an
        axis and span = dilation (kernel - 1) + 1; and vjp(dy) -> (dx, dweight, dbias), with None for what is not there.

    Raises:
        ShapeError: shapes or settings do not fit together, or nothing is left of y.
    """
    check_arrays("conv_transpose", x, weight, bias, groups, transposed=True)
    kernel, size = tuple(weight.shape[:-2]), tuple(x.shape[1:-1])
    lengths = transposed_output_size(size, kernel, stride, padding, output_padding, dilation)
    uncropped = tuple(length + sum(pair) for length, pair in zip(lengths, padding, strict=True))
    y = crop_spatial(_transpose(x, weight, uncropped, stride, dilation, groups), padding)
    if bias is not None:
        y = y + bias
    if activation is not None:
        y, activation_vjp = OPS[activation](y)

    def vjp(dy: Array) -> tuple[Any, ...]:
        if activation is not None:
            (dy,) = activation_vjp(dy)
        padded = pad_spatial(dy, padding)
        dx = _correlate(padded, weight, size, stride, dilation, groups) if input_gradient else None
        dweight = weight_gradient(padded, x, weight, stride, dilation, groups)
        return dx, dweight, None if bias is None else _bias_gradient(dy)

    return y, vjp


def transposed_output_size(
    size: Ints, kernel: Ints, stride: Ints, padding: Pairs, output_padding: Ints, dilation: Ints
) -> Ints:
    """The spatial lengths of what `conv_transpose` gives.

    Raises:
        ShapeError: a setting does not have one entry for each axis, or is out of range; or no length is left.
    """
    check_settings(len(size), kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    if len(output_padding) != len(size) or any(
        not 0 <= extra < max(step, distance)
        for extra, step, distance in zip(output_padding, stride, dilation, strict=True)
    ):
        raise ShapeError(
            f"output_padding={output_padding} does not fit stride {stride} and dilation {dilation}; give {len(size)} "
            "integers from 0 on, each smaller than the stride or the dilation of its axis"
        )
    lengths = tuple(
        (length - 1) * step + span(window, distance) + extra - sum(pair)
        for length, window, step, pair, extra, distance in zip(
            size, kernel, stride, padding, output_padding, dilation, strict=True
        )
    )
    if min(lengths) < 1:
        raise ShapeError(
            f"nothing is left of the output: its lengths would be {lengths} (input {size}, kernel {kernel}, padding "
            f"{padding}); make the padding smaller"
        )
    return lengths


def check_arrays(name: str, x: Array, weight: Array, bias: Array | None, groups: int, transposed: bool = False) -> None:
    """Raise ShapeError unless the axes and channels of x, weight and bias fit, and `groups` divides the channels."""
    if weight.ndim < 3 or x.ndim != weight.ndim:
        raise ShapeError(
            f"{name}: x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}; give x (batch, *spatial, channels) "
            "and weight (*kernel, channels, channels) with as many spatial axes"
        )
    per_group, whole = weight.shape[-2:]
    if groups < 1 or whole % groups:
        raise ShapeError(f"{name}: groups={groups} must divide the {whole} channels in the last axis of weight")
    inputs, outputs = (whole, per_group * groups) if transposed else (per_group * groups, whole)
    if x.shape[-1] != inputs:
        raise ShapeError(
            f"{name}: x of shape {tuple(x.shape)} has {x.shape[-1]} channels; weight of shape {tuple(weight.shape)} "
            f"and groups={groups} want {inputs}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ShapeError(f"{name}: bias has shape {tuple(bias.shape)}; give one number for each of {outputs} channels")


def _correlate(padded: Array, weight: Array, size: Ints, stride: Ints, dilation: Ints, groups: int) -> Array:
    """The sum over the taps of (what lies under the tap) times (the tap's weight): (batch, *size, out)."""
    total: Any = None
    for tap in taps(tuple(weight.shape[:-2])):
        rows = _rows(slice_under_tap(padded, tap, size, stride, dilation))
        part = _product(rows, weight[(*tap, ...)], groups)
        total = part if total is None else total + part
    return namespace(padded).reshape(total, (padded.shape[0], *size, weight.shape[-1]))


def _transpose(dy: Array, weight: Array, lengths: Ints, stride: Ints, dilation: Ints, groups: int) -> Array:
    """`_correlate` run backwards: dy (batch, *size, out) -> (batch, *lengths, in).

    dx[q] = sum over taps t of dy[(q - dilation t) / stride] weight[t]^T, where that is a place. With the values of dy
    spread `stride` apart, this is a convolution of stride 1, whose taps come in reverse order.
    """
    kernel = tuple(weight.shape[:-2])
    reach = tuple(map(span, kernel, dilation))
    apart = spread(dy, stride)
    around = [
        (window - 1, length - places) for window, length, places in zip(reach, lengths, apart.shape[1:-1], strict=True)
    ]
    padded = pad_spatial(apart, around)
    ones = (1,) * len(kernel)
    total: Any = None
    for tap in taps(kernel):
        opposite = tuple(window - 1 - position for window, position in zip(kernel, tap, strict=True))
        rows = _rows(slice_under_tap(padded, opposite, lengths, ones, dilation))
        part = _product_transposed(rows, weight[(*tap, ...)], groups)
        total = part if total is None else total + part
    return namespace(dy).reshape(total, (dy.shape[0], *lengths, weight.shape[-2] * groups))


def weight_gradient(padded: Array, dy: Array, weight: Array, stride: Ints, dilation: Ints, groups: int) -> Array:
    """For each tap, (what lies under it)^T dy: an array of the weight's shape."""
    xp = namespace(dy)
    size = dy.shape[1:-1]
    dy_rows = _split(_rows(dy), groups)
    parts = []
    for tap in taps(tuple(weight.shape[:-2])):
        rows = _split(_rows(slice_under_tap(padded, tap, size, stride, dilation)), groups)
        parts.append(_join(xp.matmul(rows.mT, dy_rows)))
    return xp.reshape(xp.stack(parts, axis=0), weight.shape)


def _bias_gradient(dy: Array) -> Array:
    return namespace(dy).sum(_rows(dy), axis=0)


def _rows(x: Array) -> Array:
    """(batch, *spatial, channels) as a matrix with one row for each place."""
    return namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _product(rows: Array, tap_weight: Array, groups: int) -> Array:
    """(n, in) times the weight of one tap (in / groups, out), group by group: (n, out)."""
    return _join(namespace(rows).matmul(_split(rows, groups), _split(tap_weight, groups)))


def _product_transposed(rows: Array, tap_weight: Array, groups: int) -> Array:
    """(n, out) times the transposed weight of one tap (in / groups, out), group by group: (n, in)."""
    return _join(namespace(rows).matmul(_split(rows, groups), _split(tap_weight, groups).mT))


def _split(matrix: Array, groups: int) -> Array:
    """A matrix as one matrix for each group of its columns: (n, groups c) -> (groups, n, c); as it is for one group."""
    if groups == 1:
        return matrix
    xp = namespace(matrix)
    rows, columns = matrix.shape
    return xp.permute_dims(xp.reshape(matrix, (rows, groups, columns // groups)), (1, 0, 2))


def _join(matrices: Array) -> Array:
    """The inverse of `_split`: (groups, n, c) -> (n, groups c); one matrix stays as it is."""
    if matrices.ndim == 2:
        return matrices
    xp = namespace(matrices)
    groups, rows, columns = matrices.shape
    return xp.reshape(xp.permute_dims(matrices, (1, 0, 2)), (rows, groups * columns))
