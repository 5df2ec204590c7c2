"""The benchmarks run and write what they say; how fast anything is, no test asserts."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
NUMBA = importlib.util.find_spec("numba") is not None


def run(script, *arguments, **variables):
    command = [sys.executable, BENCHMARKS / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})


def report(tmp_path, script, *arguments):
    path = tmp_path / "report.json"
    result = run(script, "--rounds", "2", "--json", path, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text()), result.stdout


@pytest.mark.parametrize(
    ("script", "networks"),
    [("step.py", "xor,small"), ("predict.py", "1,32"), ("overhead.py", "xor"), ("convolution.py", "few")],
)
def test_report(tmp_path, script, networks):
    others = {"overhead.py": {"fit", "fit-fast"}, "convolution.py": set()}
    contenders = {"xpnn", "xpnn-fast", *others.get(script, {"bare"})}
    found, printed = report(tmp_path, script, "--networks", networks, "--contenders", ",".join(contenders))
    assert set(found["networks"]) == set(networks.split(","))
    assert not found["machine"]["BLAS of xpnn"].startswith("unknown")
    for rows in found["networks"].values():
        assert set(rows) == contenders
        for name, row in rows.items():
            if name.endswith("-fast") and not NUMBA:
                assert row == {"not_installed": "not installed: numba"}
                continue
            assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
            assert len(row["turns"]) == 2
            assert row["peak_mib"] > 0
            assert set(row["ratios"]) == ({"xpnn", "xpnn-fast"} if NUMBA else {"xpnn"})
            assert f"| {name} |" in printed
        assert rows["xpnn"]["ratios"]["xpnn"] == 1.0


def test_fit_trains(tmp_path):
    found, printed = report(tmp_path, "fit.py", "--contenders", "xpnn,sklearn")
    for row in found["networks"]["digits"].values():
        assert row["result"] > 0.9
        assert row["first_seconds"] > 0
    assert {"xpnn", "fit", "fit-in-order"} <= set(found["overhead"])
    assert "fit adds" in printed


def test_a_contender_that_is_not_installed_is_left_out(tmp_path):
    table = tmp_path / "table.py"
    table.write_text(
        f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from turns import Case, Contender, Table, run

def broken(given):
    raise ValueError("no such thing")

def here(given):
    return lambda count: sum(range(1000 * count))

contenders = {{
    "xpnn": Contender(here),
    "missing": Contender(here, ("no-such-distribution",)),
    "broken": Contender(broken),
}}
run(Table(__file__, "a table", "call", {{"one": Case("case one", None)}}, contenders))
"""
    )
    result = run(table, "--rounds", "1", "--contenders", "xpnn,missing")
    assert result.returncode == 0, result.stderr
    assert "| case one | missing | not installed: no-such-distribution |" in result.stdout
    result = run(table, "--rounds", "1")
    assert result.returncode == 1
    assert "| case one | broken | failed: its process ended with code 1 |" in result.stdout
    assert "did not run to the end (see above): broken" in result.stderr


def test_unknown_network_is_refused():
    result = run("step.py", "--networks", "nonsense")
    assert result.returncode == 2
    assert "unknown: nonsense; known: xor, small, middle, wide" in result.stderr


def test_workers_choose_their_own_blas_kernels():
    script = "import turns; print(turns._blas(''))"
    command = [sys.executable, "-c", script]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    own = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS, env=environment)
    told = {**environment, "OPENBLAS_CORETYPE": "Nehalem"}
    told_otherwise = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS, env=told)
    assert own.returncode == 0, own.stderr
    assert own.stdout == told_otherwise.stdout
