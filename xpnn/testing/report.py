"""The matrix as a table: every op on every backend and dtype, with its worst error in units of eps."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpnn import dispatch
from xpnn.backend import Backend
from xpnn.errors import ConfigError
from xpnn.testing import checks
from xpnn.testing.cases import CASES, FAMILIES, Case
from xpnn.testing.rows import ROWS, Row


class Result(NamedTuple):
    """What one op gave on one row in one dtype, over all its cases.

    Attributes:
        op: the op's name.
        row: the row's id.
        dtype: "float32" or "float64".
        error: the worst error against NumPy in float64, in units of eps relative to the largest value; NaN if unknown.
        bound: the error that is accepted, in the same units.
        derivative: the worst relative difference from difference quotients; None where that is not checked (float32).
        passed: whether all tiers of all cases passed.
        message: what is wrong, or "".
    """

    op: str
    row: str
    dtype: str
    error: float
    bound: float
    derivative: float | None
    passed: bool
    message: str = ""


class RowState(NamedTuple):
    """A row of the matrix in a report: `reason` is None if it ran, else why not."""

    row: str
    version: str
    device: str
    proves: str
    reason: str | None


class MatrixReport(NamedTuple):
    """All results, and the state of all rows that were asked for."""

    results: tuple[Result, ...]
    rows: tuple[RowState, ...]

    @property
    def failures(self) -> list[Result]:
        """The results that did not pass."""
        return [result for result in self.results if not result.passed]

    def missing(self, required: Iterable[str]) -> list[RowState]:
        """The rows out of `required` that did not run."""
        wanted = set(required)
        return [state for state in self.rows if state.row in wanted and state.reason is not None]


Progress = Callable[[int, int, str], None]
"""Called before each op with (number of checks done, number of all checks, what comes next)."""


def check_row_ids(row_ids: Iterable[str]) -> list[Row]:
    """The rows of these ids, in the order of the matrix. Raises ConfigError for an unknown one."""
    wanted = list(row_ids)
    known = {row.id for row in ROWS}
    unknown = [row_id for row_id in wanted if row_id not in known]
    if unknown:
        raise ConfigError(f"unknown row {', '.join(map(repr, unknown))}; known: {', '.join(row.id for row in ROWS)}")
    return [row for row in ROWS if row.id in wanted]


def run_matrix(
    row_ids: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float64", "float32"),
    progress: Progress | None = None,
    cases: Sequence[Case] = CASES,
) -> MatrixReport:
    """Check every op on these rows (None: all) and dtypes. Nothing is raised for an op that fails.

    Raises ConfigError for an unknown row.
    """
    rows = check_row_ids([row.id for row in ROWS] if row_ids is None else row_ids)
    states = []
    work: list[tuple[Row, str]] = []
    for row in rows:
        reason = row.reason
        device = row.spec.partition(":")[2] or "default"
        states.append(RowState(row.id, row.version, device, row.proves, reason))
        if reason is None:
            work += [(row, dtype) for dtype in row.dtypes if dtype in dtypes]
    by_op: dict[str, list[Case]] = {}
    for case in cases:
        by_op.setdefault(case.op, []).append(case)
    results: list[Result] = []
    total = len(work) * len(by_op)
    for row, dtype in work:
        backend = row.backend()
        for op, its_cases in by_op.items():
            if progress is not None:
                progress(len(results), total, f"{op} on {row.id}, {dtype}")
            results.append(_check_op(op, its_cases, row, backend, dtype))
    if progress is not None:
        progress(total, total, "done")
    return MatrixReport(tuple(results), tuple(states))


def _check_op(op: str, cases: Sequence[Case], row: Row, backend: Backend, dtype: str) -> Result:
    error, derivative, message = 0.0, None, ""
    for case in cases:
        try:
            error, derivative = _check_case(case, backend, dtype, error, derivative)
            if op in backend.overrides:
                with dispatch.without_overrides():
                    error, derivative = _check_case(case, backend, dtype, error, derivative)
        except Exception as problem:  # each library refuses what it cannot do in its own way
            message = message or f"{type(problem).__name__}: {problem}"
            error = math.nan
    bound = max(case.bound for case in cases)
    return Result(op, row.id, dtype, error, bound, derivative, not message, message)


def _check_case(
    case: Case, backend: Backend, dtype: str, error: float, derivative: float | None
) -> tuple[float, float | None]:
    """The larger of what is known and what this case gives: (rounding error, derivative error)."""
    if case.exact:
        checks.check_exact(case, backend, dtype)
    error = max(error, checks.check_rounding(case, backend, dtype))
    if case.differentiable and dtype == "float64":
        derivative = max(derivative or 0.0, checks.check_derivative(case, backend))
    return error, derivative


def print_report(report: MatrixReport, console: Any = None) -> None:
    """Print the matrix: every op, the families of ops, the failures, and the rows' states.

    Each op has a line, with a column for each row and dtype. Where the console is too narrow for these columns, the
    worst row of each dtype takes their place.

    Args:
        report: from `run_matrix`.
        console: a `rich.console.Console`; standard output by default.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    columns, lines = _grid(report)
    headings = [f"{row}\n{dtype}" for row, dtype in columns]
    # Each column has a line and two blanks beside its text.
    width = 5 + max(map(len, ["op", *lines])) + sum(3 + max(len(row), len(dtype)) for row, dtype in columns)
    narrow = width > console.width
    dtypes = list(dict.fromkeys(dtype for _, dtype in columns))
    if narrow:
        headings = [f"{dtype}\nworst row" for dtype in dtypes]
    table = Table(
        title="worst error of each op, in units of eps, against NumPy in float64",
        caption="a wider terminal, or --report, shows every row" if narrow else None,
    )
    table.add_column("op")
    for heading in headings:
        table.add_column(heading, justify="right")
    for op, results in lines.items():
        if narrow:
            cells = [_worst([each for each in results.values() if each.dtype == dtype]) for dtype in dtypes]
        else:
            cells = [_cell(results.get(column)) for column in columns]
        table.add_row(op, *(f"[red]{text}[/red]" if bad else text for text, bad in cells))
    if columns:
        console.print(table)
        console.print(_families_table(report))
    for result in report.failures:
        text = f"FAILED {result.op} on {result.row}, {result.dtype}: {result.message}"
        console.print(text, style="red", markup=False, soft_wrap=True)
    for state in report.rows:
        text = f"{state.row}: " + (f"NOT RUN: {state.reason}" if state.reason else f"{state.version}, {state.device}")
        console.print(text, markup=False, soft_wrap=True)
    console.print(_summary(report), markup=False)


