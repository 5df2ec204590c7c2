"""The kernels of the normalisations against the generic bodies in float64."""

import numpy as np
import pytest

from xpnn.backend import host
from xpnn.dispatch import OPS

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def draw(shape, seed, scale=1.0, offset=0.0):
    return np.random.default_rng(seed).standard_normal(shape) * scale + offset


def on_gpu(gpu, array, dtype):
    return None if array is None else gpu.asarray(array.astype(np.float32 if dtype == "bfloat16" else dtype), dtype)


def exact(gpu, x):
    """The array's numbers in float64."""
    return None if x is None else gpu.to_host(x.astype("float64"))


def compare(gpu, name, arrays, cotangents, dtype, **settings):
    """Value and gradients on the GPU against NumPy's generic body in float64, in units of eps of the largest of each.

    What the op itself makes of rounding (the gradient of three numbers that are nearly equal) the generic body shows,
    run on the same arrays.
    """
    from xpnn_backends.cupy.bodies import BODIES
    from xpnn_backends.cupy.kernels import generic

    def results(body, given, given_cotangent):
        value, vjp = body(*given, **settings)
        return [value, *vjp(given_cotangent)]

    mine = results(BODIES[name], arrays, cotangents)
    usual = results(generic(name), arrays, cotangents)
    wanted = results(OPS[name].generic, [exact(gpu, x) for x in arrays], exact(gpu, cotangents))
    for got, plain, reference in zip(mine, usual, wanted, strict=True):
        if reference is None:
            assert got is None
            continue
        assert got.shape == reference.shape
        assert got.dtype == plain.dtype
        unit = EPSILON[dtype] * max(np.max(np.abs(reference), initial=0.0), 1e-30)
        error, allowed = (np.max(np.abs(exact(gpu, x) - reference), initial=0.0) / unit for x in (got, plain))
        assert error < 16 + 4 * allowed, (error, allowed)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (3, 17),
        (5, 32),
        (4, 7, 33),
        (2, 1023),
        (3, 1025),
        (2, 4099),
        (200, 3),
        (9, 64),
        (3, 1032),
        (2, 4112),
        (2, 8208),
    ],
)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_rows(gpu, name, shape, dtype):
    x = on_gpu(gpu, draw(shape, 1, 2.0, 0.5), dtype)
    vectors = [on_gpu(gpu, draw(shape[-1:], seed), dtype) for seed in (2, 3)][: 2 if name == "layer_norm" else 1]
    compare(gpu, name, [x, *vectors], on_gpu(gpu, draw(shape, 4), dtype), dtype)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_several_axes_and_no_vectors(gpu, axes):
    x = on_gpu(gpu, draw((3, 4, 5), 1), "float32")
    compare(gpu, "layer_norm", [x, None, None], on_gpu(gpu, draw((3, 4, 5), 2), "float32"), "float32", axes=axes)
    bias = on_gpu(gpu, draw((3, 4, 5)[3 - axes :], 3), "float32")
    compare(gpu, "layer_norm", [x, None, bias], on_gpu(gpu, draw((3, 4, 5), 2), "float32"), "float32", axes=axes)


@pytest.mark.parametrize("size", [1e-30, 1e19, 1e30, 3e38])
def test_rows_of_tiny_and_huge_numbers(gpu, size):
    x = on_gpu(gpu, np.array([[1.0, -0.5, 0.25, 0.9], [0.1, 0.2, 0.3, -1.0]]) * size, "float32")
    y, _ = OPS["layer_norm"](x)
    wanted, _ = OPS["layer_norm"].generic(exact(gpu, x))
    np.testing.assert_allclose(gpu.to_host(y), wanted, rtol=3e-6, atol=1e-6)
    y, _ = OPS["rms_norm"](x)
    wanted, _ = OPS["rms_norm"].generic(exact(gpu, x))
    np.testing.assert_allclose(gpu.to_host(y), wanted, rtol=3e-6, atol=1e-6)


