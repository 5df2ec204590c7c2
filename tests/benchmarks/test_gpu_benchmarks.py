"""The benchmarks of a GPU run without one, in tiny sizes, and judge their goals rightly."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The folder of the benchmarks as a place of modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(*arguments, environment=None):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--rounds", "2", "--seconds", "0.01", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def report(out, *arguments, environment=None):
    result = run("--out", out, *arguments, environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    printed = (out / "benchmark.md").read_text()
    assert "A trial of the script" in printed
    found = json.loads((out / "benchmark.json").read_text())
    return {case: rest["rows"] for table in found["tables"].values() for case, rest in table["cases"].items()}, found


def ran(row):
    return row["fastest"] > 0 and row["fastest"] <= row["seconds"] <= row["slowest"] and len(row["turns"]) == 2


def test_tables_without_a_gpu(tmp_path):
    cases = ("small-xor", "crossover-16-16")
    rows, found = report(
        tmp_path, "--device", "cpu", "--cases", ",".join(cases), "--contenders", "xpnn,xpnn-fit,numpy,copy"
    )
    assert set(rows) == set(cases)
    assert ran(rows["small-xor"]["xpnn"])
    assert ran(rows["small-xor"]["xpnn-fit"])
    assert rows["small-xor"]["torch"] == {"left_out": "not asked for"}
    assert ran(rows["crossover-16-16"]["numpy"])
    assert rows["crossover-16-16"]["xpnn"]["ratios"] == {"xpnn": 1.0}
    assert found["device"] == "cpu"
    # What is not measured on a GPU says nothing about the goals.
    assert all(not case["goals"] for table in found["tables"].values() for case in table["cases"].values())
    assert "Faster on the GPU: " in (tmp_path / "benchmark.md").read_text()


def test_tables_on_the_emulated_gpu(tmp_path, emulated_gpu):
    cases = ("small-xor", "bfloat16-2048", "bandwidth-adam", "bandwidth-cross_entropy", "streamed-2048")
    contenders = "xpnn,bare,copy,on-device"
    arguments = ("--cases", ",".join(cases), "--contenders", contenders)
    rows, _ = report(tmp_path / "out", *arguments, environment=emulated_gpu)
    assert set(rows) == set(cases)
    for case in cases:
        for name, row in rows[case].items():
            assert ran(row) if name in contenders.split(",") else row == {"left_out": "not asked for"}, (case, name)
    assert rows["small-xor"]["xpnn"]["note"] == "a CUDA graph"
    assert rows["bfloat16-2048"]["xpnn"]["note"] == "a CUDA graph"
    assert rows["streamed-2048"]["xpnn"]["note"] == "a CUDA graph; data on the host"
    assert rows["streamed-2048"]["on-device"]["note"] == "a CUDA graph; data on the device"
    assert rows["bandwidth-adam"]["copy"]["result"] > 0


def test_what_the_budget_leaves_no_time_for_is_said(tmp_path):
    arguments = ("--device", "cpu", "--cases", "crossover-16-16", "--budget", "0", "--out", tmp_path)
    result = run(*arguments)
    assert result.returncode == 1
    assert "not begun: the 0 s of this benchmark were over" in result.stdout
    assert "did not run to the end (see above): numpy, xpnn" in result.stderr
    assert (tmp_path / "benchmark.json").exists()


def test_unknown_names_are_refused():
    for option, known in (("--only", "small, float32"), ("--contenders", "xpnn, "), ("--cases", "small-xor, ")):
        result = run("--device", "cpu", option, "nonsense")
        assert result.returncode == 2
        assert f"unknown: nonsense; known: {known}" in result.stderr


def row(seconds, xpnn):
    return {"seconds": seconds, "ratios": {"xpnn": seconds / xpnn}}


def test_goals_are_judged_by_the_fastest_of_the_others(modules):
    from gpu_goals import Goal, goal_cells, judged

    rows = {"xpnn": row(2.0, 2.0), "torch": row(9.0, 2.0), "jax": row(3.5, 2.0), "compiled": {"failed": "no compiler"}}
    eager = judged(Goal("PyTorch eager", ("torch",), 4.5), rows)
    assert (eager["ratio"], eager["met"], eager["without"]) == (4.5, True, [])
    assert goal_cells(eager) == ["PyTorch eager", "4.50", ">= 4.5", "yes"]
    best = judged(Goal("the best of the others", ("torch", "jax", "compiled"), 2.0), rows)
    assert (best["fastest"], best["ratio"], best["met"], best["without"]) == ("jax", 1.75, False, ["compiled"])
    assert goal_cells(best) == ["the best of the others (jax)", "1.75", ">= 2", "**no** (without compiled)"]


def test_a_goal_without_a_measurement_is_not_met(modules):
    from gpu_goals import Goal, goal_cells, judged

    goal = Goal("torch.compile", ("compiled",), 0.95)
    for rows in (
        {"xpnn": row(2.0, 2.0), "compiled": {"failed": "no compiler"}},
        {"xpnn": {"failed": "no"}, "compiled": {"seconds": 1.0, "ratios": {}}},
    ):
        found = judged(goal, rows)
        assert found["met"] is None
        assert goal_cells(found)[1:] == ["-", ">= 0.95", "not measured"]


def test_the_goals_are_those_of_the_tables(modules):
    import gpu

    for section in gpu.SECTIONS.values():
        for goal in section.goals:
            assert set(goal.peers) <= set(section.table.contenders)
            assert set(goal.cases) <= set(section.table.cases)
    cases = [case for section in gpu.SECTIONS.values() for case in section.table.cases]
    assert len(cases) == len(set(cases))


TABLE = """
import json, sys, time
sys.path.insert(0, {folder!r})
from turns import Case, Contender, Table, Timed, start, take_turns, worker

def broken(given):
    raise ValueError("no such thing")

def slow(given):
    time.sleep(60)

def timed(given):
    calls = lambda count: Timed(0.125, 7.0)
    calls.note = lambda: "by its own clock"
    return calls

contenders = {{"timed": Contender(timed), "broken": Contender(broken), "slow": Contender(slow)}}
cases = {{"one": Case("case one", None)}}
table = Table(__file__, "a table", "call", cases, contenders, ours=("timed",), turn_seconds=1e-6, pause_seconds=0.0)
if len(sys.argv) > 1:
    worker(table, *sys.argv[2:])
else:
    workers = start([(table, name, "one") for name in contenders], jobs=3, limit=5.0, collect_errors=True)
    print(json.dumps(take_turns(workers, 3)))
"""


def test_contenders_that_are_built_side_by_side(tmp_path):
    script = tmp_path / "table.py"
    script.write_text(TABLE.format(folder=str(BENCHMARKS)))
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert rows["broken"] == {"failed": "its process ended with code 1: ValueError: no such thing"}
    assert rows["slow"] == {"failed": "no answer within 5 s"}
    assert rows["timed"]["turns"] == [0.125] * 3
    assert (rows["timed"]["result"], rows["timed"]["note"]) == (7.0, "by its own clock")
    assert rows["timed"]["ratios"] == {"timed": 1.0}
