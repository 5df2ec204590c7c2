"""Every differentiable op in half precision and in tf32, on the rows that have them, against float64.

The bounds are derived in `checks.check_half_precision` and `checks.check_tf32`.
"""

import contextlib

import pytest

from xpnn import dispatch
from xpnn.dispatch import OPS
from xpnn.errors import CheckError
from xpnn.testing import checks
from xpnn.testing.cases import CASES

DIFFERENTIABLE = [pytest.param(case, id=case.id) for case in CASES if case.differentiable]
ONE_OF_EACH = [
    pytest.param(case, id=case.id)
    for case in {case.op: case for case in reversed(CASES) if case.differentiable}.values()
]
PRODUCTS = {"orthogonalize": 15}
"""Op -> how many products of matrices follow each other: five steps of three, where the others have one."""
HALF = ["bfloat16", "float16"]


def bodies_of(case, backend):
    """Contexts to run a case in: as it is, and with the generic body where the backend has one of its own."""
    yield contextlib.nullcontext()
    if case.op in backend.overrides:
        yield dispatch.without_overrides()


@pytest.mark.xpnn_rows(only=["torch", "cupy", "cupy-graph"], dtypes="float32")
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_half_precision(case, precision, backend, dtype):
    for bodies in bodies_of(case, backend):
        with bodies:
            checks.check_half_precision(case, backend, precision)


@pytest.mark.xpnn_rows(only="jax", dtypes="float32")
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_half_precision_without_views(case, precision, backend, dtype):
    """One case of each op: JAX compiles every function that an op calls, which takes minutes for all cases."""
    checks.check_half_precision(case, backend, precision)


@pytest.mark.xpnn_rows(only=["cupy", "cupy-graph"], dtypes="float32")
@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_tf32(case, backend, dtype):
    checks.check_tf32(case, backend, PRODUCTS.get(case.op, 1))


@pytest.mark.xpnn_rows(only=["torch", "jax", "cupy"], dtypes="float32")
@pytest.mark.parametrize("precision", HALF)
def test_the_check_finds_wrong_digits(precision, backend, dtype):
    (case,) = [case for case in CASES if case.id == "linear"]

    def six_numbers_off(*arguments, **options):
        value, vjp = OPS[case.op](*arguments, **options)
        return backend.xp.astype(value * (1.0 + 6.0 * checks.EPS[precision]), value.dtype), vjp

    with pytest.raises(CheckError, match="value 0 is off by"):
        checks.check_half_precision(case, backend, precision, op=six_numbers_off)
