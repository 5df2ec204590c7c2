"""Convolutions on plain NumPy: strips of places, and cuts into blocks."""

import numpy as np
import pytest

from xpnn_backends import numpy_convolution
from xpnn_backends.native.windows import Geometry

NONE = np.zeros(0, np.float32)


def _geometry(stride=1, kernel=3, channels=(2, 3)):
    image = 12
    places = (image + 2 - kernel) // stride + 1
    return Geometry(
        (1, image, image), (1, places, places), (1, kernel, kernel), (1, stride, stride), (0, 1, 1), (1, 1, 1),
        (*channels, 1),
    )  # fmt: skip


def _numbers(geometry, seed=0):
    generator = np.random.default_rng(seed)
    inputs, outputs, _ = geometry.channels
    shapes = (
        (5, *geometry.image[1:], inputs),
        (*geometry.kernel[1:], inputs, outputs),
        (5, *geometry.places[1:], outputs),
    )
    return [generator.integers(-4, 5, shape).astype(np.float32) for shape in shapes]


def _expected(x, weight, stride):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[:2], (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", seen, weight)


def _results(geometry, x, weight, dy):
    y, dx, sums = np.empty_like(dy), np.empty_like(x), np.empty((2, weight.size), np.float32)
    numpy_convolution.correlate(x, weight, NONE, geometry, False, False, y)
    numpy_convolution.correlate(dy, weight, NONE, geometry, True, False, dx)
    numpy_convolution.weight_gradient(x, dy, geometry, sums)
    return y, dx, sums


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(2, 3), (1, 6), (3, 40)])
def test_a_convolution_and_its_gradients_are_exact_on_integers(stride, channels):
    geometry = _geometry(stride, channels=channels)
    x, weight, dy = _numbers(geometry)
    y, dx, sums = _results(geometry, x, weight, dy)
    np.testing.assert_array_equal(y, _expected(x, weight, stride))
    # <dy, conv(x, w)> is linear in x and in w: its gradients are what is left without them.
    total = np.sum(dy * y, dtype=np.float64)
    assert np.sum(dx * x, dtype=np.float64) == total
    assert np.sum(sums.sum(0) * weight.reshape(-1), dtype=np.float64) == total


@pytest.mark.parametrize("block", [64, 700, 5000])
def test_blocks_change_nothing(monkeypatch, block):
    geometry = _geometry()
    given = _numbers(geometry)
    expected = _results(geometry, *given)
    monkeypatch.setattr(numpy_convolution, "_BLOCK", block)
    for got, wanted in zip(_results(geometry, *given), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_under_its_windows(value):
    geometry = _geometry()
    x, weight, _ = _numbers(geometry)
    weight[weight == 0] = 1.0
    x[2, 5, 6, 1] = value
    y = np.empty((5, 12, 12, 3), np.float32)
    numpy_convolution.correlate(x, weight, NONE, geometry, False, False, y)
    touched = ~np.isfinite(y)
    wanted = np.zeros_like(touched)
    wanted[2, 4:7, 5:8] = True
    np.testing.assert_array_equal(touched, wanted)
