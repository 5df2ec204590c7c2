"""Ops on half-precision arrays: which body runs, what it computes in, and what comes back."""

import numpy as np
import pytest

from xpnn import dispatch, ops
from xpnn.dispatch import OPS
from xpnn.half_precision import handles_half, in_float32, rounded, widened

on_half_rows = pytest.mark.xpnn_rows(only=["torch", "jax", "cupy"], dtypes="float32")
HALF = ["bfloat16", "float16"]


def recorder():
    """A body of an op with two arrays, a number and an option; and what it was called with."""
    calls = []

    def body(x, y=None, factor=1.0, *, shift=0.0):
        calls.append((x.dtype, None if y is None else y.dtype, factor, shift))
        total = x * factor + shift

        def vjp(cotangents):
            dvalue, _ = cotangents
            calls.append(None if dvalue is None else dvalue.dtype)
            return dvalue * factor, None if y is None else dvalue * 0.5

        return (total, total > 0), vjp

    return body, calls


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_a_body_computes_in_float32_and_rounds_its_results(precision, backend, dtype):
    body, calls = recorder()
    half, float32 = backend.dtype(precision), backend.xp.ones(1, dtype=backend.xp.float32).dtype
    x = backend.asarray(np.array([0.5, -1.0]), precision)
    y = backend.asarray(np.array([0.5, -1.0]), "float32")
    with backend.context():
        (value, positive), vjp = in_float32(body)(x, y, 3.0, shift=1.0)
        dx, dy = vjp((value, None))
    assert calls == [(float32, float32, 3.0, 1.0), float32]
    assert (value.dtype, positive.dtype) == (half, backend.xp.bool)
    assert (dx.dtype, dy.dtype) == (half, float32)
    np.testing.assert_array_equal(backend.to_host(widened(value)), [2.5, -2.0])
    np.testing.assert_array_equal(backend.to_host(widened(dx)), [7.5, -6.0])


@on_half_rows
def test_float32_arrays_come_through_as_they_are(backend, dtype):
    body, calls = recorder()
    x = backend.asarray(np.array([0.5, -1.0]), "float32")
    with backend.context():
        (value, _), vjp = in_float32(body)(x)
        gradients = vjp((value, None))
    assert value.dtype == backend.dtype("float32")
    assert gradients[0].dtype == backend.dtype("float32")
    assert gradients[1] is None
    assert calls[0][0] == backend.dtype("float32")


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_a_marked_body_is_called_as_it_is(precision, backend, dtype):
    body, calls = recorder()
    assert in_float32(handles_half(body)) is body
    x = backend.asarray(np.array([0.5, -1.0]), precision)
    with backend.context():
        body(x)
    assert calls[0][0] == backend.dtype(precision)


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_sums_are_not_rounded_on_the_way(precision, backend, dtype):
    """4096 ones: in bfloat16 a running sum stops at 256, in float16 at 2048."""
    x = backend.asarray(np.ones((1, 4096)), precision)
    weight = backend.asarray(np.ones((4096, 1)), precision)
    with backend.context():
        y, vjp = ops.linear(x, weight)
        dx, _ = vjp(y)[:2]
    assert float(widened(y)[0, 0]) == 4096.0
    assert float(widened(dx)[0, 0]) == 4096.0


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_statistics_of_a_batch_are_float32(precision, backend, dtype):
    """The mean of 1 and the next number is neither of them in half precision."""
    one_more = 1.0 + {"bfloat16": 2.0**-7, "float16": 2.0**-10}[precision]
    x = backend.asarray(np.array([[1.0], [one_more]]), precision)
    with backend.context():
        (y, mean, variance), _ = ops.batch_norm(x)
    assert y.dtype == backend.dtype(precision)
    assert mean.dtype == variance.dtype == backend.dtype("float32")
    assert float(mean[0]) == (1.0 + one_more) / 2


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_half_precision_beside_float32_gives_half_precision(precision, backend, dtype):
    """As where running statistics, which stay float32, meet activations."""
    x = backend.asarray(np.array([[1.0, 2.0]]), precision)
    mean, variance = (backend.asarray(np.array(values), "float32") for values in ([0.0, 1.0], [1.0, 4.0]))
    with backend.context():
        y, vjp = ops.batch_norm_inference(x, mean, variance)
        dx, dmean, dvariance = vjp(y)[:3]
    assert y.dtype == dx.dtype == backend.dtype(precision)
    assert dmean.dtype == dvariance.dtype == backend.dtype("float32")


def test_backends_without_half_precision_pay_nothing():
    """The body that runs is the op's own, with nothing in front of it."""
    x = np.ones((2, 2), "float32")
    ops.tanh(x)
    assert OPS["tanh"].bodies[(np.ndarray,)] is OPS["tanh"].generic
    assert not dispatch.HALF_DTYPES[np.ndarray]
    assert not dispatch.HALF_DTYPES[float]
    assert widened(x) is x
    assert rounded(None, x.dtype) is None
    assert rounded(x, None) is x


@on_half_rows
def test_only_half_precision_is_rounded_to(backend, dtype):
    x = backend.asarray(np.array([1.0, 2.0]), "float32")
    indices = backend.asarray(np.array([1, 2]), "int64")
    with backend.context():
        assert rounded(x, indices.dtype) is x
        assert rounded(indices, backend.dtype("bfloat16")) is indices
        assert rounded(x, backend.dtype("bfloat16")).dtype == backend.dtype("bfloat16")


@pytest.mark.xpnn_rows(only=["torch", "jax", "cupy"], dtypes="float32")
@pytest.mark.parametrize("precision", HALF)
def test_host_arrays_come_and_go(precision, backend, dtype):
    """0.1 is rounded once on the way to the device, and comes back as the same number."""
    x = backend.asarray(np.array([0.1, -3.0, 300.0]), precision)
    assert x.dtype == backend.dtype(precision)
    nearest = {"bfloat16": 0.10009765625, "float16": 0.0999755859375}[precision]
    host = backend.to_host(x).astype("float64")
    np.testing.assert_array_equal(host, [nearest, -3.0, 300.0])