def _families_table(report: MatrixReport) -> Any:
    """The worst error of each family of ops: a line for each row and dtype."""
    from rich.table import Table

    columns, _ = _grid(report)
    table = Table(title="worst error of each family of ops")
    table.add_column("row")
    table.add_column("dtype")
    families = by_family(report)
    for name in families:
        table.add_column(name, justify="right")
    for row, dtype in columns:
        cells = []
        for results in families.values():
            here = [each for each in results if (each.row, each.dtype) == (row, dtype)]
            failed = any(not each.passed for each in here)
            worst = max((each.error for each in here), default=math.nan)
            cells.append("[red]FAILED[/red]" if failed else f"{worst:.1f}")
        table.add_row(row, dtype, *cells)
    return table


def by_family(report: MatrixReport) -> dict[str, list[Result]]:
    """The results of each family of ops that has any, then of "all"."""
    family_of = {case.op: family for family, cases in FAMILIES.items() for case in cases}
    found: dict[str, list[Result]] = {}
    for family in [*FAMILIES, "others"]:
        results = [each for each in report.results if family_of.get(each.op, "others") == family]
        if results:
            found[family] = results
    return {**found, "all": list(report.results)}


def _worst(results: Sequence[Result]) -> tuple[str, bool]:
    """The text of one cell for several rows, and whether it tells of a failure."""
    if not results:
        return "", False
    worst = max(results, key=lambda each: (not each.passed, each.error))
    text, bad = _cell(worst)
    return f"{worst.row} {text}", bad


