"""Activations, fused linear maps and dropout in recorded steps: NumPy and native kernels against the generic bodies."""

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest

from xpnn import dispatch, ops
from xpnn.ops.linear import FUSABLE
from xpnn.random import RandomKey, mask_threshold
from xpnn_backends import philox
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.fast import why_not

_ACTIVATIONS: dict[str, Any] = {
    "relu": {},
    "leaky_relu": {},
    "leaky_relu-steep": {"negative_slope": 0.3},
    "elu": {},
    "elu-large": {"alpha": 2.5},
    "selu": {},
    "celu": {},
    "celu-small": {"alpha": 0.25},
    "smelu": {},
    "smelu-narrow": {"beta": 0.7},
    "softplus": {},
    "softplus-steep": {"beta": 3.0},
    "softsign": {},
    "sigmoid": {},
    "log_sigmoid": {},
    "hard_sigmoid": {},
    "tanh": {},
    "gelu": {},
    "gelu-tanh": {"approximate": "tanh"},
    "gelu_tanh": {},
    "silu": {},
    "mish": {},
    "hard_swish": {},
    "normal_cdf": {},
    "softmax": {},
    "log_softmax": {},
}

native_too = pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
every_activation = pytest.mark.parametrize("name", _ACTIVATIONS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def _with_numba(request):
    wanted = getattr(request.node, "callspec", None) and request.node.callspec.params.get("native", True)
    if wanted and why_not():
        pytest.skip(why_not())


class State(NamedTuple):
    gradients: Any
    step: int


def _compiled(function, arguments, native, step=0):
    """(value, gradients) of function(step, *arguments) -> (value, gradients), as a recorded step gives them."""

    def step_function(state, batch):
        value, gradients = function(state.step, *batch)
        return State(gradients, state.step + 1), value

    _, gradients = function(step, *arguments)
    compiled = CompiledStep(step_function, native)
    state, value = compiled(State(tuple(np.zeros_like(each) for each in gradients), step), tuple(arguments))
    assert compiled.why_not is None
    return value, state.gradients


def _both(op, options, count):
    """function(step, *arguments, dy): value and the first `count` gradients of an op."""

    def function(step, *given):
        *arguments, dy = given
        y, vjp = getattr(ops, op)(*arguments, **options)
        return y, vjp(dy)[:count]

    return function


def _assert_close(got, want, dtype, roundings=64, scale=None):
    """Equal but for roundings of each number (or of `scale`) and of what is below the normal numbers."""
    limits = np.finfo(dtype)
    np.testing.assert_allclose(
        got, want, rtol=roundings * limits.eps, atol=4 * limits.smallest_normal if scale is None else scale * limits.eps
    )


def _compare(name, x, dy, native):
    op, options = name.partition("-")[0], _ACTIVATIONS[name]
    function = _both(op, options, 1)
    value, (dx,) = _compiled(function, (x, dy), native)
    with dispatch.without_overrides():
        want, (dwant,) = function(0, x, dy)
    assert value.dtype == dx.dtype == x.dtype
    soft = op.endswith("softmax")
    # In a row, small results are differences of large ones; so are the slopes of x g(x) and of tanh.
    _assert_close(value, want, x.dtype, scale=1024 if soft else None)
    cancels = soft or op in ("gelu", "gelu_tanh", "silu", "mish", "hard_swish", "tanh")
    _assert_close(dx, dwant, x.dtype, scale=1024 if cancels else None)


@native_too
@both_dtypes
@every_activation
@pytest.mark.parametrize("shape", [(1,), (5, 3), (37, 41)])
def test_an_activation_is_that_of_its_op(name, shape, dtype, native):
    generator = np.random.default_rng(3)
    x, dy = (generator.normal(size=shape).astype(dtype) * 4 for _ in range(2))
    _compare(name, x, dy, native)


@native_too
@both_dtypes
@every_activation
def test_at_the_extremes_an_activation_is_that_of_its_op(name, dtype, native):
    largest = float(np.finfo(dtype).max)
    sizes = [0.0, 1e-40, 1e-30, 0.7, 1.0, 3.0, 20.0, 90.0, 105.0, 720.0, 750.0, 1e4, 1e30, largest, np.inf]
    x = np.array([[sign * size] for size in sizes for sign in (1, -1)] + [[np.nan]], dtype)
    if name.endswith("softmax"):
        # Each beside ordinary numbers.
        x = np.concatenate([x, np.full_like(x, 0.5), np.full_like(x, -2.0)], axis=1)
    with np.errstate(all="ignore"):
        _compare(name, x, np.ones_like(x), native)


@native_too
@pytest.mark.parametrize("name", ["relu", "hard_sigmoid", "hard_swish"])
def test_where_an_activation_is_flat_an_infinite_gradient_becomes_0(name, native):
    x = np.array([-7.0, -4.0], np.float32)
    _, (dx,) = _compiled(_both(name, {}, 1), (x, np.array([np.inf, np.nan], np.float32)), native)
    np.testing.assert_array_equal(dx, [0.0, 0.0])


@native_too
@both_dtypes
@pytest.mark.parametrize("slopes", [1, 5])
def test_prelu_is_that_of_its_op(slopes, dtype, native):
    generator = np.random.default_rng(4)
    x, dy = (generator.normal(size=(3, 7, 5)).astype(dtype) for _ in range(2))
    slope = generator.normal(size=slopes).astype(dtype)
    function = _both("prelu", {}, 2)
    value, gradients = _compiled(function, (x, slope, dy), native)
    want, wanted = function(0, x, slope, dy)
    _assert_close(value, want, dtype)
    for mine, theirs in zip(gradients, wanted, strict=True):
        _assert_close(mine, theirs, dtype, scale=256)


@native_too
@both_dtypes
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("activation", [None, *FUSABLE])
@pytest.mark.parametrize("shape", [(3, 4, 5), (40, 30, 70)], ids=["small", "large"])
def test_linear_maps_with_an_activation(activation, shape, bias, dtype, native):
    rows, features, units = shape
    generator = np.random.default_rng(5)
    x, weight, offset, dy = (
        generator.normal(size=size).astype(dtype)
        for size in ((rows, features), (features, units), (units,), (rows, units))
    )
    function = _both("linear", {"activation": activation}, 3 if bias else 2)
    arguments = (x, weight, offset, dy) if bias else (x, weight, dy)
    value, gradients = _compiled(function, arguments, native)
    with dispatch.without_overrides():
        want, wanted = function(0, *arguments)
    for mine, theirs in zip((value, *gradients), (want, *wanted), strict=True):
        # What is added up cancels in part.
        _assert_close(mine, theirs, dtype, scale=16 * features * rows**0.5)


@native_too
def test_every_fusable_activation_is_part_of_the_linear_kernel(native):
    """Forward one kernel; backward one for activation and bias, and two products."""
    for activation in FUSABLE:
        x, weight, bias, dy = (np.ones(size, np.float32) for size in ((4, 3), (3, 2), (2,), (4, 2)))
        names = []

        def step(state, batch, activation=activation, names=names):
            y, vjp = ops.linear(*batch[:3], activation=activation)
            gradients = vjp(batch[3])
            names[:] = [each.kernel.name for each in y.recorder.instructions]
            return State(gradients, state.step + 1), y

        compiled = CompiledStep(step, native)
        compiled(State((x * 0, weight * 0, bias * 0), 0), (x, weight, bias, dy))
        assert compiled.why_not is None
        assert names[0] == f"linear_{activation}"
        assert names[1].endswith("_gradient")
        assert names[2:] == ["product", "product"]


def _key(step):
    return RandomKey(2**64 - 3, 2**63 + 5, step)


@native_too
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("size", [1, 3, 4, 16, 17, 1000, 5003])
def test_a_recorded_mask_has_the_bits_of_its_step(size, rate, native):
    x = np.ones(size, np.float32)

    def step_function(state, batch):
        mask, _ = ops.random_mask(batch[0], _key(state.step), rate)
        return State((), state.step + 1), mask

    compiled = CompiledStep(step_function, native)
    state = State((), 6)
    for step in (6, 7, 8):
        state, mask = compiled(state, (x,))
        want = philox.keep_mask(2**64 - 3, 2**63 + 5, step, (size,), mask_threshold(rate))
        np.testing.assert_array_equal(mask, want)
    assert compiled.why_not is None


@native_too
@both_dtypes
@pytest.mark.parametrize("shape", [(7,), (9, 11), (130, 257)])
def test_recorded_dropout_is_that_of_the_op(shape, dtype, native):
    generator = np.random.default_rng(6)
    x, dy = (generator.normal(size=shape).astype(dtype) for _ in range(2))
    x[(0,) * len(shape)] = np.inf

    def function(step, x, dy):
        y, vjp = ops.dropout(x, _key(step), 0.3)
        return y, vjp(dy)

    for step in (0, 41):
        value, (dx,) = _compiled(function, (x, dy), native, step)
        want, (dwant,) = function(step, x, dy)
        np.testing.assert_array_equal(value, want)
        np.testing.assert_array_equal(dx, dwant)


# ----------------------------------------------------------------------------------------------------------------------
# elementary functions


def _spacings(got, want):
    """How far `got` is from a more precise `want`, in units of its last place."""
    unit = np.spacing(np.abs(want.astype(got.dtype))).astype(want.dtype)
    return np.abs(got.astype(want.dtype) - want) / unit


def _loop(function):
    from numba import njit

    @njit(error_model="numpy")
    def run(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def call(x):
        y = np.empty_like(x)
        run(x, y)
        return y

    return call


_FUNCTIONS = {"exp": (-103, 88), "expm1": (-30, 88), "log": (1e-38, 1e38), "log1p": (-0.999, 1e6), "tanh": (-12, 12)}
_ULP = {"exp": 1.1, "expm1": 1.9, "log": 1.0, "log1p": 1.5, "tanh": 2.7}


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_elementary_functions_are_right_to_the_last_places(name):
    from xpnn_backends.native import elementary

    low, high = _FUNCTIONS[name]
    generator = np.random.default_rng(7)
    if name == "log":
        x = np.exp(generator.uniform(np.log(low), np.log(high), 40000))
        x[::2] = generator.uniform(0.4, 2.2, 20000)
    else:
        x = generator.uniform(low, high, 40000)
        x[::2] = generator.uniform(max(low, -1.0), 1.0, 20000)
    ours, theirs = _loop(getattr(elementary, name)), getattr(np, name)
    single = x.astype(np.float32)
    assert _spacings(ours(single), theirs(single.astype(np.float64))).max() < _ULP[name]
    # NumPy's own result is off by up to one place in float64.
    assert _spacings(ours(x), theirs(x)).max() <= np.ceil(_ULP[name]) + 1


@both_dtypes
@pytest.mark.parametrize("name", _FUNCTIONS)
def test_elementary_functions_at_the_extremes(name, dtype):
    from xpnn_backends.native import elementary

    limits = np.finfo(dtype)
    sizes = [0.0, limits.smallest_subnormal, limits.tiny, 1e-5, 1.0, 88.7, 103.5, 709.7, 744.9, 1e4, limits.max, np.inf]
    x = np.array([sign * size for size in sizes for sign in (1, -1)] + [np.nan], dtype)
    with np.errstate(all="ignore"):
        want = getattr(np, name)(x)
    np.testing.assert_allclose(
        _loop(getattr(elementary, name))(x), want, rtol=4 * limits.eps, atol=2 * limits.smallest_subnormal
    )


# ----------------------------------------------------------------------------------------------------------------------
# parts


def _run_parts(name, parts, *operands):
    """Run a native kernel on float32 operands as that many parts, one after the other, the last one first."""
    from xpnn_backends.native import machine, registry

    assert machine.FAMILIES, "the modules with the kernels are loaded"
    words, alive = [], []
    for token, operand in zip(registry.KERNELS[name].operands.split(), operands, strict=True):
        if token == "int":
            words.append(operand)
        elif token == "number":
            alive.append(np.array([operand], np.float64))
            words.append(alive[-1].ctypes.data)
        else:
            words += [operand.ctypes.data, *(operand.shape if token.endswith(":2") else (operand.size,))]
    block = np.array(words, np.int64)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(registry.compiled(name, "f4").address)
    for part in reversed(range(parts)):
        call(block.ctypes.data, part, parts)


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("case", ["gelu", "dropout", "softmax", "log_softmax", "slope_gradient", "prelu_gradient"])
def test_the_number_of_parts_changes_no_bit(case, parts):
    generator = np.random.default_rng(8)
    x, z = (generator.normal(size=(37, 53)).astype(np.float32) for _ in range(2))
    bias = generator.normal(size=53).astype(np.float32)
    operands = {
        "gelu": lambda out: (x, 0.0, *out[:2]),
        "dropout": lambda out: (5, 6, 7, mask_threshold(0.3), 1.5, x, out[2], out[0]),
        "softmax": lambda out: (x, 53, out[0]),
        "log_softmax": lambda out: (x, 53, *out[:2]),
        "slope_gradient": lambda out: (x, z, out[0], out[3]),
        "prelu_gradient": lambda out: (x, bias, z, out[0], out[3]),
    }[case]
    results = []
    for count in (1, parts):
        out = (np.zeros_like(x), np.zeros_like(x), np.zeros(x.shape, np.bool_), np.zeros(53, np.float32))
        _run_parts(case, count, *operands(out))
        results.append(out)
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)
    assert any(each.any() for each in results[0])
