"""The kernels of activations and biases on the GPU against the generic bodies on NumPy in float64."""

import numpy as np
import pytest

from xpnn.dispatch import OPS

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
WHOLE = ("float32", "float64")
HALF = ("float16", "bfloat16")
LINEAR = (None, "gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh")
SIZES = (0, 1, 15, 16, 17, 1023, 4099)
SHAPES = ((1, 1), (3, 16), (5, 17), (300, 10), (2, 1300), (7, 4104), (0, 4), (3, 0))


@pytest.fixture(scope="module")
def names():
    """The ops that have a kernel."""
    pytest.importorskip("cupy")
    from xpnn_backends.cupy.bodies_activations import BODIES

    return tuple(BODIES)


@pytest.fixture
def bodies(gpu):
    from xpnn_backends.cupy import bodies_activations

    return bodies_activations


def numbers(count, seed=0, size=6.0):
    return np.random.default_rng(seed).uniform(-size, size, count)


def on_device(gpu, x, dtype):
    """x in a dtype, on the device; and what it is there, in float64 on the host."""
    there = gpu.asarray(np.asarray(x, np.float32 if dtype != "float64" else np.float64)).astype(gpu.dtype(dtype))
    return there, on_host(gpu, there)


def on_host(gpu, x):
    return gpu.to_host(x.astype(np.float64))


def check(gpu, got, want, dtype, label, roundings=None):
    """The largest difference, relative to the largest result, is a few roundings; for half types 2, as computed in
    float32 and rounded once."""
    got = on_host(gpu, got)
    assert got.shape == want.shape, label
    if not want.size:
        return
    scale = max(np.abs(want).max(), 1e-30)
    allowed = (2.0 if dtype in HALF else 8.0) if roundings is None else roundings
    error = np.abs(got - want).max() / scale / EPS[dtype]
    assert error <= allowed, f"{label}: off by {error:.1f} eps"


def check_op(gpu, bodies, name, dtype, x, dy, **options):
    here, x = on_device(gpu, x, dtype)
    dy_here, dy = on_device(gpu, dy, dtype)
    y, vjp = bodies.BODIES[name](here, **options)
    (dx,) = vjp(dy_here)
    want, want_vjp = OPS[name].generic(x, **options)
    assert y.dtype == dx.dtype == here.dtype
    check(gpu, y, want, dtype, f"{name} {options}: y")
    check(gpu, dx, want_vjp(dy)[0], dtype, f"{name} {options}: dx")


