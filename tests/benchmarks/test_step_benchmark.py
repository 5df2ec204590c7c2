"""The benchmark runs and writes what it says; how fast anything is, no test asserts."""

import json
import pathlib
import subprocess
import sys

BENCHMARK = pathlib.Path(__file__).parents[2] / "benchmarks" / "step.py"


def run(*arguments):
    return subprocess.run([sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, timeout=300)


def test_report(tmp_path):
    path = tmp_path / "report.json"
    result = run("--networks", "xor,small", "--contenders", "xpnn,bare", "--rounds", "2", "--json", path)
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert set(report["networks"]) == {"xor", "small"}
    for contenders in report["networks"].values():
        assert set(contenders) == {"xpnn", "bare"}
        for row in contenders.values():
            assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
            assert row["peak_mib"] > 0
        assert contenders["xpnn"]["xpnn_is_faster_by"] == 1.0
    assert "| 2-3-1 tanh, MSE, SGD, batch 4 | bare |" in result.stdout


def test_unknown_network_is_refused():
    result = run("--networks", "nonsense")
    assert result.returncode == 2
    assert "unknown: nonsense; known: xor, small, middle, wide" in result.stderr
