"""Every op on every row: the exact, rounding and derivative tiers; discipline is checked in each call."""

import contextlib

import pytest

from xpnn import dispatch
from xpnn.dispatch import OPS
from xpnn.testing import checks
from xpnn.testing.cases import CASES

ALL = [pytest.param(case, id=case.id) for case in CASES]
EXACT = [pytest.param(case, id=case.id) for case in CASES if case.exact]
DIFFERENTIABLE = [pytest.param(case, id=case.id) for case in CASES if case.differentiable]


def bodies_of(case, backend):
    """Contexts to run a case in: as it is, and with the generic body where the backend has one of its own."""
    yield contextlib.nullcontext()
    if case.op in backend.overrides:
        yield dispatch.without_overrides()


def test_every_op_has_a_case():
    assert set(OPS) == {case.op for case in CASES}


def test_case_ids_are_unique():
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("case", EXACT)
def test_exact(case, backend, dtype):
    for bodies in bodies_of(case, backend):
        with bodies:
            checks.check_exact(case, backend, dtype)


@pytest.mark.parametrize("case", ALL)
def test_rounding(case, backend, dtype):
    for bodies in bodies_of(case, backend):
        with bodies:
            checks.check_rounding(case, backend, dtype)


@pytest.mark.xpnn_rows(dtypes="float64")
@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_derivative(case, backend, dtype):
    for bodies in bodies_of(case, backend):
        with bodies:
            checks.check_derivative(case, backend)
