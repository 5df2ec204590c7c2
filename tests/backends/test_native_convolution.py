"""Convolutions in recorded steps, on NumPy and natively, against the generic bodies; and the tiles inside them."""

import ctypes

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import dispatch, ops
from xpnn.ops.linear import FUSABLE
from xpnn_backends import fast, kernels_convolution
from xpnn_backends.compiled_step import evaluate_recorded
from xpnn_backends.fast import why_not
from xpnn_backends.native.windows import Geometry, correlation, phases
from xpnn_backends.recording import RecordedArray, Recorder

native_too = pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def _with_numba(request):
    wanted = getattr(request.node, "callspec", None) and request.node.callspec.params.get("native", True)
    if wanted and why_not():
        pytest.skip(why_not())


def _settings(axes, stride=1, padding=(0, 0), dilation=1, **others):
    return {"stride": (stride,) * axes, "padding": (padding,) * axes, "dilation": (dilation,) * axes, **others}


# name -> shape of x, shape of the weight, settings
_CONVOLUTIONS = {
    "3x3": ((2, 9, 28, 8), (3, 3, 8, 32), _settings(2, padding=(1, 1))),
    "3x3-ragged": ((3, 7, 9, 5), (3, 3, 5, 37), _settings(2, padding=(1, 1))),
    "5x5-one-channel": ((5, 12, 13, 1), (5, 5, 1, 6), _settings(2)),
    "few-places": ((9, 4, 4, 16), (3, 3, 16, 64), _settings(2, padding=(1, 1))),
    "one-place": ((4, 3, 3, 6), (3, 3, 6, 20), _settings(2)),
    "stride-2": ((2, 10, 11, 6), (3, 3, 6, 40), _settings(2, stride=2, padding=(1, 1))),
    "stride-2-pointwise": ((2, 8, 9, 16), (1, 1, 16, 32), _settings(2, stride=2)),
    "stride-beyond-window": ((2, 9, 8, 3), (2, 1, 3, 4), _settings(2, stride=3)),
    "stride-and-dilation": ((2, 13, 12, 4), (3, 2, 4, 18), _settings(2, stride=2, dilation=2, padding=(2, 1))),
    "stride-2-dilation-3": ((1, 16, 15, 3), (3, 3, 3, 5), _settings(2, stride=2, dilation=3, padding=(3, 3))),
    "padding-beyond-window": ((2, 4, 5, 3), (2, 3, 3, 4), _settings(2, padding=(4, 5))),
    "padding-one-side": ((2, 5, 6, 3), (3, 2, 3, 4), _settings(2, padding=(0, 2))),
    "pointwise": ((2, 5, 6, 7), (1, 1, 7, 9), _settings(2)),
    "pointwise-padded": ((2, 5, 6, 7), (1, 1, 7, 9), _settings(2, padding=(1, 0))),
    "groups": ((2, 6, 7, 12), (3, 3, 4, 21), _settings(2, padding=(1, 1), groups=3)),
    "groups-strided": ((2, 9, 9, 16), (3, 3, 8, 36), _settings(2, stride=2, padding=(1, 1), groups=2)),
    "depthwise": ((3, 8, 9, 37), (3, 3, 1, 37), _settings(2, padding=(1, 1), groups=37)),
    "depthwise-strided": ((2, 9, 10, 32), (3, 3, 1, 32), _settings(2, stride=2, dilation=2, padding=(1, 1), groups=32)),
    "depthwise-doubled": ((2, 6, 6, 5), (3, 3, 1, 10), _settings(2, padding=(1, 1), groups=5)),
    "1d-causal": ((3, 30, 6), (3, 6, 20), _settings(1, padding=(4, 0), dilation=2)),
    "3d": ((2, 5, 6, 7, 3), (3, 2, 3, 3, 17), _settings(3, padding=(1, 0))),
    "3d-strided": ((2, 5, 6, 7, 4), (3, 2, 3, 2, 10), _settings(3, stride=2, padding=(1, 1), groups=2)),
    "relu": ((3, 8, 9, 5), (3, 3, 5, 7), _settings(2, padding=(1, 1), activation="relu")),
    "many-images": ((19, 6, 5, 4), (3, 3, 4, 8), _settings(2, padding=(1, 1))),
}
every_convolution = pytest.mark.parametrize("name", _CONVOLUTIONS)


def _arrays(x, weight, dtype):
    """x, weight and bias."""
    generator = np.random.default_rng(1)
    return [generator.normal(size=shape).astype(dtype) for shape in (x, weight, weight[-1:])]


