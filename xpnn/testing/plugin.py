"""A pytest plug-in that runs a test once on every row of the backend matrix.

It is loaded by itself where xpnn is installed. A test asks for the fixtures, and a layer of yours joins the matrix:

    def test_my_layer(backend, dtype):
        xpnn.testing.check_layer(MyLayer(), input_shape=(4, 3), backend=backend, dtype=dtype)

`backend` is the xpnn backend of one row, `dtype` the name of the dtype. A row that cannot run is skipped with its
reason. A table of all rows closes the session.

    XPNN_TEST_BACKENDS=numpy,strict     (or --xpnn-backends)  runs these rows alone
    XPNN_REQUIRE_BACKENDS=numpy,cupy    (or --xpnn-require)   the session fails if one of these rows does not run
    @pytest.mark.xpnn_rows(only=..., skip=..., dtypes=..., reason=...)   chooses the rows of one test

Importing this module loads no array library, so that a session which does not use it pays next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from xpnn.backend import Backend
from xpnn.testing.rows import ROWS, Row

_COUNTS = ("passed", "failed", "skipped", "xfailed")
_ROW_PROPERTY = "xpnn_row"
_STATE_PROPERTY = "xpnn_state"
_DEVICE_PROPERTY = "xpnn_device"


@dataclass
class _Session:
    """What one pytest session knows about the rows.

    Attributes:
        selected: ids of the rows whose tests are collected.
        required: ids of the rows without which the session fails.
        tally: row id -> how many of its tests had which outcome.
        reasons: row id -> why it cannot run here.
        devices: row id -> the device that it ran on.
    """

    selected: tuple[str, ...]
    required: tuple[str, ...]
    tally: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)

    def count(self, row_id: str, outcome: str) -> None:
        self.tally.setdefault(row_id, dict.fromkeys(_COUNTS, 0))[outcome] += 1

    def ran(self, row_id: str) -> bool:
        """True if a test of the row was carried out, whatever came of it."""
        counts = self.tally.get(row_id, {})
        return row_id not in self.reasons and any(counts.get(key) for key in ("passed", "failed", "xfailed"))

    def missing(self) -> list[str]:
        """The required rows of which no test ran."""
        return [row_id for row_id in self.required if not self.ran(row_id)]

    def state(self, row: Row) -> str:
        """What became of a row, in words."""
        if row.id in self.reasons:
            return f"NOT RUN: {self.reasons[row.id]}"
        if self.ran(row.id):
            return "ran"
        if row.id not in self.selected:
            return "NOT RUN: not selected"
        return (
            "NOT RUN: skipped by the tests" if row.id in self.tally else "NOT RUN: no test of this row in the session"
        )


_SESSION = pytest.StashKey[_Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; the environment variables say the same."""
    group = parser.getgroup("xpnn", "xpnn backend matrix")
    group.addoption("--xpnn-backends", metavar="ROWS", help="rows to run, with commas; all by default")
    group.addoption("--xpnn-require", metavar="ROWS", help="rows that must run, else the session fails")


def pytest_configure(config: pytest.Config) -> None:
    """Read the options and refuse unknown names."""
    config.addinivalue_line(
        "markers",
        "xpnn_rows(only=None, skip=None, dtypes=None, reason=''): run a test on some rows of the xpnn backend matrix",
    )
    selected = _row_names(config, "--xpnn-backends", "XPNN_TEST_BACKENDS")
    required = _row_names(config, "--xpnn-require", "XPNN_REQUIRE_BACKENDS")
    config.stash[_SESSION] = _Session(selected or tuple(row.id for row in ROWS), required)


def _row_names(config: pytest.Config, option: str, variable: str) -> tuple[str, ...]:
    source, text = option, config.getoption(option)
    if text is None:
        source, text = variable, os.environ.get(variable, "")
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    _check_names(source, names)
    return names


