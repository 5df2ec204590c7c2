"""Optimizer ops where the matrix does not look: extremes, zeros, ties, kinks, empty arrays."""

import numpy as np
import pytest

from xpnn import ops
from xpnn.dispatch import without_overrides

DTYPES = ("float32", "float64")


def largest(dtype):
    return float(np.finfo(dtype).max)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["huge", "tiny"])
def test_global_norm_neither_overflows_nor_vanishes(dtype, size):
    unit = largest(dtype) / 16 if size == "huge" else 16 * float(np.finfo(dtype).smallest_normal)
    blocks = [np.array([3 * unit, 0.0], dtype), np.array([[-4 * unit]], dtype)]
    norm, vjp = ops.global_norm(*blocks)
    assert norm.dtype == dtype
    assert float(norm) / unit == pytest.approx(5.0, rel=1e-6)
    first, second = vjp(np.asarray(1.0, dtype))
    np.testing.assert_allclose(first, [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(second, [[-0.8]], rtol=1e-6)


def test_norm_of_zeros_and_of_nothing():
    for blocks in ([np.zeros(3)], [np.zeros((0, 2))], [np.zeros((0,)), np.zeros(2)]):
        norm, vjp = ops.global_norm(*blocks)
        assert norm.shape == ()
        assert norm == 0.0
        for block, gradient in zip(blocks, vjp(np.asarray(1.0)), strict=True):
            assert np.array_equal(gradient, block)


def test_empty_blocks_do_not_count():
    norm, _ = ops.global_norm(np.zeros((0, 2)), np.array([3.0, 4.0]))
    assert norm == 5.0
    clipped, _ = ops.clip_by_global_norm(np.zeros((0, 2)), np.array([3.0, 4.0]), limit=1.0)
    assert clipped[0].shape == (0, 2)
    np.testing.assert_allclose(clipped[1], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_a_gradient_whose_norm_would_overflow(dtype):
    x = np.full(4, largest(dtype), dtype)
    clipped, vjp = ops.clip_by_norm(x, 1.0)
    assert clipped.dtype == dtype
    np.testing.assert_allclose(clipped, 0.5, rtol=1e-6)
    (dx,) = vjp(np.ones(4, dtype))
    assert np.all(np.isfinite(dx))
    (value,), _ = ops.clip_by_global_norm(x, limit=1.0)
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 0.3, 1.0])
def test_a_norm_below_the_limit_changes_no_bit(scale):
    x = scale * np.array([0.3, -0.1, 0.7])
    clipped, vjp = ops.clip_by_norm(x, 1.0)
    assert np.array_equal(clipped, x)
    assert np.array_equal(vjp(x)[0], x)


def test_clipping_does_not_hide_a_nan():
    clipped, _ = ops.clip_by_norm(np.array([1.0, np.nan]), 1.0)
    assert np.all(np.isnan(clipped))
    value, _ = ops.clip_by_value(np.array([1.0, np.nan]), 0.5)
    assert value[0] == 0.5
    assert np.isnan(value[1])


def test_clip_by_value_at_the_limits():
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, np.inf])
    y, vjp = ops.clip_by_value(x, 1.0)
    assert y.tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0, 1.0]
    assert vjp(np.ones(6))[0].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]


ZERO = np.zeros(3)
AT_ZERO = {
    "rmsprop": (ZERO, None, 0.1, 0.9, 1e-8),
    "rmsprop_centered": (ZERO, ZERO, None, 0.1, 0.9, 1e-8),
    "adagrad": (ZERO, 0.1, 1e-10),
    "adadelta": (ZERO, ZERO, 1.0, 0.9, 1e-6),
    "adam": (ZERO, ZERO, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.001),
    "amsgrad": (ZERO, ZERO, ZERO, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.001),
    "nadam": (ZERO, ZERO, 1e-3, 1e-3, 0.9, 0.999, 1e-8, 0.001),
    "lion": (ZERO, 1e-3, 0.9, 0.99),
}


@pytest.mark.parametrize("name", AT_ZERO)
def test_a_gradient_that_was_always_zero_moves_nothing(name):
    """As in the padding of the parameter vector. The derivative is finite too."""
    theta = np.array([1.0, -2.0, 0.0])
    values, vjp = getattr(ops, name)(theta, ZERO, *AT_ZERO[name])
    assert np.array_equal(values[0], theta)
    for gradient in vjp(tuple(np.ones(3) for _ in values)):
        assert gradient is None or np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ["rmsprop", "adam", "amsgrad", "nadam"])
def test_second_moments_that_are_finite_do_not_overflow(name):
    """0.001 * (1e20)^2 is a float32; (1e20)^2 is not."""
    zero = np.zeros(2, "float32")
    gradient = np.array([1e20, -1e20], "float32")
    arguments = [np.zeros(2, "float32") if isinstance(a, np.ndarray) else a for a in AT_ZERO[name]]
    if name == "rmsprop":
        arguments[3] = 0.999
    values, _ = getattr(ops, name)(zero, gradient, *arguments)
    assert all(np.all(np.isfinite(value)) for value in values)
    assert np.all(np.abs(values[0]) > 1e-4)


def test_amsgrad_shares_the_derivative_where_both_are_equal():
    """The new second moment is 0.5 * 4 + 0.5 * 2^2 = 4, as large as the largest."""
    one = np.ones(1)
    arguments = (one, 2.0 * one, one, 4.0 * one, 4.0 * one, 0.1, 0.5, 0.5, 1e-8, 1.0, 1.0)
    _, vjp = ops.amsgrad(*arguments)
    gradients = vjp((0 * one, 0 * one, 0 * one, one))
    assert gradients[4] == 0.5
    assert gradients[3] == 0.5 * 0.5


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize(
    ("ss", "sy", "yy"), [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1e-320, 0.0), (1e300, 1e-300, 0.0)]
)
def test_barzilai_borwein_falls_back(ss, sy, yy, long):
    length, vjp = ops.barzilai_borwein(np.asarray(ss), np.asarray(sy), np.asarray(yy), 0.125, long=long)
    assert length == 0.125
    assert all(gradient == 0.0 for gradient in vjp(np.asarray(1.0)))


def test_generic_bodies_ignore_donate():
    theta, gradient = np.ones(3), np.ones(3)
    with without_overrides():
        new, vjp = ops.sgd(theta, gradient, 0.5, donate=True)
    assert theta.tolist() == [1.0, 1.0, 1.0]
    assert new.tolist() == [0.5, 0.5, 0.5]
    assert vjp(np.ones(3))[1].tolist() == [-0.5, -0.5, -0.5]