def _assert_close(got, want, dtype, terms):
    """Equal but for the roundings of a sum of so many terms."""
    assert got.dtype == want.dtype
    scale = max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(dtype).eps * scale * terms**0.5)


def _compare(function, arrays, dtype, native, terms):
    """Value and gradients of a recorded op are those of its generic body."""
    value, backward = evaluate_recorded(function, tuple(arrays), native)
    with dispatch.without_overrides():
        want, vjp = function(*arrays)
        dy = np.random.default_rng(2).normal(size=want.shape).astype(dtype)
        wanted = vjp(dy)
    _assert_close(value, want, dtype, terms)
    for mine, theirs in zip(backward(dy), wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            _assert_close(mine, theirs, dtype, terms)


def _terms(x, weight):
    """The longest sum: over taps and channels, or over all places."""
    return max(int(np.prod(weight)), int(np.prod(x)))


@native_too
@both_dtypes
@every_convolution
def test_a_convolution_is_that_of_its_op(name, dtype, native):
    x, weight, settings = _CONVOLUTIONS[name]
    _compare(lambda *given: ops.conv(*given, **settings), _arrays(x, weight, dtype), dtype, native, _terms(x, weight))


@native_too
@both_dtypes
@every_convolution
def test_a_transposed_convolution_is_that_of_its_op(name, dtype, native):
    x, weight, settings = _CONVOLUTIONS[name]
    places, _ = ops.conv(np.zeros(x), np.zeros(weight), **settings)
    # Back from the places to the lengths of x.
    extra = tuple(
        length + sum(pair) - ((count - 1) * step + distance * (taps - 1) + 1)
        for length, pair, count, step, distance, taps in zip(
            x[1:-1],
            settings["padding"],
            places.shape[1:-1],
            settings["stride"],
            settings["dilation"],
            weight[:-2],
            strict=True,
        )
    )
    generator = np.random.default_rng(3)
    arrays = [generator.normal(size=shape).astype(dtype) for shape in (places.shape, weight, x[-1:])]
    settings = {**settings, "output_padding": extra}
    _compare(lambda *given: ops.conv_transpose(*given, **settings), arrays, dtype, native, _terms(places.shape, weight))


@native_too
@pytest.mark.parametrize("activation", FUSABLE)
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_the_activation_is_part_of_the_op(op, activation, native):
    x, weight = (3, 6, 7, 4), (3, 3, 4, 4)
    settings = _settings(2, padding=(1, 1), activation=activation)
    if op == "conv_transpose":
        settings["output_padding"] = (0, 0)
    function = getattr(ops, op)
    _compare(lambda *given: function(*given, **settings), _arrays(x, weight, "float64"), "float64", native, 1000)


@native_too
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch, native):
    x, weight, settings = (batch, 5, 6, 3), (3, 3, 3, 4), _settings(2, padding=(1, 1))
    _compare(lambda *given: ops.conv(*given, **settings), _arrays(x, weight, "float64"), "float64", native, 1000)


@native_too
def test_without_a_bias_and_without_the_gradient_of_the_image(native):
    x, weight = (2, 5, 6, 3), (3, 3, 3, 4)
    settings = _settings(2, input_gradient=False, activation="relu")
    arrays = _arrays(x, weight, "float64")[:2]
    _compare(lambda *given: ops.conv(*given, **settings), arrays, "float64", native, 1000)


