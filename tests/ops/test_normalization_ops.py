"""Normalisations: extreme inputs, empty and single-sample batches, half precision, and shapes that do not fit."""

import numpy as np
import pytest

from xpnn import dispatch, ops
from xpnn.errors import ShapeError

EPS = 1e-5


def standardized(x, axes, centre=True):
    """The definition, in float64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=axes, keepdims=True) if centre else x
    return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + EPS)


# name -> (call on x of shape (batch, place, channels), weight and bias, the axes of its statistics, with the mean)
NORMS = {
    "batch_norm": (lambda x, w, b: first(ops.batch_norm(x, w, b)), (0, 1), True),
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b), (2,), True),
    "rms_norm": (lambda x, w, b: ops.rms_norm(x, w), (2,), False),
    "group_norm": (lambda x, w, b: ops.group_norm(x, w, b, groups=x.shape[-1]), (1,), True),
}


def first(result):
    """batch_norm as the others are: one value, and a vjp of its cotangent alone."""
    (y, _, _), vjp = result
    return y, lambda dy: vjp((dy, None, None))


def arrays(backend, dtype, *values):
    return [backend.asarray(np.asarray(value), dtype) for value in values]


@pytest.fixture(params=NORMS)
def norm(request):
    return NORMS[request.param]


def inputs(shape=(6, 5, 4), seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.uniform(0.5, 1.5, shape[-1]), rng.standard_normal(shape[-1])


def test_the_value_is_the_definition(norm, backend, dtype):
    call, axes, centre = norm
    x, weight, bias = inputs()
    y, _ = call(*arrays(backend, dtype, x, weight, bias))
    want = standardized(x, axes, centre) * weight + (bias if centre else 0.0)
    np.testing.assert_allclose(backend.to_host(y), want, rtol=0, atol=1e-13 if dtype == "float64" else 2e-6)


@pytest.mark.parametrize("norm", [NORMS[name] for name in NORMS if name != "rms_norm"], ids=lambda norm: str(norm[1]))
def test_a_large_mean_does_not_drown_the_variance(norm, backend, dtype):
    """E[x^2] - E[x]^2 would lose everything here: the variance is 1e-16 (float64) or 1e-7 (float32) of the square."""
    call, axes, _ = norm
    x, weight, bias = inputs()
    x = np.round(x * 8) / 8 + (1e8 if dtype == "float64" else 4096.0)  # exact in the dtype
    y, _ = call(*arrays(backend, dtype, x, weight, bias))
    want = standardized(x - x.mean(), axes) * weight + bias
    np.testing.assert_allclose(backend.to_host(y), want, rtol=0, atol=1e-6 if dtype == "float64" else 2e-3)


@pytest.mark.parametrize("size", [1e20, 1e30, 2.0**126])
def test_large_finite_numbers_do_not_overflow(norm, backend, dtype, size):
    call, axes, centre = norm
    x, weight, bias = inputs()
    x = np.round(x * 16) / 16
    power = 2.0 ** np.floor(np.log2(size)) / 4.0
    weight, bias = np.round(weight * 16) / 16, np.round(bias * 16) / 16
    with np.errstate(over="ignore"):  # the variance of batch_norm may be too large for the dtype, and its y is not
        y, vjp = call(*arrays(backend, dtype, x * power, weight, bias))
    scaled = x / np.sqrt(np.mean((x - x.mean(axis=axes, keepdims=True) * centre) ** 2, axis=axes, keepdims=True))
    mean = scaled.mean(axis=axes, keepdims=True) if centre else 0.0
    want = (scaled - mean) * weight + (bias if centre else 0.0)
    np.testing.assert_allclose(backend.to_host(y), want, rtol=0, atol=1e-5)
    gradients = vjp(*arrays(backend, dtype, np.ones_like(x)))
    assert all(np.isfinite(backend.to_host(gradient)).all() for gradient in gradients)


def test_large_numbers_in_one_group_leave_the_others_alone(norm, backend, dtype):
    call, axes, _ = norm
    x, weight, bias = inputs((4, 4, 4))
    alone, _ = call(*arrays(backend, dtype, x, weight, bias))
    large = x.copy()
    # The first group of numbers: whole along the axes of the statistics, the first position of the other axes.
    large[tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(3))] *= 1e25
    with np.errstate(over="ignore"):
        y, _ = call(*arrays(backend, dtype, large, weight, bias))
    np.testing.assert_array_equal(
        backend.to_host(y)[x == large], backend.to_host(alone)[x == large], err_msg="groups that did not change"
    )
    assert np.isfinite(backend.to_host(y)).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 3e15, 1e30])
def test_a_group_of_equal_numbers_gives_the_bias(backend, dtype, value):
    x, weight, bias = inputs()
    y, vjp = ops.layer_norm(*arrays(backend, dtype, np.full_like(x, value), weight, bias))
    np.testing.assert_allclose(backend.to_host(y), np.broadcast_to(bias, x.shape), rtol=0, atol=1e-4)
    assert all(np.isfinite(backend.to_host(g)).all() for g in vjp(*arrays(backend, dtype, x)))


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 1, 4)])
def test_one_value_a_channel_gives_the_bias_and_no_gradient(backend, dtype, shape):
    x, weight, bias = inputs(shape)
    given = arrays(backend, dtype, x * 1e3, weight, bias)
    ones = backend.asarray(np.ones(shape), dtype)
    (y, mean, variance), vjp = ops.batch_norm(*given)
    want = given[2]
    np.testing.assert_array_equal(backend.to_host(y), np.broadcast_to(backend.to_host(want), shape))
    np.testing.assert_array_equal(backend.to_host(mean), backend.to_host(given[0]).reshape(4))
    np.testing.assert_array_equal(backend.to_host(variance), np.zeros(4))
    dx, dweight, dbias = map(backend.to_host, vjp((ones, None, None)))
    np.testing.assert_array_equal(dx, np.zeros(shape))
    np.testing.assert_array_equal(dweight, np.zeros(4))
    np.testing.assert_array_equal(dbias, np.ones(4))
    y, vjp = ops.group_norm(*given, groups=4)
    np.testing.assert_array_equal(backend.to_host(y), np.broadcast_to(backend.to_host(want), shape))
    np.testing.assert_array_equal(backend.to_host(vjp(ones)[0]), np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_nothing_gives_nothing(backend, dtype, shape):
    given = arrays(backend, dtype, np.zeros(shape), np.ones(shape[-1]), np.ones(shape[-1]))
    calls = [
        first(ops.batch_norm(*given)),
        ops.layer_norm(*given),
        (*ops.rms_norm(*given[:2]),),
        ops.group_norm(*given, groups=max(shape[-1], 1)),
        ops.batch_norm_inference(given[0], given[1], given[1], *given[1:]),
    ]
    for y, vjp in calls:
        assert tuple(y.shape) == shape
        gradients = vjp(y)
        assert tuple(gradients[0].shape) == shape
        for gradient in gradients[1:]:
            np.testing.assert_array_equal(backend.to_host(gradient), np.zeros(shape[-1]))
    (_, mean, variance), _ = ops.batch_norm(*given)
    np.testing.assert_array_equal(backend.to_host(mean), np.zeros(shape[-1]))
    np.testing.assert_array_equal(backend.to_host(variance), np.zeros(shape[-1]))


def test_one_channel_with_a_nan_leaves_the_others_alone(backend, dtype):
    x, weight, bias = inputs((5, 3))
    x[2, 1] = np.nan
    (y, _, _), _ = ops.batch_norm(*arrays(backend, dtype, x, weight, bias))
    np.testing.assert_array_equal(np.isnan(backend.to_host(y)), np.tile([False, True, False], (5, 1)))


def half(backend, name, *values):
    xp = backend.xp
    return [xp.astype(backend.asarray(np.asarray(value), "float32"), getattr(xp, name)) for value in values]


def back(backend, x):
    return backend.to_host(backend.xp.astype(x, backend.xp.float32)).astype(np.float64)


def check_half_precision(norm, backend, name, eps, weights_too):
    """As in float64 on the same rounded inputs, but for one rounding of the result. Squares and sums overflow."""
    call, axes, centre = norm
    x, weight, bias = inputs((64, 32, 16), seed=1)
    x = 300.0 * x + 1000.0
    x, weight, bias, dy = half(backend, name, x, weight, bias, np.random.default_rng(2).standard_normal(x.shape))
    exact = [back(backend, each) for each in (x, weight, bias, dy)]
    if not weights_too:
        weight, bias = (backend.xp.astype(each, backend.xp.float32) for each in (weight, bias))
    y, vjp = call(x, weight, bias)
    assert y.dtype == x.dtype
    want = standardized(exact[0], axes, centre) * exact[1] + (exact[2] if centre else 0.0)
    np.testing.assert_allclose(back(backend, y), want, rtol=eps, atol=1e-5)
    want_y, want_vjp = call(*exact[:3])
    np.testing.assert_allclose(back(backend, y), want_y, rtol=eps, atol=1e-5)
    for given, gradient, wanted in zip((x, weight, bias), vjp(dy), want_vjp(exact[3]), strict=False):
        assert gradient.dtype == given.dtype
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(back(backend, gradient), wanted, rtol=eps, atol=2e-5 * scale)


@pytest.mark.parametrize("weights_too", [True, False])
@pytest.mark.xpnn_rows(only=["numpy", "torch", "jax"], dtypes="float32", reason="strict knows no float16")
def test_float16_is_computed_in_float32(norm, backend, weights_too):
    check_half_precision(norm, backend, "float16", 2.0**-10, weights_too)


@pytest.mark.parametrize("weights_too", [True, False])
@pytest.mark.xpnn_rows(only=["torch", "jax"], dtypes="float32", reason="only these know bfloat16")
def test_bfloat16_is_computed_in_float32(norm, backend, weights_too):
    check_half_precision(norm, backend, "bfloat16", 2.0**-7, weights_too)


@pytest.mark.xpnn_rows(only=["numpy", "torch", "jax"], dtypes="float32", reason="strict knows no float16")
def test_statistics_of_float16_are_float32(backend):
    x, weight, bias = half(backend, "float16", *inputs((8, 4)))
    (y, mean, variance), _ = ops.batch_norm(x, weight, bias, activation="relu")
    assert y.dtype == backend.xp.float16
    assert mean.dtype == variance.dtype == backend.xp.float32
    z, vjp = ops.batch_norm_inference(x, mean, variance, weight, bias, activation="relu")
    assert z.dtype == backend.xp.float16
    np.testing.assert_allclose(back(backend, z), back(backend, y), rtol=2e-3, atol=1e-5)
    for given, gradient in zip((x, mean, variance, weight, bias), vjp(z), strict=True):
        assert gradient.dtype == given.dtype


def test_mean_and_variance_are_those_of_the_batch_and_the_variance_is_biased(backend, dtype):
    x, weight, bias = inputs((6, 5, 3))
    (_, mean, variance), _ = ops.batch_norm(*arrays(backend, dtype, x, weight, bias))
    tolerance = 1e-14 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(backend.to_host(mean), x.mean(axis=(0, 1)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(backend.to_host(variance), x.var(axis=(0, 1)), rtol=0, atol=tolerance)


def test_inference_with_the_statistics_of_the_batch_is_the_training_form(backend, dtype):
    x, weight, bias = inputs()
    given = arrays(backend, dtype, x, weight, bias)
    (y, mean, variance), _ = ops.batch_norm(*given, activation="gelu")
    z, _ = ops.batch_norm_inference(given[0], mean, variance, *given[1:], activation="gelu")
    np.testing.assert_allclose(
        backend.to_host(z), backend.to_host(y), rtol=0, atol=1e-14 if dtype == "float64" else 1e-6
    )


def test_the_gradients_of_the_statistics_may_be_left_out(backend, dtype):
    x, weight, bias = inputs((5, 3))
    _, vjp = ops.batch_norm(*arrays(backend, dtype, x, weight, bias))
    dy, nothing = arrays(backend, dtype, np.sin(x), np.zeros(3))
    without, zeros = vjp((dy, None, None)), vjp((dy, nothing, nothing))
    for a, b in zip(without, zeros, strict=True):
        np.testing.assert_array_equal(backend.to_host(a), backend.to_host(b))


@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, False), (False, True)])
def test_weight_and_bias_alone(backend, dtype, with_weight, with_bias):
    x, weight, bias = inputs((5, 3, 4))
    ones, zeros = np.ones_like(weight), np.zeros_like(bias)
    full = arrays(backend, dtype, x, weight if with_weight else ones, bias if with_bias else zeros)
    part = [full[0], full[1] if with_weight else None, full[2] if with_bias else None]
    dy = backend.asarray(np.cos(x), dtype)
    for call in (
        lambda *a: first(ops.batch_norm(*a)),
        ops.layer_norm,
        lambda *a: ops.group_norm(*a, groups=2),
        lambda x, *a: ops.batch_norm_inference(x, full[1] * 0.0, full[1] * 0.0 + 1.0, *a),
    ):
        (y, vjp), (want, want_vjp) = call(*part), call(*full)
        np.testing.assert_array_equal(backend.to_host(y), backend.to_host(want))
        gradients, wanted = vjp(dy), want_vjp(dy)
        assert [gradient is not None for gradient in gradients[-2:]] == [with_weight, with_bias]
        for gradient, other in zip(gradients, wanted, strict=True):
            if gradient is not None:
                np.testing.assert_allclose(backend.to_host(gradient), backend.to_host(other), rtol=1e-6, atol=1e-6)


def test_group_norm_of_one_group_is_layer_norm_over_the_whole_sample(backend, dtype):
    x = backend.asarray(inputs((3, 4, 5))[0], dtype)
    one, _ = ops.group_norm(x, groups=1)
    other, _ = ops.layer_norm(x, axes=2)
    np.testing.assert_allclose(backend.to_host(one), backend.to_host(other), rtol=0, atol=2e-6)


def test_weight_norm_gives_each_channel_its_length(backend, dtype):
    rng = np.random.default_rng(0)
    for shape, axis in (((5, 4), -1), ((3, 3, 2, 4), -1), ((3, 4, 5), -2)):
        v, g = rng.standard_normal(shape), rng.uniform(-2.0, 2.0, 4)
        w, _ = ops.weight_norm(*arrays(backend, dtype, v, g), axis=axis)
        others = tuple(each for each in range(len(shape)) if each != axis % len(shape))
        lengths = np.sqrt((backend.to_host(w) ** 2).sum(axis=others))
        np.testing.assert_allclose(lengths, np.abs(g), rtol=1e-6)


def test_weight_norm_of_zeros_and_of_large_numbers(backend, dtype):
    v = np.array([[0.0, 3e30, 3e-30], [0.0, -4e30, 4e-30]])
    w, vjp = ops.weight_norm(*arrays(backend, dtype, v, np.ones(3) * 5.0))
    np.testing.assert_allclose(backend.to_host(w), [[0.0, 3.0, 3.0], [0.0, -4.0, 4.0]], rtol=1e-6)
    dv, dg = map(backend.to_host, vjp(backend.asarray(np.ones((2, 3)), dtype)))
    np.testing.assert_allclose(dg, [0.0, -0.2, 1.4], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(dv[:, 0], [5.0, 5.0])
    assert np.isfinite(dv).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_weight_norm_of_nothing(backend, dtype, shape):
    v, g = arrays(backend, dtype, np.zeros(shape), np.ones(shape[-1]))
    w, vjp = ops.weight_norm(v, g)
    dv, dg = vjp(w)
    assert (tuple(w.shape), tuple(dv.shape), tuple(dg.shape)) == (shape, shape, (shape[-1],))


def test_bodies_of_a_backend_and_the_generic_ones_agree(norm, backend, dtype):
    call, _, _ = norm
    x, weight, bias = inputs((9, 5, 4), seed=3)
    given = arrays(backend, dtype, x, weight, bias)
    dy = backend.asarray(np.cos(x), dtype)
    y, vjp = call(*given)
    with dispatch.without_overrides():
        want, want_vjp = call(*given)
    for mine, reference in zip((y, *vjp(dy)), (want, *want_vjp(dy)), strict=True):
        np.testing.assert_allclose(
            backend.to_host(mine), backend.to_host(reference), rtol=0, atol=1e-13 if dtype == "float64" else 2e-5
        )


def test_shapes_that_do_not_fit_are_named(backend, dtype):
    x, number, three, four = arrays(backend, dtype, np.zeros((2, 5, 4)), 1.0, np.ones(3), np.ones(4))
    with pytest.raises(ShapeError, match=r"batch_norm: bias has shape \(3,\); for this x it must have \(4,\)"):
        ops.batch_norm(x, four, three)
    with pytest.raises(ShapeError, match=r"batch_norm_inference: variance has shape \(3,\)"):
        ops.batch_norm_inference(x, four, three)
    with pytest.raises(ShapeError, match="batch_norm: x is a single number"):
        ops.batch_norm(number)
    with pytest.raises(ShapeError, match=r"layer_norm: weight has shape \(4,\); for this x it must have \(5, 4\)"):
        ops.layer_norm(x, four, axes=2)
    for axes in (0, 4):
        with pytest.raises(ShapeError, match=rf"rms_norm: axes={axes}, and x of shape \(2, 5, 4\) has 3; give 1 to 3"):
            ops.rms_norm(x, axes=axes)
    for groups in (3, 0, -2):
        with pytest.raises(ShapeError, match=f"group_norm: groups={groups} for 4 channels"):
            ops.group_norm(x, groups=groups)
    with pytest.raises(ShapeError, match=r"group_norm: x has shape \(4,\); it must have \(batch, ..., channels\)"):
        ops.group_norm(four, groups=2)
    with pytest.raises(ShapeError, match=r"needs one number for each position of axis -1: \(4,\)"):
        ops.weight_norm(x, three)
    with pytest.raises(ShapeError, match="axis 3 does not exist"):
        ops.weight_norm(x, four, axis=3)


@pytest.mark.parametrize("name", ["batch_norm", "group_norm"])
def test_many_places_keep_the_digits_of_a_small_deviation(name, backend, dtype):
    noise = np.random.default_rng(2).normal(10.0, 0.01, (4, 10007, 2))
    x = backend.asarray(noise, dtype)
    exact = backend.to_host(x).astype(np.float64)
    axes = (0, 1) if name == "batch_norm" else (1,)
    mean, variance = exact.mean(axis=axes, keepdims=True), exact.var(axis=axes, keepdims=True)
    with backend.context():
        if name == "batch_norm":
            (y, _, _), _ = ops.batch_norm(x, epsilon=1e-8)
        else:
            y, _ = ops.group_norm(x, groups=2, epsilon=1e-8)
    # A number of size 10 is known to 5e-7 in float32, and the deviation is 0.01.
    close = 1e-9 if dtype == "float64" else 4e-4
    np.testing.assert_allclose(backend.to_host(y), (exact - mean) / np.sqrt(variance + 1e-8), rtol=0, atol=close)


def test_weight_norm_of_a_slice_whose_length_overflows(backend, dtype):
    # XLA divides by way of the reciprocal, which is lost above a quarter of the largest number.
    large = float(np.finfo(dtype).max) * 0.2
    signs = np.where(np.arange(128) % 3 == 0, -1.0, 1.0)
    direction = backend.asarray(np.stack([large * signs, signs], axis=1), dtype)
    magnitude = backend.asarray(np.array([3.0, 2.0]), dtype)
    with backend.context():
        weight, vjp = ops.weight_norm(direction, magnitude)
        ddirection, dmagnitude = vjp(backend.asarray(np.ones((128, 2)), dtype))
    unit = signs / np.sqrt(128.0)
    np.testing.assert_allclose(backend.to_host(weight), np.stack([3.0 * unit, 2.0 * unit], axis=1), rtol=1e-6)
    np.testing.assert_allclose(backend.to_host(dmagnitude), [unit.sum(), unit.sum()], rtol=1e-5)
    want = 2.0 * (1.0 - unit * unit.sum()) / np.sqrt(128.0)
    np.testing.assert_allclose(backend.to_host(ddirection)[:, 1], want, rtol=1e-5)
