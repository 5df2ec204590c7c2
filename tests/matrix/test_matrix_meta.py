"""Faults planted on purpose: the matrix must catch each, on the rows that are named here, and pass what is right.

Each fault is an op of its own, checked in place of `tanh` and never registered.
"""

import numpy as np
import pytest

from xpnn.dispatch import Op, device, namespace
from xpnn.errors import CheckError
from xpnn.testing import checks
from xpnn.testing.cases import Case, Reals
from xpnn.testing.rows import ROWS

EVERYWHERE = {row.id for row in ROWS}
STRICT = {"strict", "strict-no64"}
RECORDED = {"numpy-compiled", "numpy-fast"}


def tanh(x):
    xp = namespace(x)
    y = xp.tanh(x)
    return y, lambda dy: (dy * (1 - y * y),)


def non_standard_call(x):
    xp = namespace(x)
    y = xp.einsum("ij->ij", xp.tanh(x))
    return y, lambda dy: (dy * (1 - y * y),)


def missing_device(x):
    xp = namespace(x)
    y = xp.tanh(x) + xp.zeros(x.shape, dtype=x.dtype)
    return y, lambda dy: (dy * (1 - y * y),)


def in_place_write(x):
    xp = namespace(x)
    y = xp.tanh(x)

    def vjp(dy):
        dx = xp.zeros_like(x)
        dx[...] = dy * (1 - y * y)
        return (dx,)

    return y, vjp


def argument_modified(x):
    xp = namespace(x)
    y = xp.tanh(x)
    x *= 1.0 + 2.0**-10
    return y, lambda dy: (dy * (1 - y * y),)


def cotangent_modified(x):
    xp = namespace(x)
    y = xp.tanh(x)

    def vjp(dy):
        dy *= 1 - y * y
        return (dy,)

    return y, vjp


def float64_scalar(x):
    xp = namespace(x)
    y = xp.tanh(x) * np.float64(1.0)
    return y, lambda dy: (dy * (1 - y * y),)


def zeros_without_dtype(x):
    xp = namespace(x)
    y = xp.tanh(x) + xp.zeros(x.shape, device=device(x))
    return y, lambda dy: (dy * (1 - y * y),)


def hidden_float64(x):
    xp = namespace(x)
    y = xp.astype(xp.tanh(xp.astype(x, xp.float64)), x.dtype)
    return y, lambda dy: (dy * (1 - y * y),)


def host_read(x):
    xp = namespace(x)
    y = xp.tanh(x)
    if xp.any(x > 100.0):
        y = xp.ones_like(x)
    return y, lambda dy: (dy * (1 - y * y),)


def host_read_in_vjp(x):
    xp = namespace(x)
    y = xp.tanh(x)
    return y, lambda dy: (dy * (1 - y * y) * float(xp.max(xp.ones_like(y))),)


def boolean_mask(x):
    xp = namespace(x)
    y = xp.tanh(x)
    positive = xp.sum(y[y > 0])
    return y + 0.0 * positive, lambda dy: (dy * (1 - y * y),)


def bool_times_float(x):
    xp = namespace(x)
    y = xp.tanh(x) * (x == x)
    return y, lambda dy: (dy * (1 - y * y),)


def method_call(x):
    xp = namespace(x)
    y = xp.tanh(x)
    return y, lambda dy: (dy * (1 - y * y) + 0.0 * dy.sum(),)


def through_the_host(x):
    y = namespace(x).asarray(np.tanh(np.asarray(x)), device=device(x))
    return y, lambda dy: (dy * (1 - y * y),)


def wrong_derivative(x):
    xp = namespace(x)
    y = xp.tanh(x)
    return y, lambda dy: (dy * (1 - y),)


def wrong_value(x):
    xp = namespace(x)
    y = xp.tanh(x) * (1.0 + 1e-4)
    return y, lambda dy: (dy * (1 - y * y),)


def gradient_of_wrong_dtype(x):
    xp = namespace(x)
    y = xp.tanh(x)
    other = xp.float32 if x.dtype != xp.float32 else xp.int32
    return y, lambda dy: (xp.astype(dy * (1 - y * y), other),)


def gradient_of_wrong_shape(x):
    xp = namespace(x)
    y = xp.tanh(x)
    return y, lambda dy: (xp.sum(dy * (1 - y * y), axis=0),)


def no_gradient(x):
    xp = namespace(x)
    return xp.tanh(x), lambda dy: ()


def none_as_gradient(x):
    xp = namespace(x)
    return xp.tanh(x), lambda dy: (None,)