def test_a_row_with_nan_or_infinity_spoils_itself_alone(gpu):
    x = draw((4, 40), 1)
    x[1, 3], x[2, 5] = np.nan, np.inf
    y = gpu.to_host(OPS["layer_norm"](on_gpu(gpu, x, "float32"))[0])
    assert np.isnan(y[1]).all()
    assert np.isnan(y[2]).any()
    assert np.isfinite(y[[0, 3]]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize(
    "shape", [(1, 3), (17, 1), (5, 4, 3, 7), (300, 33), (70, 257), (6, 5, 8), (1700, 16), (90, 264), (9, 2080)]
)
def test_batches(gpu, shape, activation, dtype):
    x = on_gpu(gpu, draw(shape, 1, 2.0, 0.5), dtype)
    weight, bias = (on_gpu(gpu, draw(shape[-1:], seed), dtype) for seed in (2, 3))
    statistics = [on_gpu(gpu, draw(shape[-1:], seed), "float32") for seed in (5, 6)]
    cotangents = (on_gpu(gpu, draw(shape, 4), dtype), *statistics)
    if shape[0] == 1 or (activation is not None and dtype != "float32"):
        cotangents = (cotangents[0], None, None)
    if activation == "relu" and dtype != "float32":
        return  # a rounded y may be 0 where the exact one is not: there, derivatives differ by all of dy
    arrays = [x, weight, bias]
    from xpnn_backends.cupy.bodies_normalization import BODIES

    value, vjp = BODIES["batch_norm"](*arrays, activation=activation)
    gradients = vjp(cotangents)
    wanted, wanted_vjp = OPS["batch_norm"].generic(*(exact(gpu, a) for a in arrays), activation=activation)
    wanted_gradients = wanted_vjp(tuple(exact(gpu, c) for c in cotangents))
    for mine, reference in zip((*value, *gradients), (*wanted, *wanted_gradients), strict=True):
        largest = max(np.max(np.abs(reference)), 1e-3)
        assert np.max(np.abs(exact(gpu, mine) - reference)) / largest < 32 * EPSILON[dtype]


def test_a_batch_at_an_odd_address(gpu):
    from xpnn_backends.cupy.bodies_normalization import BODIES

    flat = on_gpu(gpu, draw(37 * 12 + 1, 1), "float32")
    vectors = [on_gpu(gpu, draw(12, seed), "float32") for seed in (2, 3)]
    cotangents = (on_gpu(gpu, draw(37 * 12 + 1, 4), "float32"), None, None)
    odd, even = (
        BODIES["batch_norm"](x.reshape(37, 12), *vectors, activation="relu") for x in (flat[1:], flat[1:].copy())
    )
    np.testing.assert_array_equal(gpu.to_host(odd[0][0]), gpu.to_host(even[0][0]))
    gradients = [
        vjp((dy.reshape(37, 12), None, None))
        for vjp, dy in ((odd[1], cotangents[0][1:]), (even[1], cotangents[0][1:].copy()))
    ]
    for got, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(gpu.to_host(got), gpu.to_host(wanted), rtol=1e-5, atol=1e-6)


def test_rows_behind_one_with_nan(gpu):
    # Many rows, so that a warp has several: all its lanes must find the same of the row with the NaN.
    x = draw((8600, 33), 1)
    x[3, 2] = np.nan
    y = gpu.to_host(OPS["layer_norm"](on_gpu(gpu, x, "float32"))[0])
    wanted, _ = OPS["layer_norm"].generic(x[4:])
    assert np.isnan(y[3]).all()
    np.testing.assert_allclose(y[4:], wanted, rtol=1e-4, atol=1e-5)


def test_a_large_mean_keeps_the_digits_of_a_small_deviation(gpu):
    x = on_gpu(gpu, draw((4000, 3), 1, 1.0, 1000.0), "float32")
    (y, mean, variance), _ = OPS["batch_norm"](x)
    (reference, wanted_mean, wanted_variance), _ = OPS["batch_norm"].generic(exact(gpu, x))
    np.testing.assert_allclose(gpu.to_host(y), reference, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gpu.to_host(mean), wanted_mean, rtol=1e-6)
    np.testing.assert_allclose(gpu.to_host(variance), wanted_variance, rtol=1e-6)


def test_views_and_mixed_dtypes(gpu):
    from xpnn_backends.cupy.bodies_normalization import layer_norm

    flat = on_gpu(gpu, draw(3 * 19 + 1, 1), "float32")
    x = flat[1:].reshape(3, 19)
    compare(gpu, "layer_norm", [x.T, None, None], on_gpu(gpu, draw((19, 3), 2), "float32"), "float32")
    half = on_gpu(gpu, draw((6, 19), 3), "bfloat16")
    weight, bias = (on_gpu(gpu, draw(19, seed), "float32") for seed in (4, 5))
    y, vjp = layer_norm(half, weight, bias)
    dx, dweight, dbias = vjp(on_gpu(gpu, draw((6, 19), 6), "bfloat16"))
    assert [str(a.dtype) for a in (y, dx, dweight, dbias)] == ["bfloat16", "bfloat16", "float32", "float32"]
    reference, _ = OPS["layer_norm"].generic(exact(gpu, half), exact(gpu, weight), exact(gpu, bias))
    assert np.max(np.abs(exact(gpu, y) - reference)) < 2 * EPSILON["bfloat16"] * np.max(np.abs(reference))


def test_nothing_to_normalise(gpu):
    xp = host().xp
    for name in ("layer_norm", "rms_norm"):
        y, vjp = OPS[name](gpu.asarray(xp.zeros((0, 4), dtype="float32")))
        assert y.shape == (0, 4)
        assert vjp(y)[0].shape == (0, 4)