@pytest.mark.parametrize("dtype", WHOLE)
def test_every_activation_is_that_of_the_generic_body(gpu, bodies, names, dtype):
    x, dy = numbers(1023), numbers(1023, 1, 2.0)
    for name in names:
        check_op(gpu, bodies, name, dtype, x, dy)
    check_op(gpu, bodies, "gelu", dtype, x, dy, approximate="tanh")


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_rounded_once(gpu, bodies, dtype):
    x, dy = numbers(1023), numbers(1023, 1, 2.0)
    for name in ("relu", "gelu", "silu", "tanh", "softplus"):
        check_op(gpu, bodies, name, dtype, x, dy)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("leaky_relu", 0.25), ("elu", 1.5), ("celu", 0.5), ("smelu", 0.7), ("softplus", 2.5)],
)
def test_settings_reach_the_kernel(gpu, bodies, name, setting):
    x, dy = on_device(gpu, numbers(100), "float32")[0], on_device(gpu, numbers(100, 1), "float32")[0]
    y, vjp = bodies.BODIES[name](x, setting)
    want, want_vjp = OPS[name].generic(on_host(gpu, x), setting)
    check(gpu, y, want, "float32", name)
    check(gpu, vjp(dy)[0], want_vjp(on_host(gpu, dy))[0], "float32", name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
def test_any_size(gpu, bodies, size, dtype):
    check_op(gpu, bodies, "silu", dtype, numbers(size), numbers(size, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_slices_at_any_address(gpu, bodies, dtype, start):
    whole, _ = on_device(gpu, numbers(1000), dtype)
    gradient, _ = on_device(gpu, numbers(1000, 1), dtype)
    x, dy = whole[start : start + 900], gradient[start : start + 900]
    y, vjp = bodies.BODIES["silu"](x)
    want, want_vjp = OPS["silu"].generic(on_host(gpu, x))
    check(gpu, y, want, dtype, "y")
    check(gpu, vjp(dy)[0], want_vjp(on_host(gpu, dy))[0], dtype, "dx")


def test_arrays_in_any_order(gpu, bodies):
    x = on_device(gpu, numbers(600).reshape(20, 30), "float32")[0].T[::2]
    dy = on_device(gpu, numbers(300, 1).reshape(20, 15), "float32")[0].T
    y, vjp = bodies.BODIES["gelu"](x)
    want, want_vjp = OPS["gelu"].generic(on_host(gpu, x))
    check(gpu, y, want, "float32", "y")
    check(gpu, vjp(dy)[0], want_vjp(on_host(gpu, dy))[0], "float32", "dx")


@pytest.mark.parametrize("dtype", WHOLE)
def test_far_numbers_have_the_right_limits(gpu, bodies, names, dtype):
    x = np.array([0.0, -0.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38, 30.0, -30.0, 90.0, -90.0, 1e-30, -1e-30])
    here, x = on_device(gpu, x, dtype)
    for name in names:
        y, vjp = bodies.BODIES[name](here)
        want, want_vjp = OPS[name].generic(x)
        got = on_host(gpu, y), on_host(gpu, vjp(here * 0 + 1)[0])
        for label, mine, reference in zip(("y", "dx"), got, (want, want_vjp(np.ones_like(x))[0]), strict=True):
            assert np.all(np.isfinite(mine) == np.isfinite(reference)), (name, label, mine)
            np.testing.assert_allclose(mine, reference, rtol=40 * EPS[dtype], atol=1e-37, err_msg=f"{name} {label}")


def test_the_tails_of_gelu_are_right_relatively(gpu, bodies):
    here, x = on_device(gpu, np.linspace(-12.0, 0.0, 200), "float32")
    y, vjp = bodies.BODIES["gelu"](here)
    want, want_vjp = OPS["gelu"].generic(x)
    np.testing.assert_allclose(on_host(gpu, y), want, rtol=1e-5)
    ones = np.ones_like(x)
    slope, wanted = on_host(gpu, vjp(here * 0 + 1)[0]), want_vjp(ones)[0]
    away = np.abs(x + 0.7517916) > 0.05  # where the slope goes through 0, it has no relative error
    np.testing.assert_allclose(slope[away], wanted[away], rtol=3e-5)


def test_nan_stays(gpu, bodies, names):
    here, _ = on_device(gpu, np.full(5, np.nan), "float32")
    for name in names:
        assert np.isnan(on_host(gpu, bodies.BODIES[name](here)[0])).all(), name


def test_the_slope_of_relu_is_0_for_any_gradient(gpu, bodies):
    here, _ = on_device(gpu, [-1.0, 0.0, 1.0], "float32")
    _, vjp = bodies.BODIES["relu"](here)
    infinite, _ = on_device(gpu, [np.inf] * 3, "float32")
    assert on_host(gpu, vjp(infinite)[0]).tolist() == [0.0, 0.0, np.inf]


# -------------------------------------------------------------------------------------------------- bias and activation


def linear_reference(z, bias, activation):
    total = z if bias is None else z + bias
    return (total, None) if activation is None else OPS[activation].generic(total)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", LINEAR)
def test_bias_and_activation(gpu, bodies, activation, dtype):
    for shape in SHAPES:
        for with_bias in (True, False):
            here, z = on_device(gpu, numbers(shape[0] * shape[1]).reshape(shape), dtype)
            bias_here, bias = on_device(gpu, numbers(shape[1], 1, 1.0), dtype)
            dy_here, dy = on_device(gpu, numbers(shape[0] * shape[1], 2).reshape(shape), dtype)
            if not with_bias:
                bias_here = bias = None
            y, saved = bodies.bias_activation(here, bias_here, activation)
            want, want_vjp = linear_reference(z, bias, activation)
            label = f"{activation} {shape} {with_bias}"
            # What is summed may cancel: the roundings are those of z.
            check(gpu, y, want, dtype, label)
            assert y.dtype == here.dtype
            gradient = bodies.bias_activation_backward(dy_here, saved, activation)
            want_gradient = dy if want_vjp is None else want_vjp(dy)[0]
            # The result that was kept, or the sum, was rounded once before.
            check(gpu, gradient, want_gradient, dtype, label, 16.0)
            both, sums = bodies.bias_activation_gradients(dy_here, saved, activation)
            assert np.array_equal(on_host(gpu, both), on_host(gpu, gradient)), label
            exact = on_host(gpu, gradient)
            size = max(np.abs(exact).sum(axis=0).max(initial=0.0), 1e-30)
            assert np.abs(on_host(gpu, sums) - exact.sum(axis=0)).max(initial=0.0) <= 4 * EPS[dtype] * size, label


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 3), (17, 8), (5000, 3), (700, 64), (1200, 130), (65, 2056), (0, 5), (40000, 1)])
def test_sums_of_columns(gpu, bodies, shape, dtype):
    here, dz = on_device(gpu, numbers(shape[0] * shape[1]).reshape(shape), dtype)
    sums = bodies.column_sums(here)
    assert sums.dtype == here.dtype
    size = max(np.abs(dz).sum(axis=0).max(initial=0.0), 1e-30)
    assert np.abs(on_host(gpu, sums) - dz.sum(axis=0)).max() <= 2 * EPS[dtype] * size
    assert np.array_equal(on_host(gpu, bodies.column_sums(here)), on_host(gpu, sums))


def test_sums_of_columns_at_any_address(gpu, bodies):
    whole, _ = on_device(gpu, numbers(1 + 100 * 16), "float32")
    dz = whole[1:].reshape(100, 16)
    want = on_host(gpu, dz).sum(axis=0)
    assert np.abs(on_host(gpu, bodies.column_sums(dz)) - want).max() <= 1e-4


def test_a_bias_at_any_address(gpu, bodies):
    here, z = on_device(gpu, numbers(320).reshape(20, 16), "float32")
    theta, _ = on_device(gpu, numbers(20, 1), "float32")
    y, _ = bodies.bias_activation(here, theta[3:19], "relu")
    check(gpu, y, np.maximum(z + on_host(gpu, theta[3:19]), 0.0), "float32", "y")


def test_where_the_results_lie(gpu, bodies):
    for activation in LINEAR:
        z, _ = on_device(gpu, numbers(32).reshape(2, 16), "float32")
        bias, _ = on_device(gpu, numbers(16), "float32")
        y, saved = bodies.bias_activation(z, bias, activation)
        if activation in ("gelu", "gelu_tanh", "silu"):
            assert saved.data.ptr == z.data.ptr != y.data.ptr
        else:
            assert y.data.ptr == z.data.ptr
            assert saved is (None if activation is None else y)
