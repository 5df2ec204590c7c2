"""The tiers of the matrix, as functions: each checks one case on one backend and dtype.

Discipline is checked in every call: results of the right type, shape, dtype and device; arguments not modified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xpnn import dispatch, random
from xpnn.backend import Backend, host
from xpnn.dispatch import OPS, Array, Op, Vjp
from xpnn.errors import CheckError
from xpnn.testing.cases.case import Case

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "tf32": 2.0**-10, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance from 1 to the next number. A number that is rounded changes by half of that at most, relatively."""

SMALLEST = {"bfloat16": 2.0**-133, "float16": 2.0**-24}
"""The smallest positive number: what is smaller than the normal ones is rounded to multiples of it."""

FLOAT32_RESULTS = {"batch_norm": (1, 2)}
"""Op -> the numbers of the results that are float32 where the arguments are in half precision: statistics."""

FLOAT32_GRADIENTS = {"linear": (1, 2), "linear_chain": (1, 2, 3, 4, 5, 6)}
"""Op -> the numbers of the gradients that may be float32 there: those of parameters, which optimizers want so."""


class Outcome(NamedTuple):
    """What an op gave for a case, on the host: its value(s), and one gradient per argument (None where it has none)."""

    values: tuple[Any, ...]
    gradients: tuple[Any, ...]


def gradient_positions(arguments: Sequence[Any]) -> list[int]:
    """The positions of the arguments for which a vjp has an entry: arrays, and None in the place of one."""
    return [position for position, given in enumerate(arguments) if given is None or hasattr(given, "shape")]


def run(
    case: Case,
    backend: Backend,
    dtype: str,
    arguments: list[Any],
    cotangent_seed: int = 99,
    op: Op | None = None,
    exact: bool = False,
    rounding: Callable[[Array], Array] = lambda cotangent: cotangent,
) -> Outcome:
    """Call the case's op (or `op`) on a backend, forward and backward, and bring the results to the host.

    The cotangents are random numbers, as `rounding` gives them back.

    Raises CheckError if a result has the wrong type, shape, dtype or device, or an argument was modified.
    """
    op = op or OPS[case.op]
    on_device = [_to_device(argument, backend, dtype) for argument in arguments]
    before = [backend.to_host(a).copy() if backend.owns(a) else a for a in on_device]
    given = [position for position, argument in enumerate(on_device) if backend.owns(argument)]
    arrays = [on_device[position] for position in given]

    def call(*stand_ins: Array) -> tuple[Any, Vjp]:
        mixed = list(on_device)
        for position, array in zip(given, stand_ins, strict=True):
            mixed[position] = array
        return op(*mixed, **case.options)

    with backend.context(), backend.discipline():
        value, vjp = backend.evaluate(call, *arrays)
    values = value if isinstance(value, tuple) else (value,)
    for index, part in enumerate(values):
        check_array(f"{case.id}: value {index}", part, backend, None)
        wide = dtype in backend.half_dtypes and index in FLOAT32_RESULTS.get(case.op, ())
        if part.dtype not in (backend.dtype("float32" if wide else dtype), backend.xp.bool):
            raise CheckError(f"{case.id}: value {index} has dtype {part.dtype}; the arguments are {dtype}")
    gradients: tuple[Any, ...] = ()
    if case.differentiable:
        cotangents = tuple(
            backend.asarray(rounding(_cotangent(part.shape, cotangent_seed + index, exact)), dtype)
            for index, part in enumerate(values)
        )
        kept = [backend.to_host(cotangent).copy() for cotangent in cotangents]
        with backend.context(), backend.discipline():
            gradients = vjp(cotangents if isinstance(value, tuple) else cotangents[0])
        if not all(same_bits(backend.to_host(c), k) for c, k in zip(cotangents, kept, strict=True)):
            raise CheckError(f"{case.id}: the vjp modified the cotangent that it was given")
        places = gradient_positions(arguments)
        if len(gradients) < len(places):
            raise CheckError(f"{case.id}: the vjp gave {len(gradients)} gradients for {len(places)} array arguments")
        for index, (position, gradient) in enumerate(zip(places, gradients, strict=False)):
            if gradient is not None:
                like = on_device[position]
                if dtype in backend.half_dtypes and index in FLOAT32_GRADIENTS.get(case.op, ()):
                    like = backend.xp.astype(like, gradient.dtype)
                check_array(f"{case.id}: gradient {index}", gradient, backend, like)
    for position, (argument, copy) in enumerate(zip(on_device, before, strict=True)):
        if backend.owns(argument) and not same_bits(backend.to_host(argument), copy):
            raise CheckError(f"{case.id}: argument {position} was modified")
    return Outcome(
        tuple(backend.to_host(part) for part in values),
        tuple(None if g is None else backend.to_host(g) for g in gradients),
    )


