"""NumPy's own bodies where the matrix does not reach: donated arguments, arrays larger than one piece, tied options."""

import inspect

import numpy as np
import pytest

from xpnn.dispatch import OPS
from xpnn.testing.cases import CASES
from xpnn_backends import numpy_bodies
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
@pytest.mark.parametrize("length", [None, 3 * numpy_bodies._CHUNK + 17], ids=["as-drawn", "several-pieces"])
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
    arguments = drawn(case, "float64", 2 * (numpy_bodies._CHUNK + 8))
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
