"""Kernels of convolutions: forward, and the gradients of the image and of the weights. See `kernels` for what one is.

On plain NumPy, what the window sees is copied into a matrix; see `numpy_convolution`. The native kernels read the
images themselves; see `native.convolution`.

`Geometry` has the sizes. A weight is (*kernel, inputs / groups, outputs), for any number of axes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpnn_backends import fast, kernels_activations, numpy_convolution
from xpnn_backends.native.windows import Correlation, Geometry, correlation, phases, weight_sums
from xpnn_backends.recording import Kernel, RecordedArray, Recorder, constant

_CODES = {"float32": "f4", "float64": "f8"}


# ----------------------------------------------------------------------------------------------------------------------
# in NumPy


def _correlate(
    x: Any, weight: Any, packed: Any, bias: Any, geometry: Geometry, backward: int, relu: int, scratch: Any, y: Any
) -> None:
    numpy_convolution.correlate(x, weight, bias, geometry, bool(backward), bool(relu), y)


def _weight_gradient(x: Any, dy: Any, geometry: Geometry, scratch: Any, sums: Any) -> None:
    numpy_convolution.weight_gradient(x, dy, geometry, sums)


def _place_gradient(name: str | None) -> Any:
    """function(kept, dy, channels, blocks, dz, sums): all sums go into the first row, and 0 into the others."""
    derivative = kernels_activations.LINEAR_GRADIENT[name]

    def run(kept: Any, dy: Any, channels: int, blocks: int, dz: Any, sums: Any) -> None:
        assert derivative is not None
        rows = (-1, channels)
        matrix = sums.reshape(rows)
        matrix[1:] = 0.0
        derivative.function(kept.reshape(-1), dy.reshape(-1), dz.reshape(-1), matrix[:0])
        numpy_convolution.sum_rows(dz.reshape(rows), matrix[0])

    return run


def _place_sums(dy: Any, channels: int, blocks: int, sums: Any) -> None:
    matrix = sums.reshape(-1, channels)
    matrix[1:] = 0.0
    numpy_convolution.sum_rows(dy.reshape(-1, channels), matrix[0])


def _pack(weight: Any, geometry: Geometry, backward: int, packed: Any) -> None:
    """Plain NumPy reads the weights as they are."""


def _add_blocks(blocks: int, sums: Any, total: Any) -> None:
    np.add.reduce(sums.reshape(blocks, -1), 0, out=total.reshape(-1))


# ----------------------------------------------------------------------------------------------------------------------
# natively


class Layout(NamedTuple):
    """How a convolution, forward or backward, is cut into pieces on this processor.

    Attributes:
        lanes: numbers in a vector.
        width: columns of a block of packed weights.
        images: how many are worked on together.
        packed: the size of the packed weights.
        scratch: the size of the images with zeros around, for all threads.
    """

    lanes: int
    width: int
    images: int
    packed: int
    scratch: int


_IMAGE_BYTES = 1 << 20
"""Of images that are worked on together: small enough for the second-level cache."""
_BAND_BYTES = 36 << 10
"""Of the rows of an image and its places that are worked on together: they fit into the first-level cache."""
_MOST_BLOCKS = 8
"""Of the batch, whose gradients of the weights are added up apart."""
_PERIOD = 512
"""Numbers in the rows of places that are added up side by side."""
_MOST_SUMS = 1 << 20
"""Numbers in all these gradients together; where they are larger, there are fewer blocks."""

_correlation = lru_cache(maxsize=256)(correlation)
_weight_sums = lru_cache(maxsize=256)(weight_sums)


def is_native(dtype: Any) -> bool:
    """True if there may be native kernels for this dtype."""
    return np.dtype(dtype).name in _CODES and fast.why_not() is None


def tiling_of(dtype: Any) -> Any:
    """The sizes of native tiles for a dtype."""
    from xpnn_backends.native import tiles

    return tiles.tiling(_CODES[np.dtype(dtype).name])


def _together(geometry: Geometry, padded: int, weights: int, batch: int, dtype: Any) -> int:
    """How many images are worked on together, so that the weights are read from far less often than the images."""
    size = int(np.dtype(dtype).itemsize)
    image = max(padded, math.prod(geometry.image) * geometry.channels[0]) * size
    fitting = max(1, _IMAGE_BYTES // image)
    wanted = max(1, weights * size // (4 * image))
    return max(1, min(fitting, wanted, batch))


@lru_cache(maxsize=256)
def layout(geometry: Geometry, backward: int, batch: int, dtype: Any) -> Layout:
    """The pieces of a convolution."""
    if not is_native(dtype):
        return Layout(0, 0, 0, 0, 0)
    inputs, outputs, groups = geometry.channels
    columns, depth = (inputs // groups, outputs // groups) if backward else (outputs // groups, inputs // groups)
    found: Correlation = _correlation(geometry, bool(backward))
    tiling = tiling_of(dtype)
    if geometry.is_depthwise:
        packed, width = geometry.taps * inputs, 2 * tiling.lanes
    else:
        rows = min(phase.length for phase in phases(geometry, 2, bool(backward)))
        width = tiling.vectors(rows, columns) * tiling.lanes
        packed = groups * geometry.taps * depth * tiling.packed_columns(columns)
    images = _together(geometry, found.padded, packed, batch, dtype)
    return Layout(tiling.lanes, width, images, packed, found.padded * images * fast.most_parts())


def block_address(kind: str, dtype: Any, columns: int) -> int:
    """The address of the tiles of that kind; 0, and no native kernels from now on, if they do not compile."""
    from xpnn_backends.native import machine, tiles

    return int(machine.compiled_address(tiles.compiled_block, kind, _CODES[np.dtype(dtype).name], columns))


def _words(numbers: list[int]) -> RecordedArray:
    return constant(np.array(numbers, np.int64))


def _native_pack(weight: RecordedArray, geometry: Geometry, backward: int, packed: RecordedArray) -> Any:
    inputs, outputs, groups = geometry.channels
    if not packed.size:
        return None
    order = _words(_correlation(geometry, bool(backward)).order)
    if geometry.is_depthwise:
        return "pack_weights", (order, 1, inputs, 1, 0, 1, inputs, weight, packed)
    found = layout(geometry, backward, 1, weight.dtype)
    operands = (inputs // groups, outputs // groups, groups, backward, found.lanes, found.width)
    return "pack_weights", (order, *operands, weight, packed)


def _native_correlate(
    x: RecordedArray,
    weight: RecordedArray,
    packed: RecordedArray,
    bias: RecordedArray,
    geometry: Geometry,
    backward: int,
    relu: int,
    scratch: RecordedArray,
    y: RecordedArray,
) -> Any:
    if not packed.size:
        return None
    inputs, outputs, groups = geometry.channels
    columns = (inputs if backward else outputs) // (1 if geometry.is_depthwise else groups)
    function = block_address("lanes" if geometry.is_depthwise else "rows", y.dtype, columns)
    if not function:
        return None
    batch = y.size // (math.prod(geometry.image if backward else geometry.places) * (inputs if backward else outputs))
    found, tables = layout(geometry, backward, batch, y.dtype), _correlation(geometry, bool(backward))
    settings = (function, int(geometry.is_depthwise), relu, found.lanes, found.width, found.images)
    return "correlate", (*settings, _words(tables.sizes), _words(tables.table), x, packed, bias, scratch, y)


def sum_blocks(geometry: Geometry, batch: int) -> int:
    """Into how many blocks the batch is cut for the gradient of the weights; it does not depend on the processor."""
    inputs, outputs, groups = geometry.channels
    size = geometry.taps * (inputs // groups) * outputs
    return max(1, min(batch, _MOST_BLOCKS, _MOST_SUMS // size))


@lru_cache(maxsize=256)
def sum_images(geometry: Geometry, batch: int, dtype: Any) -> tuple[int, int]:
    """(how many images the gradient of the weights works on together, the size of its scratch memory)."""
    if not is_native(dtype):
        return 0, 0
    padded = _weight_sums(geometry, 1).padded
    places = math.prod(geometry.places)
    wanted = -(-256 // places)  # the sums are read and written once for all of them
    image = max(padded, math.prod(geometry.image) * geometry.channels[0]) * np.dtype(dtype).itemsize
    images = max(1, min(wanted, _IMAGE_BYTES // image, batch))
    return images, padded * images * fast.most_parts()


def _native_weight_gradient(
    x: RecordedArray, dy: RecordedArray, geometry: Geometry, scratch: RecordedArray, sums: RecordedArray
) -> Any:
    if not is_native(x.dtype):
        return None
    inputs, outputs, groups = geometry.channels
    depthwise = geometry.is_depthwise
    function = block_address("lanes" if depthwise else "columns", x.dtype, outputs if depthwise else outputs // groups)
    if not function:
        return None
    batch = x.size // (math.prod(geometry.image) * inputs)
    images, _ = sum_images(geometry, batch, x.dtype)
    tables, tiling = _weight_sums(geometry, images), tiling_of(x.dtype)
    width = 2 * tiling.lanes
    length, size = geometry.places[2], x.dtype.itemsize
    row = length * (geometry.stride[2] * inputs + min(width, outputs)) * size
    # Short sums are not worth to be written and read again.
    band = max(1, _BAND_BYTES // row, -(-128 // length))
    settings = (function, int(depthwise), width, images, band, sums.shape[0])
    return "weight_sums", (*settings, _words(tables.sizes), _words(tables.table), x, dy, scratch, sums)


PACK = Kernel("pack_weights", _pack, _native_pack)
"""pack_weights(weight, geometry, backward, packed): the weights, as the native CORRELATE reads them."""

CORRELATE = Kernel("correlate", _correlate, _native_correlate)
"""correlate(x, weight, packed, bias, geometry, backward, relu, scratch, y): a convolution of x with a bias, which may
be empty, and with its ReLU, if relu is 1. Backward, x are gradients of places, and y those of the image."""

WEIGHT_GRADIENT = Kernel("weight_sums", _weight_gradient, _native_weight_gradient)
"""weight_sums(x, dy, geometry, scratch, sums): the gradients of the weights for each block of the batch."""

ADD_BLOCKS = Kernel("add_blocks", _add_blocks, "add_blocks")
"""add_blocks(blocks, sums, total): the sum of all blocks."""

PLACE_GRADIENT: dict[str | None, Kernel] = {
    name: Kernel(native, _place_gradient(name), native, (4, 5))
    for name, native in (
        ("relu", "relu_place_gradient"),
        ("tanh", "tanh_place_gradient"),
        *((name, "slope_place_gradient") for name in kernels_activations.LINEAR_WITH_SLOPE),
    )
}
"""activation -> kernel(kept, dy, channels, blocks, dz, sums): dz = dy times the derivative, which is found from what
was kept, and its sums over the places: some for each block of them, whose sum is wanted."""

PLACE_SUMS = Kernel("place_sums", _place_sums, "place_sums")
"""place_sums(dy, channels, blocks, sums): the sums of PLACE_GRADIENT alone."""


def correlate(
    recorder: Recorder,
    x: RecordedArray,
    weight: RecordedArray,
    bias: RecordedArray,
    geometry: Geometry,
    backward: bool,
    relu: bool,
    y: RecordedArray,
) -> None:
    """Write down y = the convolution of x."""
    found = layout(geometry, int(backward), x.shape[0], x.dtype)
    packed = recorder.empty((found.packed,), x.dtype)
    scratch = recorder.empty((found.scratch,), x.dtype)
    recorder.call(PACK, weight, geometry, int(backward), packed)
    recorder.call(CORRELATE, x, weight, packed, bias, geometry, int(backward), int(relu), scratch, y)


def weight_gradient(
    recorder: Recorder, x: RecordedArray, dy: RecordedArray, geometry: Geometry, dweight: RecordedArray
) -> None:
    """Write down the gradient of the weights."""
    blocks = sum_blocks(geometry, x.shape[0])
    _, size = sum_images(geometry, x.shape[0], x.dtype)
    sums = dweight if blocks == 1 else recorder.empty((blocks, dweight.size), x.dtype)
    scratch = recorder.empty((size,), x.dtype)
    recorder.call(WEIGHT_GRADIENT, x, dy, geometry, scratch, recorder.reshape(sums, (blocks, dweight.size)))
    if blocks > 1:
        recorder.call(ADD_BLOCKS, blocks, sums, dweight)


def place_gradient(
    recorder: Recorder, name: str | None, kept: RecordedArray, dy: RecordedArray, has_bias: bool
) -> tuple[RecordedArray, RecordedArray | None]:
    """Write down (the gradient dy taken through an activation, its sum over all places for the bias, or None)."""
    if name is None and not has_bias:
        return dy, None
    channels = kept.shape[-1]
    blocks = min(_MOST_BLOCKS, kept.size // channels)
    at_a_time = max(1, _PERIOD // channels)
    sums = recorder.empty((blocks, at_a_time, channels), kept.dtype)
    dz = dy
    if name is None:
        recorder.call(PLACE_SUMS, dy, channels, blocks, sums)
    else:
        dz = recorder.empty(kept.shape, kept.dtype)
        recorder.call(PLACE_GRADIENT[name], kept, dy, channels, blocks, dz, sums)
    if not has_bias:
        return dz, None
    dbias = recorder.empty((channels,), kept.dtype)
    recorder.call(ADD_BLOCKS, blocks * at_a_time, sums, dbias)
    return dz, dbias
