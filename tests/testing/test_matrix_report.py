"""The report of `xpnn check`."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from xpnn.errors import ConfigError
from xpnn.testing import report as reports
from xpnn.testing.cases import CASES, FAMILIES, Case, Reals

FEW = [case for case in CASES if case.op in ("tanh", "linear")]
# Its bound is too small for anybody's tanh in float32.
IMPOSSIBLE = Case("tanh", (Reals((40, 30)),), label="impossible", terms=0, roundings=1e-6)


def test_results_have_errors_bounds_and_derivatives():
    seen = []
    report = reports.run_matrix(["numpy"], progress=lambda *state: seen.append(state), cases=FEW)
    assert {(result.op, result.dtype) for result in report.results} == {
        (op, dtype) for op in ("tanh", "linear") for dtype in ("float32", "float64")
    }
    for result in report.results:
        assert result.passed
        assert 0.0 <= result.error <= result.bound
        assert (result.derivative is not None) == (result.dtype == "float64")
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4]
    assert seen[-1] == (4, 4, "done")
    assert report.failures == []


def test_failure_is_reported_not_raised():
    report = reports.run_matrix(["numpy"], ["float32"], cases=[IMPOSSIBLE])
    (failure,) = report.failures
    assert "more than the bound" in failure.message
    text = printed(report)
    assert "FAILED tanh on numpy, float32: CheckError" in text
    assert "0 passed, 1 failed" in text


def test_row_that_cannot_run_is_in_the_report(monkeypatch):
    monkeypatch.setattr("xpnn.testing.rows.why_not", lambda name: "it is <broken>" if name == "cupy" else None)
    report = reports.run_matrix(["cupy", "numpy"], ["float32"], cases=FEW)
    assert [state.row for state in report.rows] == ["numpy", "cupy"]
    assert [state.row for state in report.missing(["numpy", "cupy"])] == ["cupy"]
    assert "cupy: NOT RUN: it is <broken>" in printed(report)


def test_unknown_row():
    with pytest.raises(ConfigError, match="unknown row 'cuppy'; known: numpy, numpy-readonly"):
        reports.run_matrix(["numpy", "cuppy"])


def test_a_narrow_table_names_the_worst_row():
    report = reports.run_matrix(["numpy", "numpy-readonly", "strict"], cases=[*FEW, IMPOSSIBLE])
    stream = io.StringIO()
    reports.print_report(report, Console(file=stream, width=60))
    text = stream.getvalue()
    linear = [each for each in report.results if each.op == "linear" and each.dtype == "float32"]
    worst = max(linear, key=lambda each: each.error)
    line = next(line for line in text.splitlines() if "linear" in line)
    assert f"{worst.row} {worst.error:.1f}" in line
    assert "FAILED" in next(line for line in text.splitlines() if "tanh" in line)
    assert "a wider terminal, or --report, shows every row" in " ".join(text.split())


def test_families_hold_every_op_once():
    assert sum(len(cases) for cases in FAMILIES.values()) == len(CASES)
    report = reports.run_matrix(["numpy"], ["float32"], cases=FEW)
    families = reports.by_family(report)
    assert {name: [each.op for each in results] for name, results in families.items()} == {
        "layers": ["linear"],
        "activations": ["tanh"],
        "all": [each.op for each in report.results],
    }


def test_table_has_a_line_for_each_op():
    text = printed(reports.run_matrix(["numpy"], cases=FEW))
    assert "linear" in text
    assert "tanh" in text
    assert "derivatives agree with difference quotients" in text


class Balanced(HTMLParser):
    """Reads a page and complains of a tag that is not closed."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        assert not any(name in ("src", "href") for name, _ in attrs), "the page must be self-contained"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_well_formed_and_tells_all(tmp_path, monkeypatch):
    monkeypatch.setattr("xpnn.testing.rows.why_not", lambda name: "it is <broken>" if name == "cupy" else None)
    report = reports.run_matrix(["numpy", "cupy"], ["float32"], cases=[*FEW, IMPOSSIBLE])
    path = tmp_path / "report.html"
    reports.write_html(report, path)
    page = Balanced()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    text = " ".join(page.text)
    for wanted in ("linear", "FAILED", "not run: it is <broken>", "more than the bound", "1 failed"):
        assert wanted in text


def printed(report):
    stream = io.StringIO()
    reports.print_report(report, Console(file=stream, width=200))
    return stream.getvalue()