@native_too
def test_a_nan_stays_a_nan(native):
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 0, 0, 0] = np.nan
    settings = _settings(2, activation="relu")
    value, _ = evaluate_recorded(
        lambda *given: ops.conv(*given, **settings), (x, np.ones((2, 2, 1, 3), np.float32)), native
    )
    assert np.isnan(value[0, 0, 0]).all()
    np.testing.assert_array_equal(value[0, 1:], 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# parts


def _in_parts(function, arrays, parts):
    """What function(*arrays) gives when each native kernel runs as so many parts, one by one, the last one first."""
    from xpnn_backends.native import machine, registry

    assert machine.FAMILIES, "the modules with the kernels are loaded"
    recorder = Recorder()
    inputs = [recorder.input(x) for x in arrays]
    results = function(*inputs)
    real = {recorded.memory: x for recorded, x in zip(inputs, arrays, strict=True)}

    def found(operand):
        if operand.memory.role == "constant":
            return operand.ghost
        if operand.memory not in real:
            real[operand.memory] = np.full(operand.memory.ghost.shape, np.nan, operand.dtype)
        return real[operand.memory]

    for kernel, operands in recorder.instructions:
        name, given = kernel.native(*operands) if callable(kernel.native) else (kernel.native, operands)
        declared = registry.KERNELS[name]
        words = []
        for token, operand in zip(declared.operands.split(), given, strict=True):
            if token == "int":
                words.append(operand)
            else:
                assert isinstance(operand, RecordedArray)
                words += [found(operand).ctypes.data, *(operand.shape if token.endswith(":2") else (operand.size,))]
        block = np.array(words, np.int64)
        call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(registry.compiled(name, "f4").address)
        for part in reversed(range(parts if declared.parallel else 1)):
            call(block.ctypes.data, part, parts if declared.parallel else 1)
    return [found(result).copy() for result in results]


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("name", [name for name in _CONVOLUTIONS if name != "pointwise"])  # that is a linear map
def test_the_number_of_parts_changes_no_bit(name, parts, monkeypatch):
    shape, weight, settings = _CONVOLUTIONS[name]
    monkeypatch.setattr(fast, "most_parts", lambda: parts)
    for cached in (kernels_convolution.layout, kernels_convolution.sum_images):
        cached.cache_clear()
    dy = np.random.default_rng(2).normal(size=ops.conv(np.zeros(shape), np.zeros(weight), **settings)[0].shape)

    def function(x, weight, bias, dy):
        y, vjp = ops.conv(x, weight, bias, **settings)
        return y, *vjp(dy)

    arrays = [*_arrays(shape, weight, "float32"), dy.astype(np.float32)]
    for one, many in zip(_in_parts(function, arrays, 1), _in_parts(function, arrays, parts), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, many)
    for cached in (kernels_convolution.layout, kernels_convolution.sum_images):
        cached.cache_clear()


# ----------------------------------------------------------------------------------------------------------------------
# tables


def test_each_tap_belongs_to_one_phase_and_each_position_to_one():
    for stride in range(1, 5):
        for dilation in range(1, 4):
            for before in range(3):
                lengths = (1, 1, 11), (1, 1, 4), (1, 1, 3), (1, 1, stride), (0, 0, before), (1, 1, dilation), (2, 3, 1)
                found = phases(Geometry(*lengths), 2, True)
                positions = [phase.first + phase.step * i for phase in found for i in range(phase.length)]
                assert sorted(positions) == list(range(11))
                assert sorted(tap for phase in found for tap, _ in phase.taps) in ([0, 1, 2], [0], [0, 1], [1, 2])


def test_taps_side_by_side_are_one_step():
    geometry = Geometry((1, 8, 8), (1, 8, 8), (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), (4, 5, 1))
    assert len(correlation(geometry, False).table) == len(correlation(geometry, True).table) == 2 * 3
    assert correlation(geometry, True).order == list(range(9))[::-1]


# ----------------------------------------------------------------------------------------------------------------------
# tiles


@both_dtypes
@pytest.mark.parametrize("columns", [1, 5, 16, 20, 32, 48, 64, 100, 112])
def test_a_product_with_packed_weights_of_any_size(columns, dtype):
    from numba import njit

    from xpnn_backends.native import tiles

    code = {"float32": "f4", "float64": "f8"}[dtype]
    sizes = tiles.tiling(code)
    function = tiles.compiled_block("rows", code, columns).address

    @njit
    def product(function, a, weight, packed, c, lanes, width, zeros, flags):
        depth, columns = weight.shape
        tiles.pack_rows(weight.ravel(), 0, columns, 1, depth, columns, lanes, width, packed, 0, depth)
        tiles.product_of_packed(
            function, a.ctypes.data, a.shape[1], packed.ctypes.data, c.ctypes.data, c.shape[1], a.shape[0], columns,
            depth, lanes, width, a.itemsize, zeros.ctypes.data, flags,
        )  # fmt: skip

    generator = np.random.default_rng(5)
    zeros = np.zeros(2, np.int64)
    for rows in (*range(1, 17), 29):
        for depth in (1, 7):
            a, weight = (generator.normal(size=s).astype(dtype) for s in ((rows, depth), (depth, columns)))
            c = np.full((rows, columns + 1), 2.0, dtype)
            packed = np.full(depth * sizes.packed_columns(columns), np.nan, dtype)
            width = sizes.vectors(rows, columns) * sizes.lanes
            product(function, a, weight, packed, c, sizes.lanes, width, zeros, tiles.ACCUMULATE)
            _assert_close(c[:, :-1], 2.0 + a @ weight, dtype, depth)
            product(function, a, weight, packed, c, sizes.lanes, width, zeros, tiles.RELU)
            _assert_close(c[:, :-1], np.maximum(a @ weight, 0.0), dtype, depth)
            np.testing.assert_array_equal(c[:, -1], 2.0)