def _check_names(source: str, names: Iterable[str]) -> None:
    known = [row.id for row in ROWS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise pytest.UsageError(
            f"{source}: unknown row {', '.join(map(repr, unknown))}; known rows: {', '.join(known)}"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each test that uses the fixtures over rows and dtypes."""
    # This name is in the list only if the test gets our `backend` or `dtype`, not a fixture of the user's own.
    if "_xpnn_row" not in metafunc.fixturenames:
        return
    session = metafunc.config.stash[_SESSION]
    only, dtypes = None, None
    for mark in metafunc.definition.iter_markers("xpnn_rows"):
        only = only or _as_names(mark, "only")
        dtypes = dtypes or _as_names(mark, "dtypes")
    metafunc.parametrize(
        "_xpnn_row",
        [
            pytest.param((row, dtype), id=f"{row.id}-{dtype}")
            for row in ROWS
            if row.id in session.selected and (not only or row.id in only)
            for dtype in row.dtypes
            if not dtypes or dtype in dtypes
        ],
        indirect=True,
    )


def _as_names(mark: pytest.Mark, keyword: str) -> tuple[str, ...]:
    unknown = set(mark.kwargs) - {"only", "skip", "dtypes", "reason"}
    if mark.args or unknown:
        raise pytest.UsageError(f"xpnn_rows takes only=, skip=, dtypes= and reason=, not {mark.args or unknown}")
    value = mark.kwargs.get(keyword) or ()
    names = (value,) if isinstance(value, str) else tuple(value)
    if keyword == "dtypes":
        if not set(names) <= {"float32", "float64"}:
            raise pytest.UsageError(f"xpnn_rows(dtypes={value!r}): the matrix has float32 and float64")
    else:
        _check_names(f"xpnn_rows({keyword}=...)", names)
    return names


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note the row in the item's properties: they travel with its reports, to JUnit files and from xdist's workers."""
    found = _row_of(item)
    if found is not None:
        item.user_properties.append((_ROW_PROPERTY, found.id))


def _row_of(item: pytest.Item) -> Row | None:
    callspec = getattr(item, "callspec", None)
    parameter = None if callspec is None else callspec.params.get("_xpnn_row")
    # Where none of a test's rows is selected, pytest collects it once, without a parameter, and skips it.
    return parameter[0] if isinstance(parameter, tuple) else None


@pytest.fixture
def _xpnn_row(request: pytest.FixtureRequest) -> tuple[Row, str]:
    """The row and the dtype of this call; skips or fails the test if the row cannot run."""
    row: Row = request.param[0]
    for mark in request.node.iter_markers("xpnn_rows"):
        if row.id in _as_names(mark, "skip"):
            pytest.skip(f"row {row.id}: {mark.kwargs.get('reason') or 'skipped by the test'}")
    reason = row.reason
    if reason is not None:
        request.node.user_properties.append((_STATE_PROPERTY, reason))
        if row.id in request.config.stash[_SESSION].required:
            pytest.fail(f"row {row.id!r} is required and cannot run: {reason}", pytrace=False)
        pytest.skip(f"row {row.id}: {reason}")
    return row, request.param[1]


@pytest.fixture
def backend(_xpnn_row: tuple[Row, str], request: pytest.FixtureRequest) -> Generator[Backend]:
    """The backend of one row of the matrix; the test runs inside `backend.context()`."""
    bound = _xpnn_row[0].backend()
    request.node.user_properties.append((_DEVICE_PROPERTY, bound.device_name or "default"))
    with bound.context():
        yield bound


@pytest.fixture
def dtype(_xpnn_row: tuple[Row, str]) -> str:
    """The name of the dtype of this row of the matrix: "float64" or "float32"."""
    return _xpnn_row[1]


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> str | None:
    """One line below the number of collected tests: which rows will run."""
    used = {row.id for row in map(_row_of, items) if row is not None}
    if not used or config.option.collectonly:
        return None
    states = []
    for row in ROWS:
        if row.id in used:
            reason = row.reason
            states.append(row.id if reason is None else f"{row.id} (cannot run: {reason})")
    return f"xpnn rows: {', '.join(states)}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the outcome of a test for its row (under xdist: in the controller, as the reports arrive)."""
    properties = dict(report.user_properties)
    session = _sessions[-1] if _sessions else None
    if session is None or _ROW_PROPERTY not in properties:
        return
    row_id = str(properties[_ROW_PROPERTY])
    if _STATE_PROPERTY in properties:
        session.reasons[row_id] = str(properties[_STATE_PROPERTY])
    if _DEVICE_PROPERTY in properties:
        session.devices[row_id] = str(properties[_DEVICE_PROPERTY])
    if report.when == "call" or report.outcome != "passed":
        expected = hasattr(report, "wasxfail")
        session.count(row_id, "xfailed" if expected else report.outcome)


_sessions: list[_Session] = []
"""The running session and, when pytest runs inside a test of pytest, those around it; the hook above gets no config."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin to count."""
    _sessions.append(session.config.stash[_SESSION])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a required row did not run."""
    mine = session.config.stash[_SESSION]
    passing = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    is_worker = hasattr(session.config, "workerinput")
    if mine.missing() and session.exitstatus in passing and not is_worker and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop counting."""
    mine = config.stash.get(_SESSION, None)
    if mine is not None and mine in _sessions:
        _sessions.remove(mine)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of the rows, and the required ones that are missing."""
    session = config.stash[_SESSION]
    if config.option.collectonly or not (session.tally or session.required):
        return
    terminalreporter.section("xpnn backend matrix", sep="-")
    lines: list[tuple[str, ...]] = [("row", *_COUNTS, "version", "device", "state")]
    for row in ROWS:
        counts = session.tally.get(row.id, dict.fromkeys(_COUNTS, 0))
        device = session.devices.get(row.id, row.spec.partition(":")[2] or "default")
        lines.append((row.id, *(str(counts[key]) for key in _COUNTS), row.version, device, session.state(row)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = [
            text.rjust(width) if 1 <= column <= len(_COUNTS) else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        terminalreporter.write_line("  ".join(cells).rstrip())
    for row_id in session.missing():
        terminalreporter.write_line(f"FAILED: row {row_id!r} is required, and no test of it ran", red=True)
