"""Max-pooling in recorded steps, in NumPy and natively, against the generic body of the op."""

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import ops
from xpnn.dispatch import OPS
from xpnn_backends import fast
from xpnn_backends.compiled_step import evaluate_recorded

pytestmark = pytest.mark.parametrize(
    "native",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(fast.why_not() is not None, reason=str(fast.why_not() or "runs"))),
    ],
)
RANDOM = np.random.default_rng(0)


def compare(x, native, window, stride, padding):
    options = {"window": window, "stride": stride, "padding": padding}
    value, backward = evaluate_recorded(lambda x: ops.max_pool(x, **options), (x,), native)
    wanted, vjp = OPS["max_pool"].generic(x, **options)
    # Multiples of 1/2: the sums of overlapping windows are exact in any order.
    dy = np.round(RANDOM.normal(size=wanted.shape) * 4).astype(x.dtype) / 2
    assert np.array_equal(value, wanted, equal_nan=True)
    assert value.dtype == x.dtype
    assert np.array_equal(backward(dy)[0], vjp(dy)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3, 6, 8, 16, 23])
@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [
        ((2, 2), (2, 2), ((0, 0), (0, 0))),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((3, 2), (1, 3), ((0, 2), (1, 0))),
        ((1, 4), (1, 1), ((0, 0), (3, 3))),
        ((2, 2), (5, 4), ((0, 0), (0, 0))),
    ],
)
def test_images(window, stride, padding, channels, dtype, native):
    # Few different values, so that most windows hold their maximum several times.
    x = RANDOM.integers(-2, 3, (3, 7, 9, channels)).astype(dtype)
    compare(x, native, window, stride, padding)
    compare(RANDOM.normal(size=(2, 6, 5, channels)).astype(dtype), native, window, stride, padding)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_sequences(batch, native):
    x = RANDOM.integers(-2, 3, (batch, 11, 5)).astype("float32")
    compare(x, native, (3,), (2,), ((1, 1),))


def test_volumes_run_by_the_generic_body(native):
    compare(RANDOM.normal(size=(2, 4, 5, 6, 3)), native, (2, 2, 2), (2, 2, 2), ((0, 0),) * 3)


def test_large_images_are_split_among_threads(native):
    compare(RANDOM.integers(-9, 9, (33, 20, 20, 16)).astype("float32"), native, (2, 2), (2, 2), ((0, 0),) * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities(value, native):
    x = RANDOM.normal(size=(2, 4, 4, 3))
    x[0, 1, 1, 0] = x[0, 1, 2, 0] = value
    x[1] = value
    compare(x, native, (3, 3), (1, 1), ((1, 1), (1, 1)))
