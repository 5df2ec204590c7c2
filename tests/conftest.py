"""The suite uses the plug-in that xpnn gives to everyone."""

import sys

import pytest

pytest_plugins = ["xpnn.testing.plugin"]


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """JAX keeps all that it has compiled, which adds up to gigabytes over the whole suite."""
    yield
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.clear_caches()


def pytest_terminal_summary(terminalreporter):
    """How many of ONNX's node cases were checked; see tests/independent/test_onnx_nodes.py."""
    # The properties of a report come from the workers of pytest-xdist, too.
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    tallies = [
        (report.outcome, dict(report.user_properties)["onnx"])
        for report in reports
        if report.when == "call" and "onnx" in dict(report.user_properties)
    ]
    if not tallies:
        return
    terminalreporter.section("ONNX node cases", sep="-")
    columns = ("checked", "in part", "not claimed", "new")
    terminalreporter.write_line("  ".join(["op type".ljust(26), *columns, "rows passed", "failed"]))
    totals = dict.fromkeys(columns, 0)
    for op_type in sorted({tally["op_type"] for _, tally in tallies}):
        outcomes = [outcome for outcome, tally in tallies if tally["op_type"] == op_type]
        counts = next(tally["counts"] for _, tally in tallies if tally["op_type"] == op_type)
        totals = {name: totals[name] + counts[name] for name in columns}
        cells = [str(counts[name]).rjust(len(name)) for name in columns]
        cells += [str(outcomes.count("passed")).rjust(11), str(outcomes.count("failed")).rjust(6)]
        terminalreporter.write_line("  ".join([op_type.ljust(26), *cells]))
    terminalreporter.write_line("  ".join(["all".ljust(26), *(str(totals[name]).rjust(len(name)) for name in columns)]))
    terminalreporter.write_line("Those not claimed stand by name in tests/independent/onnx_unclaimed.py.")
    for line in sorted({line for _, tally in tallies for line in tally["new"]}):
        terminalreporter.write_line(f"new in this version of onnx, and not checked: {line}")
