"""Every op on every row: the exact, rounding and derivative tiers; discipline is checked in each call."""

import contextlib

import pytest

from xpnn import dispatch
from xpnn.backend import host
from xpnn.dispatch import OPS
from xpnn.testing import checks
from xpnn.testing.cases import CASES

ALL = [pytest.param(case, id=case.id) for case in CASES]
EXACT = [pytest.param(case, id=case.id) for case in CASES if case.exact]
DIFFERENTIABLE = [pytest.param(case, id=case.id) for case in CASES if case.differentiable]

WITHOUT_DERIVATIVE = {
    ("random_mask", "padding_mask"): {"everything"},
    ("mse", "mae", "huber", "kl_divergence", "categorical_hinge", "cosine_distance"): {"weight"},
    ("ctc",): {"weight"},
    ("cross_entropy", "cross_entropy_from_probabilities", "nll", "hinge"): {"labels", "weight"},
    ("binary_cross_entropy", "binary_cross_entropy_from_probabilities"): {"labels", "weight"},
    ("dice", "binary_focal", "focal"): {"labels", "weight"},
    ("triplet", "triplet_mining", "info_nce", "info_nce_of_views"): {"weight"},
    ("rotary",): {"cos", "sin"},
    ("adam", "amsgrad", "lion", "add_weight_decay"): {"decay"},
    ("lbfgs_length",): {"last_squares"},
    ("lbfgs_remember",): {"curvature"},
}
"""Ops -> their floating-point arguments for which the vjp gives None."""


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


def test_only_these_have_no_derivative():
    """None as a gradient is the same on every row, so that no tier would notice one that was forgotten."""
    # A case may be at a kink; an op without a derivative has no other cases.
    without = {case.op: {"everything"} for case in CASES if case.op not in {d.values[0].op for d in DIFFERENTIABLE}}
    for case in CASES:
        if not case.differentiable:
            continue
        arguments = case.draw()
        names = list(OPS[case.op].signature.parameters)
        gradients = checks.run(case, host(), "float64", arguments).gradients
        for position, gradient in zip(checks.gradient_positions(arguments), gradients, strict=False):
            if gradient is None and arguments[position] is not None and arguments[position].dtype == "float64":
                without.setdefault(case.op, set()).add(names[min(position, len(names) - 1)])
    assert without == {op: names for some, names in WITHOUT_DERIVATIVE.items() for op in some}


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


@pytest.mark.xpnn_rows(only="jax", dtypes="float32")
@pytest.mark.parametrize("case", ALL)
def test_no_value_decides_the_flow(case, backend, dtype):
    """Under jit there are no values: an op that looks at one cannot be traced."""
    import jax

    arguments = case.draw()
    arrays = [position for position, argument in enumerate(arguments) if hasattr(argument, "shape")]

    def forward_and_backward(*traced):
        mixed = list(arguments)
        for position, array in zip(arrays, traced, strict=True):
            mixed[position] = array
        value, vjp = OPS[case.op](*mixed, **case.options)
        if not case.differentiable:
            return value, ()
        return value, vjp(jax.tree.map(jax.numpy.ones_like, value))

    kinds = {"f": dtype, "b": "bool"}
    given = [backend.asarray(arguments[p], kinds.get(arguments[p].dtype.kind, "int64")) for p in arrays]
    value, _ = jax.eval_shape(forward_and_backward, *given)
    assert all(part.dtype in (backend.dtype(dtype), bool) for part in jax.tree.leaves(value))
