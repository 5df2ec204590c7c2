"""The NumPy backend's own bodies of ops against the generic bodies, value and gradients, small and large.

    python -m pytest benchmarks/ops.py [-k "adam and large"] [--benchmark-max-time=0.1]

Each op is recorded with its vjp, as a compiled step does it, and its program is timed: `fast` with native kernels,
`compiled` with NumPy's functions, `generic` from the generic body with NumPy's functions. `eager` is the op called as
it is. The arguments are those of the test matrix: each op's first case, and for `linear` one with each activation; for
the large size their axes are lengthened until the largest array has about a million numbers. No time is asserted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

import xpnn
from xpnn.dispatch import OPS, without_overrides
from xpnn.testing.cases import CASES
from xpnn.testing.cases.case import ARRAY_SPECS, Case, Reals, Values
from xpnn_backends import fast
from xpnn_backends.compiled_step import RecordedCall

LARGE = 2**20
"""Numbers in the largest argument of a large call."""

NUMPY = xpnn.get_backend("numpy")
_PACK_SHAPES = ((784, 512), (512,), (512, 512), (512,), (512, 10), (10,))


def plain_cases() -> Iterator[Case]:
    """For each op with an override: its first case, and the first with each activation."""
    seen = set()
    for case in CASES:
        key = (case.op, case.options.get("activation"))
        if case.op in NUMPY.own_ops() and key not in seen:
            seen.add(key)
            yield case


def enlarged(case: Case) -> Case | None:
    """The case with longer axes, equal ones still equal; None if its arguments have fixed values."""
    if case.op == "pack":  # whose options tell the lengths
        sizes = [math.prod(shape) for shape in _PACK_SHAPES]
        starts = tuple(sum(sizes[:index]) for index in range(len(sizes)))
        options = {"starts": starts, "size": sum(sizes)}
        return dataclasses.replace(case, arguments=tuple(map(Reals, _PACK_SHAPES)), options=options)
    if any(isinstance(argument, Values) for argument in case.arguments):
        return None
    shapes = [argument.shape for argument in case.arguments if isinstance(argument, ARRAY_SPECS)]
    largest = max(shapes, key=math.prod)
    factor = int((LARGE / math.prod(largest)) ** (1 / len(largest)))
    arguments = tuple(
        dataclasses.replace(argument, shape=tuple(length * factor for length in argument.shape))
        if isinstance(argument, ARRAY_SPECS)
        else argument
        for argument in case.arguments
    )
    return dataclasses.replace(case, arguments=arguments)


def parameters() -> Iterator[Any]:
    """(form, case, group) for each op, size and form."""
    forms = ["eager", "generic", "compiled", *(["fast"] if fast.why_not() is None else [])]
    for case in plain_cases():
        for size, sized in (("small", case), ("large", enlarged(case))):
            if sized is None:
                continue
            group = "-".join(filter(None, [case.op, case.options.get("activation"), size]))
            for form in forms:
                yield pytest.param(form, sized, group, id=f"{group}-{form}")


@pytest.mark.parametrize(("form", "case", "group"), list(parameters()))
def test_op(benchmark: Any, form: str, case: Case, group: str) -> None:
    """Forward and vjp; an update of an optimizer that takes donated arrays has no vjp."""
    xp = NUMPY.xp
    arguments = [
        xp.astype(argument, xp.float32) if getattr(argument, "dtype", None) == xp.float64 else argument
        for argument in case.draw()
    ]
    donates = "donate" in OPS[case.op].signature.parameters
    options = {**case.options, **({"donate": True} if donates else {})}
    value, _ = OPS[case.op].generic(*arguments, **case.options)
    many = isinstance(value, tuple)
    cotangents = tuple(map(xp.ones_like, value)) if many else (xp.ones_like(value),)
    positions = [position for position, argument in enumerate(arguments) if hasattr(argument, "shape")]

    def call(*arrays: Any) -> Any:
        mixed = list(arguments)
        for position, array in zip(positions, arrays, strict=False):
            mixed[position] = array
        given = arrays[len(positions) :]
        value, vjp = OPS[case.op](*mixed, **options)
        return (value,) if donates or not case.differentiable else (value, vjp(given if many else given[0]))

    arrays = (*(arguments[position] for position in positions), *cotangents)
    benchmark.group = group
    if form == "eager":
        benchmark(call, *arrays)
    elif form == "generic":
        with without_overrides():
            program = RecordedCall(call, arrays, native=False).program
        benchmark(program.run, 0)
    else:
        benchmark(RecordedCall(call, arrays, native=form == "fast").program.run, 0)
