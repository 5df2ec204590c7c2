"""NumPy's own bodies where the matrix does not reach: donated arguments, arrays larger than one piece, tied options."""

import inspect

import numpy as np
import pytest

from xpnn.dispatch import OPS
from xpnn.testing.cases import CASES
from xpnn_backends.kernels_optimizers import CHUNK
from xpnn_backends.numpy_backend import NumpyBackend

DONATING = [case for case in CASES if "donate" in inspect.signature(OPS[case.op].generic).parameters]


def values_of(result):
    value, _ = result
    return value if isinstance(value, tuple) else (value,)


def drawn(case, dtype, length=None):
    arguments = case.draw()
    if length is not None:
        arguments = [np.resize(a, (length,)) if isinstance(a, np.ndarray) else a for a in arguments]
    return [a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments]


def copies(arguments):
    return [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [None, 3 * CHUNK + 17], ids=["as-drawn", "several-pieces"])
@pytest.mark.parametrize("case", DONATING, ids=lambda case: case.id)
def test_donated_update_equals_the_generic_one(case, length, dtype):
    arguments = drawn(case, dtype, length)
    want = values_of(OPS[case.op].generic(*copies(arguments), **case.options))
    got = values_of(OPS[case.op](*copies(arguments), **{**case.options, "donate": True}))
    for mine, reference in zip(got, want, strict=True):
        assert mine.dtype == reference.dtype == np.dtype(dtype)
        scale = np.abs(reference).max()
        np.testing.assert_allclose(mine, reference, rtol=0, atol=16 * np.finfo(dtype).eps * scale)


@pytest.mark.parametrize("case", DONATING, ids=lambda case: case.id)
def test_donated_update_of_a_matrix_that_is_not_contiguous(case):
    arguments = drawn(case, "float64", 2 * (CHUNK + 8))
    arguments = [a.reshape(8, -1).T if isinstance(a, np.ndarray) else a for a in arguments]
    want = values_of(OPS[case.op].generic(*copies(arguments), **case.options))
    got = values_of(
        OPS[case.op](
            *[np.copy(a, order="K") if isinstance(a, np.ndarray) else a for a in arguments],
            **{**case.options, "donate": True},
        )
    )
    for mine, reference in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-14 * np.abs(reference).max())


@pytest.mark.parametrize("case", DONATING, ids=lambda case: case.id)
def test_only_theta_and_the_slots_are_donated(case):
    arguments = drawn(case, "float64")
    names = list(inspect.signature(OPS[case.op].generic).parameters)
    given = copies(arguments)
    OPS[case.op](*given, **{**case.options, "donate": True})
    slots = len(values_of(OPS[case.op].generic(*copies(arguments), **case.options))) - 1
    donated = {"theta", *names[2 : 2 + slots]}
    for name, before, after in zip(names, arguments, given, strict=False):
        if isinstance(before, np.ndarray) and name not in donated:
            assert np.array_equal(before, after), name


def test_every_body_is_that_of_an_op():
    assert set(NumpyBackend.overrides) <= set(OPS)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
def test_linear_on_inputs_that_are_not_contiguous(activation):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((6, 10))[::2, ::2]
    weight = generator.standard_normal((4, 5)).T
    bias = generator.standard_normal(8)[::2]
    dy = generator.standard_normal((4, 3)).T
    y, vjp = OPS["linear"](x, weight, bias, activation=activation)
    want, want_vjp = OPS["linear"].generic(x, weight, bias, activation=activation)
    np.testing.assert_allclose(y, want, rtol=1e-14)
    for mine, reference in zip(vjp(dy), want_vjp(dy), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-13, atol=1e-15)


def test_relu_body_keeps_an_infinite_gradient_out_of_closed_units():
    x = np.array([[1.0, -1.0]])
    _, vjp = OPS["linear"](x, np.eye(2), None, activation="relu")
    dx, _, _ = vjp(np.array([[1.0, np.inf]]))
    assert np.array_equal(dx, [[1.0, 0.0]])


def test_cross_entropy_body_at_extreme_logits():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    labels = np.array([0, 0])
    value, vjp = OPS["cross_entropy"](logits, labels)
    assert value.dtype == np.float32
    assert float(value) == 1e4
    np.testing.assert_array_equal(vjp(1.0)[0], np.array([[0, 0, 0], [-0.5, 0.5, 0]], np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_body_on_logits_in_column_order(dtype):
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype).T
    labels = np.array([0, 1, 2, 1, 0])
    value, vjp = OPS["cross_entropy"](logits, labels)
    want, want_vjp = OPS["cross_entropy"].generic(logits, labels)
    assert value == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(vjp(1.0)[0], want_vjp(1.0)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 3, 0), (0, 3, 0), (0, 3, 4), (2, 0, 4)])
def test_linear_without_features_or_without_rows(shape, activation):
    x, weight, bias = np.ones(shape), np.ones((shape[-1], 5)), np.arange(5.0)
    y, vjp = OPS["linear"](x, weight, bias, activation=activation)
    want, want_vjp = OPS["linear"].generic(x, weight, bias, activation=activation)
    np.testing.assert_array_equal(y, want)
    dy = np.ones((*shape[:-1], 5))
    for mine, reference in zip(vjp(dy), want_vjp(dy), strict=True):
        assert mine.shape == reference.shape
        np.testing.assert_allclose(mine, reference, rtol=1e-15)


def orders(x):
    """x in memory orders other than its own: by columns, with gaps, from the back; and read-only."""
    gaps = np.zeros(tuple(2 * length for length in x.shape), x.dtype)
    gaps[tuple(slice(None, None, 2) for _ in x.shape)] = x
    backwards = tuple(slice(None, None, -1) for _ in x.shape)
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "columns": np.asfortranarray(x),
        "gaps": gaps[tuple(slice(None, None, 2) for _ in x.shape)],
        "backwards": np.ascontiguousarray(x[backwards])[backwards],
        "read-only": read_only,
    }


@pytest.mark.parametrize("order", ["columns", "gaps", "backwards", "read-only"])
@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], ids=lambda case: case.id)
def test_memory_order_makes_no_difference(case, order):
    def reordered(x):
        return orders(x)[order] if isinstance(x, np.ndarray) and x.ndim else x

    arguments = drawn(case, "float64")
    value, vjp = OPS[case.op].generic(*arguments, **case.options)
    mine, my_vjp = OPS[case.op](*map(reordered, arguments), **case.options)
    values, my_values = values_of((value, vjp)), values_of((mine, my_vjp))
    rng = np.random.default_rng(1)
    cotangents = tuple(rng.standard_normal(np.shape(part)) for part in values)
    moved = tuple(reordered(cotangent) for cotangent in cotangents)
    gradients = vjp(cotangents if isinstance(value, tuple) else cotangents[0])
    for _ in range(2):  # a vjp can be called again, and gives the same again
        my_gradients = my_vjp(moved if isinstance(mine, tuple) else moved[0])
        pairs = [*zip(my_values, values, strict=True), *zip(my_gradients, gradients, strict=True)]
        for got, want in pairs:
            if want is not None:
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