def check_exact(case: Case, backend: Backend, dtype: str, op: Op | None = None) -> None:
    """On small dyadic numbers, the results are those of NumPy in float64, bit for bit. Raises CheckError if not."""
    arguments = case.draw(exact=True)
    got = run(case, backend, dtype, arguments, op=op, exact=True)
    want = run(case, host(), "float64", arguments, exact=True)
    for label, mine, reference in _pairs(got, want):
        xp = host().xp
        if not same_bits(xp.astype(mine, xp.float64), xp.astype(reference, xp.float64)):
            raise CheckError(
                f"{case.id} on {backend.spec}, {dtype}: {label} differs from NumPy's exact result by "
                f"{xp.max(xp.abs(mine - reference))}"
            )


def check_rounding(case: Case, backend: Backend, dtype: str, op: Op | None = None) -> float:
    """The worst error against float64 on NumPy, generic bodies, in units of eps relative to the largest result.

    Raises CheckError if it is larger than the case's bound.
    """
    arguments = [_rounded(argument, dtype) for argument in case.draw()]
    got = run(case, backend, dtype, arguments, op=op)
    with dispatch.without_overrides():
        want = run(case, host(), "float64", arguments)
    worst = 0.0
    for label, mine, reference in _pairs(got, want):
        error = relative_error(mine, reference) / EPS[dtype]
        worst = max(worst, error)
        if not error <= case.bound:
            raise CheckError(
                f"{case.id} on {backend.spec}, {dtype}: {label} is off by {error:.1f} eps, more than the bound of "
                f"{case.bound:.1f}"
            )
    return worst


def check_half_precision(case: Case, backend: Backend, dtype: str, op: Op | None = None) -> float:
    """The worst error in float16 or bfloat16 against float64 on NumPy, in units of eps, relative to the largest result.

    Arguments and cotangents are numbers of that dtype, so that both sides compute from the same ones. An op computes
    in float32, with the errors that the case allows there, and rounds each result once, by at most half an eps: the
    bound is eps(dtype) / 2 + bound * eps(float32), and half of the smallest number where the results are that small.
    A body of the backend's own may round what it keeps for the backward pass too: it has 2 eps(dtype) instead.

    Raises CheckError if the error is larger.
    """

    def rounding(x: Any) -> Any:
        return _rounded(x, dtype, backend)

    arguments = [rounding(argument) for argument in case.draw()]
    got = run(case, backend, dtype, arguments, op=op, rounding=rounding)
    with dispatch.without_overrides():
        want = run(case, host(), "float64", arguments, rounding=rounding)
    body = backend.overrides.get(case.op) if dispatch.overrides_active() else None
    roundings = 2.0 if getattr(body, "handles_half", False) else 0.5
    # What each map of a chain gives is rounded before the next one reads it.
    roundings *= len(case.options.get("activations", (None,)))
    bound = roundings + case.bound * EPS["float32"] / EPS[dtype]
    return _check_errors(f"{case.id} on {backend.spec}", got, want, dtype, bound)


def check_tf32(case: Case, backend: Backend, products: int = 1) -> float:
    """The worst error of float32 arrays in the precision "tf32" against float64, in units of its eps.

    Each factor of a product may be cut to 11 significant bits, by up to an eps; the products that are added up may be
    as many times as large as their sum as there are of them. Sums are float32. The errors of `products` that follow
    each other add up.

    Raises CheckError if the error is larger.
    """
    arguments = [_rounded(argument, "float32") for argument in case.draw()]
    with backend.computing("tf32"):
        got = run(case, backend, "float32", arguments)
    with dispatch.without_overrides():
        want = run(case, host(), "float64", arguments)
    bound = 2.0 * case.terms * products + case.bound * EPS["float32"] / EPS["tf32"]
    return _check_errors(f"{case.id} on {backend.spec}", got, want, "tf32", bound)


def _check_errors(what: str, got: Outcome, want: Outcome, precision: str, bound: float) -> float:
    """The worst error in units of the precision's eps. Raises CheckError if it is larger than `bound`."""
    xp = host().xp
    worst = 0.0
    for label, mine, reference in _pairs(got, want):
        error = relative_error(mine, reference) / EPS[precision]
        worst = max(worst, error)
        largest = float(xp.max(xp.abs(reference))) if 0 not in reference.shape else 1.0
        limit = bound + 0.5 * SMALLEST.get(precision, 0.0) / max(largest, 1e-30) / EPS[precision]
        if not error <= limit:
            raise CheckError(
                f"{what}, {precision}: {label} is off by {error:.2f} eps, more than the bound of {limit:.2f}"
            )
    return worst