def _grid(report: MatrixReport) -> tuple[list[tuple[str, str]], dict[str, dict[tuple[str, str], Result]]]:
    """The columns (row, dtype), and op -> column -> result."""
    columns: list[tuple[str, str]] = []
    lines: dict[str, dict[tuple[str, str], Result]] = {}
    for result in report.results:
        column = (result.row, result.dtype)
        if column not in columns:
            columns.append(column)
        lines.setdefault(result.op, {})[column] = result
    return columns, dict(sorted(lines.items()))


def _cell(result: Result | None) -> tuple[str, bool]:
    """The text of one cell, and whether it tells of a failure."""
    if result is None:
        return "", False
    return (f"{result.error:.1f}", False) if result.passed else ("FAILED", True)


def _summary(report: MatrixReport) -> str:
    ran = sum(1 for state in report.rows if state.reason is None)
    derivatives = [result.derivative for result in report.results if result.derivative is not None]
    text = (
        f"{len(report.results)} checks of ops on {ran} rows: {len(report.results) - len(report.failures)} passed, "
        f"{len(report.failures)} failed, rows not run: {len(report.rows) - ran}"
    )
    if derivatives:
        text += f"; derivatives agree with difference quotients to {max(derivatives):.1e}"
    return text


def write_html(report: MatrixReport, path: str | Path) -> None:
    """Write the report as one self-contained HTML page."""
    columns, lines = _grid(report)
    parts = [_HEAD, "<h1>xpnn check</h1>", f"<p>{html.escape(_summary(report))}</p>"]
    parts.append(
        "<p>Each number is the worst error of an op, over all its cases, against NumPy in float64 with the generic "
        "bodies, in units of eps of the dtype relative to the largest value. Point at it for the bound and the "
        "derivative's error.</p>"
    )
    if report.failures:
        parts.append("<h2>Failures</h2><ul class='bad'>")
        for result in report.failures:
            parts.append(
                f"<li><b>{html.escape(result.op)}</b> on {html.escape(result.row)}, {result.dtype}: "
                f"{html.escape(result.message)}</li>"
            )
        parts.append("</ul>")
    parts.append("<h2>Rows</h2><div class='scroll'><table><thead><tr><th>row</th><th>version</th><th>device</th>")
    parts.append("<th>state</th><th>what it proves</th></tr></thead><tbody>")
    for state in report.rows:
        mark = "ran" if state.reason is None else f"not run: {state.reason}"
        cells = (state.row, state.version, state.device, mark, state.proves)
        parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    parts.append("</tbody></table></div><h2>Ops</h2><div class='scroll'><table class='numbers'><thead><tr><th>op</th>")
    parts += [f"<th>{html.escape(row)}<br><small>{dtype}</small></th>" for row, dtype in columns]
    parts.append("</tr></thead><tbody>")
    for op, results in lines.items():
        parts.append(f"<tr><th>{html.escape(op)}</th>")
        parts += [_html_cell(results.get(column)) for column in columns]
        parts.append("</tr>")
    parts.append("</tbody></table></div></body></html>")
    Path(path).write_text("\n".join(parts), encoding="utf-8")


def _html_cell(result: Result | None) -> str:
    if result is None:
        return "<td></td>"
    text, bad = _cell(result)
    title = f"accepted: {result.bound:.0f} eps"
    if result.derivative is not None:
        title += f"; derivative: {result.derivative:.1e}"
    if result.message:
        title = result.message
    style = " class='bad'" if bad else ""
    return f"<td{style} title='{html.escape(title, quote=True)}'>{text}</td>"


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>xpnn check</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h2 { margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: Canvas; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.numbers tbody th { font-weight: normal; font-family: ui-monospace, monospace; }
.bad { color: var(--bad); font-weight: 600; }
small { font-weight: normal; }
</style></head><body>"""