# op -> the rows that catch it, in at least one of their dtypes. What a library silently allows, others must refuse.
# jax has einsum, and its arrays ignore `device=`; NumPy arrays are read freely; and so on.
FAULTS = {
    non_standard_call: STRICT,
    missing_device: STRICT,
    in_place_write: {"jax", *RECORDED},
    argument_modified: EVERYWHERE - {"jax"},  # on JAX, `*=` makes a new array
    cotangent_modified: EVERYWHERE - {"jax"},
    float64_scalar: EVERYWHERE - {"torch"},
    # others default to float32
    zeros_without_dtype: {"numpy", "numpy-readonly", "cupy", "cupy-graph", "strict", "jax", *RECORDED},
    hidden_float64: {"strict-no64"},
    host_read: {*STRICT, *RECORDED, "cupy-graph"},
    host_read_in_vjp: {*STRICT, *RECORDED, "cupy-graph"},
    boolean_mask: {*STRICT, *RECORDED, "cupy-graph"},
    bool_times_float: STRICT,
    method_call: {*STRICT, *RECORDED},
    through_the_host: {*STRICT, "cupy", "cupy-graph", *RECORDED},
    wrong_derivative: EVERYWHERE,
    wrong_value: EVERYWHERE,
    gradient_of_wrong_dtype: EVERYWHERE,
    gradient_of_wrong_shape: EVERYWHERE,
    no_gradient: EVERYWHERE,
    none_as_gradient: EVERYWHERE,
}
CASE = Case("tanh", (Reals((4, 3), -3.0, 3.0),))


def swapped_entries(x, weight):
    xp = namespace(x)
    return xp.matmul(x, weight), lambda dy: (xp.matmul(x.T, dy), xp.matmul(dy, weight.T), None)


def linear(x, weight):
    xp = namespace(x)
    return xp.matmul(x, weight), lambda dy: (xp.matmul(dy, weight.T), xp.matmul(x.T, dy), None)


# Square arrays, so that no shape gives the fault away.
SQUARE = Case("linear", (Reals((3, 3)), Reals((3, 3))), terms=3)


def row_of(backend):
    return next(row for row in ROWS if row.spec == backend.spec)


def complaint(function, case, backend):
    """What the matrix says about a function on one row, over the row's dtypes; None if all passes."""
    planted = Op(function)
    for dtype in row_of(backend).dtypes:
        try:
            checks.check_rounding(case, backend, dtype, op=planted)
            if dtype == "float64":
                checks.check_derivative(case, backend, op=planted)
        except Exception as error:  # a library's own refusal counts: it fails the matrix's test just as well
            return f"{type(error).__name__}: {error}"
    return None


def test_every_fault_is_caught_without_a_gpu():
    cpu_rows = EVERYWHERE - {"cupy", "cupy-graph"}
    assert all(rows & cpu_rows for rows in FAULTS.values())


# One parametrization is enough, since each test goes through its row's dtypes itself; all rows have float32.
@pytest.mark.xpnn_rows(dtypes="float32")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_caught(fault, backend):
    said = complaint(fault, CASE, backend)
    expected = row_of(backend).id in FAULTS[fault]
    assert (said is not None) == expected, said


@pytest.mark.xpnn_rows(dtypes="float32")
def test_swapped_vjp_entries_are_caught(backend):
    said = complaint(swapped_entries, SQUARE, backend)
    assert said is not None
    assert "gradient 0" in said or "derivative" in said


@pytest.mark.xpnn_rows(dtypes="float32")
@pytest.mark.parametrize(("function", "case"), [(tanh, CASE), (linear, SQUARE)])
def test_right_op_passes(function, case, backend):
    assert complaint(function, case, backend) is None


@pytest.mark.xpnn_rows(only="numpy", dtypes="float64")
def test_derivative_tier_alone_catches_a_wrong_derivative(backend):
    with pytest.raises(CheckError, match="the derivative with respect to argument 0 is wrong"):
        checks.check_derivative(CASE, backend, op=Op(wrong_derivative))


@pytest.mark.xpnn_rows(only="numpy")
def test_exact_tier_catches_the_smallest_difference(backend, dtype):
    def add(*arrays):
        total = arrays[0]
        for array in arrays[1:]:
            total = total + array
        off = total * (1.0 + 2.0 ** (-23 if dtype == "float32" else -52))
        return off, lambda dy: tuple(dy for _ in arrays)

    case = Case("add", (Reals((5, 3)), Reals((5, 3))), exact=True)
    with pytest.raises(CheckError, match="differs from NumPy's exact result"):
        checks.check_exact(case, backend, dtype, op=Op(add))
