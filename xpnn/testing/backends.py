"""Does a layer give the same values and gradients on every backend?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xpnn import dispatch
from xpnn.backend import Backend, get_backend, host, why_not
from xpnn.errors import CheckError
from xpnn.layers.layer import Layer, Shape
from xpnn.testing.checks import EPS, relative_error
from xpnn.testing.gradients import check_gradients
from xpnn.testing.rows import ROWS, Row
from xpnn.testing.trial import LayerOutcome, Trial, evaluate, prepare

_TOLERANCE = 1000.0
"""Accepted rounding, in units of eps relative to the largest value: 1.2e-4 in float32, 2.2e-13 in float64."""


class RowReport(NamedTuple):
    """What one row gave in one dtype.

    Attributes:
        row: its name.
        dtype: "float32" or "float64".
        errors: "output", "input" or parameter name -> error in units of eps, relative to the largest value there.
        reason: why the row did not run, or None.
    """

    row: str
    dtype: str
    errors: dict[str, float]
    reason: str | None = None


class BackendReport(NamedTuple):
    """How well the backends agree with NumPy in float64. Prints as a table."""

    layer: str
    rows: tuple[RowReport, ...]

    def __str__(self) -> str:
        lines = [f"{self.layer}: errors against NumPy in float64, in units of eps"]
        for report in self.rows:
            label = f"  {report.row:15} {report.dtype:8} "
            if report.reason is not None:
                lines.append(f"{label}not run: {report.reason}")
            else:
                lines.append(label + "  ".join(f"{name} {error:.1f}" for name, error in report.errors.items()))
        return "\n".join(lines)


def check_backends(
    layer: Layer,
    input_shape: Shape = (4, 3),
    backends: str | Sequence[str] = "all",
    *,
    dtypes: Sequence[str] = ("float64", "float32"),
    training: bool = True,
    seed: int = 0,
    tolerance: float = _TOLERANCE,
) -> BackendReport:
    """Check that a layer gives the same output and gradients on every backend.

    Args:
        layer: any layer, your own too.
        input_shape: of a whole input, the batch included; a tuple of shapes for a layer that takes several.
        backends: "all" for all rows of the matrix, or names of rows and backend specs, as in ["numpy", "cupy:1"].
        dtypes: which dtypes to run.
        training: whether dropout acts.
        seed: of the random input, parameters and cotangent.
        tolerance: the largest accepted error, in units of eps relative to the largest value of the same array.

    Returns:
        A table of the errors; a backend that cannot run here is listed with its reason.

    Raises:
        CheckError: a value or gradient differs, a result has the wrong dtype, shape or device, or the layer does
            what not every backend can do. Names the row.
        BackendError: a name in `backends` is unknown.
    """
    reports = []
    for row in _rows(backends):
        for dtype in dtypes:
            if dtype not in row.dtypes:
                continue
            reason = row.reason
            errors: dict[str, float] = {}
            if reason is None:
                trial = prepare(layer, input_shape, training, seed)
                errors = _check_row(trial, row.backend(), dtype, tolerance, row.id)
            reports.append(RowReport(row.id, dtype, errors, reason))
    return BackendReport(repr(layer), tuple(reports))


def check_layer(
    layer: Layer,
    input_shape: Shape = (4, 3),
    backend: str | Backend = "numpy",
    dtype: str = "float64",
    *,
    training: bool = True,
    seed: int = 0,
    tolerance: float = _TOLERANCE,
) -> RowReport:
    """Check a layer on one row of the matrix; for tests with the fixtures `backend` and `dtype`.

    It must give what NumPy gives in float64, within rounding; keep dtype, shape and device; modify nothing; call
    nothing outside the standard (on the strict rows); and take a batch of no samples. In float64, its gradients are
    compared with central differences too.

    Args, Raises: as for `check_backends`.
    """
    bound = get_backend(backend)
    errors = _check_row(prepare(layer, input_shape, training, seed), bound, dtype, tolerance, bound.spec)
    empty = prepare(layer, _without_samples(input_shape), training, seed)
    _evaluate(empty, bound, dtype, f"{bound.spec}, {dtype}, with an empty batch")
    if dtype == "float64":
        check_gradients(layer, input_shape, training=training, seed=seed)
    return RowReport(bound.spec, dtype, errors)


def _without_samples(input_shape: Shape) -> Shape:
    """The shape with a batch of 0; of several inputs, all of them."""
    if input_shape and all(isinstance(part, (tuple, list)) for part in input_shape):
        return tuple(map(_without_samples, input_shape))  # type: ignore[arg-type]
    return (0, *tuple(input_shape)[1:])


def _rows(backends: str | Sequence[str]) -> list[Row]:
    if backends == "all":
        return list(ROWS)
    names = [backends] if isinstance(backends, str) else list(backends)
    known = {row.id: row for row in ROWS}
    dtypes = {row.spec: row.dtypes for row in ROWS}
    rows = []
    for name in names:
        if name not in known:
            why_not(name.partition(":")[0])  # raises if nothing has that name
        rows.append(known.get(name) or Row(name, name, "asked for by name", dtypes.get(name, ("float64", "float32"))))
    return rows


def _check_row(trial: Trial, backend: Backend, dtype: str, tolerance: float, row: str) -> dict[str, float]:
    """The errors of one row. Raises CheckError if one is larger than the tolerance."""
    trial = trial.rounded(dtype)
    got = _evaluate(trial, backend, dtype, f"{row}, {dtype}")
    with dispatch.without_overrides():
        want = evaluate(trial, host(), "float64")
    errors = {"output": relative_error(got.output, want.output) / EPS[dtype]}
    for name, gradient in got.gradients.items():
        errors[name] = relative_error(gradient, want.gradients[name]) / EPS[dtype]
    for name, error in errors.items():
        if not error <= tolerance:
            what = "output" if name == "output" else f"gradient of {name!r}"
            raise CheckError(
                f"{trial.layer!r} on {row}, {dtype}: the {what} is off by {error:.1f} eps from NumPy in float64; "
                f"accepted are {tolerance:.0f}"
            )
    return errors


def _evaluate(trial: Trial, backend: Backend, dtype: str, where: str) -> LayerOutcome:
    """`evaluate`, with any error of the library as a CheckError that names the row."""
    try:
        return evaluate(trial, backend, dtype)
    except CheckError as error:
        raise CheckError(f"on {where}: {error}") from None
    except Exception as error:  # each library refuses what it cannot do in its own way
        raise CheckError(f"{trial.layer!r} on {where}: {type(error).__name__}: {error}") from error
