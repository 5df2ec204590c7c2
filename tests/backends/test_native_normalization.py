"""Normalisation in recorded steps, in NumPy and natively, against the generic bodies of the ops in float64."""

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import ops
from xpnn.dispatch import OPS
from xpnn_backends import fast
from xpnn_backends.compiled_step import evaluate_recorded
from xpnn_backends.kernels_normalization import line_length

pytestmark = pytest.mark.parametrize(
    "native",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(fast.why_not() is not None, reason=str(fast.why_not() or "runs"))),
    ],
)
RANDOM = np.random.default_rng(0)


def compare(name, arrays, cotangents, dtype, native, tolerance=None, **options):
    """Value and gradients of a recorded op against its generic body in float64."""
    arrays = [x.astype(dtype) for x in arrays]
    want_value, want_vjp = OPS[name].generic(*(x.astype(np.float64) for x in arrays), **options)
    many = isinstance(want_value, tuple)

    def function(*given):
        return getattr(ops, name)(*given, **options)

    value, backward = evaluate_recorded(function, tuple(arrays), native)
    wanted = list(want_value) if many else [want_value]
    found = list(value) if many else [value]
    given = tuple(c.astype(dtype) for c in cotangents)
    wanted += [x for x in want_vjp(tuple(c.astype(np.float64) for c in given) if many else given[0]) if x is not None]
    found += [x for x in backward(given if many else given[0]) if x is not None]
    close = tolerance or {"float32": 2e-5, "float64": 1e-12}[dtype]
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max(initial=0) <= close * max(np.abs(theirs).max(initial=0), 1.0)


SHAPES = [(0, 4), (1, 3), (2, 1), (7, 5), (2, 3, 4, 6), (64, 9, 9, 16), (3, 17, 130), (40, 11, 11, 24)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape, activation, dtype, native):
    x, dy = RANDOM.normal(3.0, 2.0, (2, *shape))
    # No number of the normalised ones may lie so near to 0 that rounding decides what relu does.
    vectors = [RANDOM.uniform(0.5, 2.0, shape[-1]), RANDOM.uniform(-1.0, 1.0, shape[-1])]
    if activation:
        (y, _, _), _ = OPS["batch_norm"].generic(x.astype(dtype).astype(float), *vectors)
        dy[np.abs(y) < 1e-4] = 0.0
    moments = RANDOM.normal(size=(2, shape[-1]))
    compare("batch_norm", [x, *vectors], [dy, *moments], dtype, native, activation=activation)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_of_numbers_far_from_zero(dtype, native):
    x = RANDOM.normal(1000.0, 1.0, (500, 6))
    compare("batch_norm", [x], [RANDOM.normal(size=x.shape), *np.zeros((2, 6))], dtype, native, tolerance=1e-3)


def test_batch_norm_of_large_float32_numbers(native):
    x = (RANDOM.normal(size=(300, 4)) * 1e25).astype("float32")
    (y, mean, variance), _ = evaluate_recorded(lambda x: ops.batch_norm(x), (x,), native)
    assert np.abs(y.mean(axis=0)).max() < 1e-5
    assert np.abs(y.var(axis=0) - 1).max() < 1e-4
    assert np.isfinite(mean).all()
    assert np.isinf(variance).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axes"), [*((s, 1) for s in SHAPES), ((5, 3, 4), 2), ((300, 256), 1)])
def test_layer_norm_and_rms_norm(shape, axes, dtype, native):
    x, dy = RANDOM.normal(1.0, 2.0, (2, *shape))
    vectors = [RANDOM.uniform(0.5, 2.0, shape[-axes:]), RANDOM.uniform(-1.0, 1.0, shape[-axes:])]
    compare("layer_norm", [x, *vectors], [dy], dtype, native, axes=axes)
    compare("layer_norm", [x], [dy], dtype, native, axes=axes)
    compare("rms_norm", [x, vectors[0]], [dy], dtype, native, axes=axes)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e30), ("float64", 1e200)])
def test_layer_norm_of_large_numbers(dtype, size, native):
    x = (RANDOM.normal(size=(5, 40)) * size).astype(dtype)
    y, _ = evaluate_recorded(lambda x: ops.layer_norm(x), (x,), native)
    assert np.abs(y.mean(axis=1)).max() < 1e-5
    assert np.abs(y.var(axis=1) - 1).max() < 1e-4


def test_a_nan_stays_in_its_channel_or_row(native):
    x = RANDOM.normal(size=(200, 8))
    x[50, 3] = np.nan
    (y, _, _), _ = evaluate_recorded(lambda x: ops.batch_norm(x), (x,), native)
    assert np.array_equal(np.isnan(y).any(axis=0), np.arange(8) == 3)
    y, _ = evaluate_recorded(lambda x: ops.layer_norm(x), (x,), native)
    assert np.array_equal(np.isnan(y).any(axis=1), np.arange(200) == 50)


def test_lines_are_made_of_whole_rows(native):
    for rows in (0, 1, 2, 7, 64, 97, 1000):
        for channels in (1, 3, 16, 500):
            line = line_length(rows, channels)
            assert line % channels == 0
            assert rows * channels % line == 0
            assert line <= max(128, channels)