def check_derivative(case: Case, backend: Backend, op: Op | None = None, tolerance: float = 1e-7) -> float:
    """In float64: <cotangent, directional difference quotient> = <vjp(cotangent), direction>, for each argument.

    The quotient is the five-point one, (f(-2h) - 8 f(-h) + 8 f(h) - f(2h)) / 12h with h = 1e-3, error O(h^4).

    Returns the worst relative difference. Raises CheckError if it is larger than `tolerance`.
    """
    xp = host().xp
    arguments = case.draw()
    outcome = run(case, backend, "float64", arguments, op=op)
    step = 1e-3
    worst = 0.0
    for order, position in enumerate(gradient_positions(arguments)):
        gradient = outcome.gradients[order]
        if gradient is None or arguments[position].dtype != xp.float64:
            continue
        for trial in range(3):
            direction = _cotangent(arguments[position].shape, 1000 + 10 * order + trial, False)
            total = 0.0
            size = 0.0
            for factor, multiple in ((1.0, -2), (-8.0, -1), (8.0, 1), (-1.0, 2)):
                shifted = list(arguments)
                shifted[position] = arguments[position] + (multiple * step) * direction
                values = run(case, backend, "float64", shifted, op=op).values
                for index, value in enumerate(values):
                    product = _cotangent(value.shape, 99 + index, False) * value
                    total += factor * float(xp.sum(product))
                    size += float(xp.sum(xp.abs(product)))
            quotient = total / (12.0 * step)
            products = gradient * direction
            claimed = float(xp.sum(products))
            scale = max(abs(quotient), float(xp.sum(xp.abs(products))), 1e-3, 1e-5 * size)
            difference = abs(quotient - claimed) / scale
            worst = max(worst, difference)
            if not difference <= tolerance:
                raise CheckError(
                    f"{case.id} on {backend.spec}: the derivative with respect to argument {position} is wrong: the "
                    f"vjp gives {claimed:.10g} along a random direction, the difference quotient {quotient:.10g}"
                )
    return worst


def relative_error(got: Array, want: Array) -> float:
    """max |got - want| / max |want|, on the host in float64; infinite if one is not finite where the other is."""
    xp = host().xp
    got, want = xp.astype(got, xp.float64), xp.astype(want, xp.float64)
    if got.shape != want.shape:
        raise CheckError(f"the results have shapes {got.shape} and {want.shape}")
    if math.prod(got.shape) == 0:
        return 0.0
    finite = xp.isfinite(want)
    if not bool(xp.all(xp.isfinite(got) == finite)):
        return float("inf")
    difference = xp.where(finite, xp.abs(xp.where(finite, got - want, 0.0)), 0.0)
    scale = float(xp.max(xp.where(finite, xp.abs(want), 0.0)))
    return float(xp.max(difference)) / max(scale, 1e-30)


def _pairs(got: Outcome, want: Outcome) -> list[tuple[str, Any, Any]]:
    pairs = [(f"value {i}", a, b) for i, (a, b) in enumerate(zip(got.values, want.values, strict=True))]
    if len(got.gradients) != len(want.gradients):
        raise CheckError(f"the vjp gave {len(got.gradients)} gradients; {len(want.gradients)} were wanted")
    for index, (mine, reference) in enumerate(zip(got.gradients, want.gradients, strict=True)):
        if (mine is None) != (reference is None):
            raise CheckError(f"gradient {index} is None on one side only")
        if mine is not None:
            pairs.append((f"gradient {index}", mine, reference))
    return pairs


def _to_device(argument: Any, backend: Backend, dtype: str) -> Any:
    if not hasattr(argument, "shape"):
        return argument
    return backend.asarray(argument, {"f": dtype, "b": "bool"}.get(argument.dtype.kind, "int64"))


def _rounded(argument: Any, dtype: str, backend: Backend | None = None) -> Any:
    """A host array of floats, each the nearest number of `dtype`, by that backend; anything else as it is."""
    if not hasattr(argument, "shape") or argument.dtype.kind != "f":
        return argument
    backend = backend or host()
    return host().xp.astype(backend.to_host(backend.asarray(argument, dtype)), host().xp.float64)


def _cotangent(shape: tuple[int, ...], seed: int, exact: bool) -> Array:
    xp = host().xp
    values = 2.0 * random.uniform(seed, random.stream(random.TESTING, 1), 0, tuple(shape)) - 1.0
    return xp.round(values * 4.0) / 2.0 if exact else values


def same_bits(a: Array, b: Array) -> bool:
    """True if two host arrays hold the same numbers (NaN equals NaN)."""
    xp = host().xp
    return a.shape == b.shape and bool(xp.all((a == b) | ((a != a) & (b != b))))


def check_array(label: str, x: Any, backend: Backend, like: Any) -> None:
    """Raise CheckError unless x is an array of the backend, on its device, of the shape and dtype of `like`."""
    if not backend.owns(x):
        raise CheckError(f"{label} is a {type(x).__module__}.{type(x).__qualname__}, not an array of {backend.name}")
    if backend.device is not None and not backend.one_device and dispatch.device(x) != backend.device:
        raise CheckError(f"{label} lies on {dispatch.device(x)}, the arguments on {backend.device}")
    if like is not None and (x.shape != like.shape or x.dtype != like.dtype):
        raise CheckError(
            f"{label} has shape {tuple(x.shape)} and dtype {x.dtype}; its argument {tuple(like.shape)} and {like.dtype}"
        )
