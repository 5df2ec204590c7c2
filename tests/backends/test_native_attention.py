"""Attention in recorded steps, in NumPy and natively, against the generic body of the op in float64."""

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import ops
from xpnn.dispatch import OPS
from xpnn.errors import ShapeError
from xpnn.random import RandomKey
from xpnn_backends import fast
from xpnn_backends.compiled_step import RecordedCall, evaluate_recorded
from xpnn_backends.recording import RecordingError

pytestmark = pytest.mark.parametrize(
    "native",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(fast.why_not() is not None, reason=str(fast.why_not() or "runs"))),
    ],
)
RANDOM = np.random.default_rng(0)


def arrays(batch, queries, keys, heads=4, groups=2, size=5, value_size=3):
    shapes = [(batch, queries, heads, size), (batch, keys, groups, size), (batch, keys, groups, value_size)]
    return [RANDOM.normal(size=shape) for shape in shapes]


def compare(given, dtype, native, **options):
    *floats, mask = given if len(given) == 4 else (*given, None)
    given = [x.astype(dtype) for x in floats] + ([] if mask is None else [mask])
    doubles = [x.astype(np.float64) for x in given[:3]] + given[3:]
    value, backward = evaluate_recorded(lambda *x: ops.attention(*x, **options), tuple(given), native)
    wanted, vjp = OPS["attention"].generic(*doubles, **options)
    dy = RANDOM.normal(size=wanted.shape).astype(dtype)
    close = {"float32": 2e-5, "float64": 1e-12}[dtype]
    pairs = zip([value, *backward(dy)[:3]], [wanted, *vjp(dy.astype(np.float64))[:3]], strict=True)
    for mine, theirs in pairs:
        assert mine.dtype == dtype
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max(initial=0) <= close * max(np.abs(theirs).max(initial=0), 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "block"), [(1, 1, 1, 8), (2, 7, 7, 8), (3, 9, 5, 4), (2, 5, 11, 2), (2, 40, 40, 16)]
)
def test_every_form(batch, queries, keys, block, causal, dtype, native):
    given = arrays(batch, queries, keys)
    compare(given, dtype, native, causal=causal, block=block)
    mask = RANDOM.uniform(size=(batch, 1, 1, keys)) < 0.6
    compare([*given, mask], dtype, native, causal=causal, block=block, scale=0.3)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 3), (4, 1)])
def test_heads_that_share_keys(heads, native):
    compare(arrays(2, 6, 6, *heads), "float64", native, block=4)


def test_many_heads_are_split_among_threads(native):
    compare(arrays(8, 64, 64, 8, 8, 32, 32), "float32", native)
    compare(arrays(8, 64, 64, 8, 2, 32, 32), "float32", native, causal=True, block=32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [3, 16])
def test_dropout(block, causal, dtype, native):
    options = {"causal": causal, "block": block, "dropout_key": RandomKey(7, 5, 3), "dropout_rate": 0.4}
    compare(arrays(2, 8, 8), dtype, native, **options)
    compare([*arrays(3, 5, 7), RANDOM.uniform(size=(3, 1, 1, 7)) < 0.6], dtype, native, **options)


@pytest.mark.parametrize("block", [2, 8])
def test_a_query_that_may_look_at_no_key_gives_zero(block, native):
    query, key, value = arrays(2, 4, 5)
    mask = np.ones((2, 1, 1, 5), bool)
    mask[1] = False
    y, backward = evaluate_recorded(lambda *x: ops.attention(*x, block=block), (query, key, value, mask), native)
    assert not y[1].any()
    assert not any(gradient[1].any() for gradient in backward(np.ones_like(y))[:3])


def test_masks_of_single_queries_run_call_by_call(native):
    given = arrays(2, 4, 5)
    compare([*given, RANDOM.uniform(size=(2, 4, 4, 5)) < 0.7], "float64", native)


def test_long_sequences_keep_no_weights(native):
    given = tuple(x.astype("float32") for x in arrays(1, 512, 512, 2, 2, 4, 4))
    program = RecordedCall(lambda *x: ops.attention(*x)[0], given, native).program
    assert program.scratch_bytes < 2 * 512 * 512 * 4


def test_arrays_that_do_not_fit_are_refused(native):
    query, key, value = arrays(2, 4, 5)
    with pytest.raises((ShapeError, RecordingError), match="there must be one value for each key"):
        evaluate_recorded(lambda *x: ops.attention(*x), (query, key, value[:, :4]), native)
