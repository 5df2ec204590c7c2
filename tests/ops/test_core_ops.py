"""Embedding, scatter-add, dropout, normal quantile, and the ops that move values: what the matrix does not ask."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from xpnn import dispatch, ops
from xpnn.errors import ShapeError
from xpnn.random import RandomKey

KEY = RandomKey(7, 3, 11)


def test_embedding_looks_rows_up_for_indices_of_any_shape(backend, dtype):
    table = np.arange(12.0).reshape(4, 3)
    for indices in (np.array([3, 0, 3]), np.array([[1, 2], [2, 2]]), np.array(2), np.zeros((0, 2), np.int64)):
        y, vjp = ops.embedding(backend.asarray(table, dtype), backend.asarray(indices, "int64"))
        np.testing.assert_array_equal(backend.to_host(y), table[indices])
        dtable, dindices = vjp(backend.asarray(np.ones((*indices.shape, 3)), dtype))
        counts = np.bincount(indices.ravel(), minlength=4)
        np.testing.assert_array_equal(backend.to_host(dtable), np.repeat(counts[:, None], 3, axis=1))
        assert dindices is None


def test_gradients_of_a_row_that_is_taken_many_times_add_up(backend, dtype):
    indices = backend.asarray(np.array([1, 1, 0, 1]), "int64")
    _, vjp = ops.embedding(backend.asarray(np.zeros((3, 2)), dtype), indices)
    dtable, _ = vjp(backend.asarray([[1.0, 2.0], [10.0, 20.0], [5.0, 5.0], [100.0, 200.0]], dtype))
    np.testing.assert_array_equal(backend.to_host(dtable), [[5.0, 5.0], [111.0, 222.0], [0.0, 0.0]])


def test_the_generic_scatter_add_and_each_override_agree(backend, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (3, 40, 5)) / 2.0
    indices = rng.integers(0, 11, (3, 40))
    want = np.zeros((11, 5))
    for row, index in zip(values.reshape(-1, 5), indices.ravel(), strict=True):
        want[index] += row
    arguments = backend.asarray(values, dtype), backend.asarray(indices, "int64"), 11
    got, vjp = ops.scatter_add(*arguments)
    with dispatch.without_overrides():
        generic, generic_vjp = ops.scatter_add(*arguments)
    np.testing.assert_array_equal(backend.to_host(got), want)
    np.testing.assert_array_equal(backend.to_host(generic), want)
    dy = backend.asarray(rng.standard_normal((11, 5)), dtype)
    np.testing.assert_array_equal(backend.to_host(vjp(dy)[0]), backend.to_host(generic_vjp(dy)[0]))
    np.testing.assert_array_equal(backend.to_host(vjp(dy)[0]), backend.to_host(dy)[indices])


@pytest.mark.parametrize(("rows", "features"), [((0,), 3), ((4,), 0), ((2, 0), 2)])
def test_scatter_add_of_nothing(backend, dtype, rows, features):
    values = backend.asarray(np.zeros((*rows, features)), dtype)
    total, vjp = ops.scatter_add(values, backend.asarray(np.zeros(rows, np.int64), "int64"), 3)
    np.testing.assert_array_equal(backend.to_host(total), np.zeros((3, features)))
    assert tuple(vjp(total)[0].shape) == (*rows, features)


def test_scatter_add_and_embedding_refuse_shapes_that_do_not_fit(backend, dtype):
    indices = backend.asarray(np.array([0, 1]), "int64")
    with pytest.raises(ShapeError, match=r"values of shape \(3, 2\) for indices of shape \(2,\)"):
        ops.scatter_add(backend.asarray(np.zeros((3, 2)), dtype), indices, 4)
    with pytest.raises(ShapeError, match=r"the table has shape \(3,\), wants \(vocabulary, features\)"):
        ops.embedding(backend.asarray(np.zeros(3), dtype), indices)


@pytest.mark.xpnn_rows(dtypes=["float32", "float64"])
def test_masks_are_the_same_on_every_backend_and_keep_the_right_share(backend, dtype):
    x = backend.asarray(np.ones((100, 100)), dtype)
    mask, vjp = ops.random_mask(x, KEY, 0.3)
    host_mask, _ = ops.random_mask(np.ones((100, 100)), KEY, 0.3)
    np.testing.assert_array_equal(backend.to_host(mask), host_mask)
    assert vjp(mask) == (None,)
    assert abs(host_mask.mean() - 0.7) < 5 * math.sqrt(0.21 / 1e4)


def test_dropout_scales_what_it_keeps_and_its_gradient_alike(backend, dtype):
    x = backend.asarray(np.full((50, 40), 3.0), dtype)
    y, vjp = ops.dropout(x, KEY, 0.25)
    values = backend.to_host(y)
    assert set(values.ravel().tolist()) == {0.0, 4.0}
    assert abs(values.mean() - 3.0) < 5 * 3.0 * math.sqrt(0.25 / 0.75 / 2000)
    (dx,) = vjp(x)
    np.testing.assert_array_equal(backend.to_host(dx), values)


@pytest.mark.parametrize("change", [{"seed": 8}, {"stream": 4}, {"step": 12}])
def test_another_key_gives_another_mask(change):
    x = np.ones((10, 10))
    first, _ = ops.random_mask(x, KEY, 0.5)
    second, _ = ops.random_mask(x, KEY._replace(**change), 0.5)
    assert not np.array_equal(first, second)


def test_dropout_at_the_ends():
    x = np.array([[1.0, 2.0], [np.finfo(np.float64).max, -3.0]])
    np.testing.assert_array_equal(ops.dropout(x, KEY, 0.0)[0], x)
    # A rate just below 1 is taken as 65535/65536; nothing divides by zero.
    y, _ = ops.dropout(np.ones((100, 1000)), KEY, 1.0 - 1e-12)
    assert set(y.ravel().tolist()) == {0.0, 65536.0}


def test_dropped_numbers_do_not_overflow_on_their_way_out():
    x = np.full((8, 8), np.finfo(np.float32).max, np.float32)
    mask, _ = ops.random_mask(x, KEY, 0.5)
    y, _ = ops.dropout(np.where(mask, np.float32(1.0), x), KEY, 0.5)
    np.testing.assert_array_equal(y, np.where(mask, np.float32(2.0), np.float32(0.0)))


def test_normal_quantile_inverts_the_normal_distribution_function():
    p = np.concatenate(
        [
            np.logspace(-300, -1, 2001),
            np.linspace(0.0005, 0.9995, 1999),
            1.0 - np.logspace(-15.5, -1, 501),
            [5e-324, 1.0 - 2.0**-53, 0.075, 0.925, math.exp(-25.0)],
        ]
    )
    z, _ = ops.normal_quantile(p)
    reference = np.array([NormalDist().inv_cdf(float(each)) for each in p])
    np.testing.assert_allclose(z, reference, rtol=2e-15)
    # Phi(z) = erfc(-z / sqrt 2) / 2, from the C library; its condition number at z is about z^2.
    lower = z < 0.0
    phi = np.array([0.5 * math.erfc(-each / math.sqrt(2.0)) for each in z[lower]])
    normal = phi > 1e-307
    tolerance = 1.2e-15 * (2.0 + z[lower][normal] ** 2)
    assert (np.abs(phi[normal] - p[lower][normal]) <= tolerance * p[lower][normal]).all()


def test_normal_quantile_is_odd_and_right_at_known_points(backend, dtype):
    p = backend.asarray([0.5, 0.75, 0.25, 0.9375, 0.0625, 0.984375], dtype)
    z, vjp = ops.normal_quantile(p)
    got = backend.to_host(z)
    want = [0.0, 0.6744897501960817, -0.6744897501960817, 1.5341205443525463, -1.5341205443525463, 2.1538746940614564]
    np.testing.assert_allclose(got, want, rtol=1e-15 if dtype == "float64" else 4e-7)
    assert got[1] == -got[2]
    (dp,) = vjp(backend.asarray(np.ones(6), dtype))
    assert abs(backend.to_host(dp)[0] - math.sqrt(2 * math.pi)) < 1e-6


def test_normal_quantile_outside_of_the_open_interval(backend, dtype):
    z, _ = ops.normal_quantile(backend.asarray([0.0, 1.0, -0.5, 1.5, math.nan], dtype))
    np.testing.assert_array_equal(backend.to_host(z), [-math.inf, math.inf, math.nan, math.nan, math.nan])


def test_normal_quantile_of_the_smallest_and_largest_probabilities():
    info = np.finfo(np.float32)
    p = np.array([info.tiny, info.eps, 1 - info.epsneg], np.float32)
    z, vjp = ops.normal_quantile(p)
    want = [NormalDist().inv_cdf(float(each)) for each in p]
    np.testing.assert_allclose(z, want, rtol=1e-6)
    assert np.isfinite(vjp(np.ones(3, np.float32))[0]).all()


def test_add_and_concatenate_name_the_shapes_that_do_not_fit(backend, dtype):
    a, b, c = (backend.asarray(np.zeros(shape), dtype) for shape in ((2, 3), (2, 4), (3, 3)))
    with pytest.raises(ShapeError, match=r"array 1 has shape \(2, 4\), array 0 \(2, 3\); all must have the same shape"):
        ops.add(a, b)
    with pytest.raises(ShapeError, match=r"array 2 has shape \(3, 3\).*may differ in axis 1 only"):
        ops.concatenate(a, b, c)
    with pytest.raises(ShapeError, match="axis 2 does not exist"):
        ops.concatenate(a, b, axis=2)
    with pytest.raises(ShapeError, match=r"array 1 has shape \(2,\)"):
        ops.concatenate(a, backend.asarray(np.zeros(2), dtype))


def test_reshape_refuses_another_number_of_elements(backend, dtype):
    x = backend.asarray(np.zeros((4, 6)), dtype)
    for shape in ((4,), (-1,), (-2, -3)):
        with pytest.raises(ShapeError, match=r"x of shape \(4, 6\) does not hold samples of shape"):
            ops.reshape(x, shape)


def test_arguments_may_be_left_out_in_front_of_one_given_by_name():
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((2, 3, 4)), np.array([[True, True, False], [True, False, False]])
    weights = rng.standard_normal((4, 20)), rng.standard_normal((5, 20))
    want, _ = ops.lstm(x, *weights, None, None, None, mask)
    got, vjp = ops.lstm(x, *weights, mask=mask)
    for value, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(value, other)
    assert len(vjp(got)) == 7


def test_an_op_without_arguments_says_what_it_wants():
    with pytest.raises(TypeError, match="called without an array"):
        ops.add()
