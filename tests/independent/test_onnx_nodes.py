"""The ONNX project's node test cases: xpnn's ops give the outputs that ONNX expects.

The installed package `onnx` makes the cases; `onnx_mapping` says each in terms of xpnn, and `onnx_unclaimed` lists by
name those that xpnn does not do. All run in float32, the dtype of the cases. How many there were of each kind stands at
the end of the run. (JAX is left out: it would compile every shape, and the matrix holds it to NumPy's results.)
"""

import math
from typing import NamedTuple

import numpy as np
import pytest

from xpnn.backend import host

from .onnx_cases import NodeCase, UnclaimedError, collect
from .onnx_mapping import answer
from .onnx_unclaimed import COMPLETE_UP_TO, UNCLAIMED, UNCLAIMED_OUTPUTS

OP_TYPES = (
    "Adagrad",
    "Adam",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "GRU",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LogSoftmax",
    "MaxPool",
    "Momentum",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RNN",
    "RotaryEmbedding",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
)

EPS = 2.0**-23

FOUR_DIGITS = ("test_averagepool_2d_ceil_last_window_starts_on_pad",)
"""Cases whose inputs and expected outputs are rounded to four digits behind the point."""

REASONS = {name: reason for reason, names in UNCLAIMED.items() for name in names}


class Onnx(NamedTuple):
    """The cases of `OP_TYPES` by name, and the version of onnx that they are from: major, minor."""

    cases: dict
    version: tuple


@pytest.fixture(scope="module")
def onnx():
    # Here and not where the module is loaded: making the cases takes some seconds.
    cases, version = collect(OP_TYPES)
    return Onnx(cases, tuple(map(int, version.split(".")[:2])))


def caller(backend):
    """A function that runs an op, or anything else that gives (value, vjp), on the backend: host in, host out."""

    def call(function, *arguments, **settings):
        places = [i for i, argument in enumerate(arguments) if isinstance(argument, np.ndarray)]
        arrays = [backend.asarray(arguments[i], arguments[i].dtype.name) for i in places]

        def with_arrays(*given):
            mixed = list(arguments)
            for place, array in zip(places, given, strict=True):
                mixed[place] = array
            return function(*mixed, **settings)

        with backend.context(), backend.discipline():
            value, _ = backend.evaluate(with_arrays, *arrays)
        return tuple(map(backend.to_host, value)) if isinstance(value, tuple) else backend.to_host(value)

    return call


def accepted(case, wanted, terms):
    """How far a result may be from what ONNX expects, which was computed in float32 too, in another order.

    Rounding errors of a sum of n terms behave like a random walk, and grow with the root of n (Higham and Mary, "A new
    approach to probabilistic rounding error analysis", SIAM Journal on Scientific Computing 41, 2019). To that come
    those of a few functions. The largest error that was seen is 2.4 EPS.
    """
    if case.name in FOUR_DIGITS:
        return 1e-4
    return 2.0 * (math.sqrt(terms) + 4.0) * EPS * np.max(np.abs(wanted), initial=0.0)


def check(case, call):
    """(what is wrong with xpnn's outputs, in words; names of outputs that it does not give). Raises UnclaimedError."""
    outputs, terms = answer(case, call)
    wrong, missing = [], []
    for name, wanted in case.expected.items():
        got = outputs.get(name)
        if got is None:
            missing.append(name)
            continue
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            wrong.append(f"{case.name}: {name} is {got.dtype} {got.shape}, expected {wanted.dtype} {wanted.shape}")
            continue
        error = np.max(np.abs(got.astype(np.float64) - wanted), initial=0.0)
        limit = accepted(case, wanted, terms)
        if not error <= limit:
            wrong.append(f"{case.name}: {name} is off by {error:.3g}; accepted are {limit:.3g}")
    wrong += [f"{case.name}: {name} is missing" for name in missing if (case.op_type, name) not in UNCLAIMED_OUTPUTS]
    return wrong, missing


@pytest.mark.parametrize("op_type", OP_TYPES)
@pytest.mark.xpnn_rows(only=("numpy", "numpy-compiled", "numpy-fast", "cupy", "strict", "torch"), dtypes="float32")
def test_outputs_are_those_of_onnx(op_type, onnx, backend, record_property):
    call = caller(backend)
    counts = {"checked": 0, "in part": 0, "not claimed": 0, "new": 0}
    problems, new = [], []
    for case in onnx.cases.values():
        if case.op_type != op_type:
            continue
        try:
            wrong, missing = check(case, call)
        except UnclaimedError as reason:
            if case.name in REASONS:
                counts["not claimed"] += 1
            else:
                counts["new"] += 1
                new.append(f"{case.name}: {reason}")
            continue
        problems += wrong
        counts["in part" if missing else "checked"] += 1
    record_property("onnx", {"op_type": op_type, "counts": counts, "new": new})
    assert not problems, "\n".join(problems)
    assert counts["checked"] + counts["in part"] > 0, f"onnx has no case of {op_type}, or none is claimed"


def test_every_case_is_checked_or_listed_with_its_reason(onnx):
    call = caller(host())
    refused = {}
    for case in onnx.cases.values():
        try:
            check(case, call)
        except UnclaimedError as reason:
            refused[case.name] = str(reason)
    listed = {name: reason for name, reason in REASONS.items() if name in onnx.cases}
    if onnx.version > COMPLETE_UP_TO:  # new cases: counted and named at the end of the run
        refused = {name: reason for name, reason in refused.items() if name in listed}
    if onnx.version == COMPLETE_UP_TO:
        listed = REASONS
    assert refused == listed


def test_what_is_listed_as_not_given_is_not_given(onnx):
    call = caller(host())
    missing = set()
    for case in onnx.cases.values():
        if case.name not in REASONS:
            missing |= {(case.op_type, name) for name in check(case, call)[1]}
    assert missing == set(UNCLAIMED_OUTPUTS)


@pytest.mark.parametrize("op_type", OP_TYPES)
def test_a_result_that_is_slightly_wrong_is_found(op_type, onnx):
    # So the comparison compares something, in each case: one part in a thousand shows.
    right = caller(host())

    def call(*arguments, **settings):
        value = right(*arguments, **settings)
        wrong = tuple(part * part.dtype.type(1.001) for part in value) if isinstance(value, tuple) else value * 1.001
        return wrong if isinstance(value, tuple) else wrong.astype(value.dtype)

    cases = [case for case in onnx.cases.values() if case.op_type == op_type and case.name not in REASONS]
    assert cases
    assert all(check(case, call)[0] for case in cases if case.name not in FOUR_DIGITS)


def test_what_a_mapping_does_not_know_is_refused():
    from onnx import helper

    x = np.ones((1, 3), dtype=np.float32)
    node = helper.make_node("Softmax", ["x"], ["y"], temperature=2.0)
    with pytest.raises(UnclaimedError, match="temperature"):
        check(NodeCase("with_an_attribute", node, [x], [x], ["output"]), caller(host()))
    node = helper.make_node("Softmax", ["x", "mask"], ["y"])
    with pytest.raises(UnclaimedError, match="input 1"):
        check(NodeCase("with_an_input", node, [x, x], [x], ["output"]), caller(host()))
