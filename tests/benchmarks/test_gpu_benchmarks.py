"""The benchmarks of a GPU run without one, in tiny sizes, and judge their goals rightly."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

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
    cases += ("streamed-resnet",)
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


def test_a_failure_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    # Another CuPy, which cannot be loaded.
    folder = tmp_path / "packages" / "cupy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError(f'{__file__} is broken')\n")
    environment = {**os.environ, "PYTHONPATH": str(folder.parent)}
    out = tmp_path / "out"
    result = run("--cases", "bandwidth-adam", "--contenders", "copy", "--out", out, environment=environment)
    assert result.returncode == 1
    found = json.loads((out / "benchmark.json").read_text())
    message = found["tables"]["bandwidth"]["cases"]["bandwidth-adam"]["rows"]["copy"]["failed"]
    assert "is broken" in message
    for name in ("benchmark.json", "benchmark.md"):
        assert str(tmp_path) not in (out / name).read_text()


def test_what_compiles_for_long_leaves_time_for_the_others(modules):
    import gpu

    options = argparse.Namespace(rounds=5, seconds=0.1)
    quick = [(None, "xpnn", "one")] * 4
    long = [(None, "xpnn", "two"), (None, "torch-step", "two")]
    now = time.monotonic()
    each = 5 * (1.3 * 0.1 + 0.03) + 0.5
    ends = gpu._building_ends(now + 58 * each, [quick, long, long], options)
    # Of the time of 58 turns, 8 are for measuring; of the rest, one fifth is for the first group.
    assert ends - now == pytest.approx(10 * each, rel=0.05)
    assert gpu._building_ends(now - 1, [quick], options) <= time.monotonic()
    # All that a compiler can hold up is built last.
    for section in gpu.SECTIONS.values():
        assert (section.group > 0) == any(name in gpu.COMPILED for name in section.table.contenders)


def test_the_crossover_is_a_table_for_the_readme(modules):
    import gpu

    rows = {"xpnn": row(2e-5, 2e-5), "numpy": row(1e-5, 2e-5)}
    larger = {"xpnn": row(2e-5, 2e-5), "numpy": row(4e-3, 2e-5)}
    absent = {"xpnn": {"failed": "no card"}, "numpy": {"seconds": 1.0, "ratios": {}}}
    cases = {"a": ("16", rows), "b": ("512", larger), "c": ("1024", absent)}
    found = {"cases": {name: {"title": title, "rows": given} for name, (title, given) in cases.items()}}
    assert gpu.crossover_lines(found) == [
        "| network | a step on the GPU | on the processor | the GPU's speed / the processor's |",
        "| --- | --- | --- | --- |",
        "| 16 | 20.0 us | 10.0 us | 0.5 |",
        "| 512 | 20.0 us | 4.00 ms | 200 |",
        "| 1024 | not measured | 1.00 s | - |",
        "",
        "Faster on the GPU: 512. Faster on the processor: 16.",
    ]


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


def test_all_goals_are_in_one_table(modules):
    import gpu
    from gpu_goals import Goal, judged

    goal = Goal("PyTorch eager", ("torch",), 2.0)
    given = {"fast": row(9.0, 2.0), "slow": row(3.0, 2.0), "absent": {"failed": "no compiler"}}
    cases = {
        name: {"title": name, "goals": [judged(goal, {"xpnn": row(2.0, 2.0), "torch": torch})]}
        for name, torch in given.items()
    }
    lines = gpu.markdown_goals({"tables": {"one": {"cases": cases}, "two": {"cases": {"x": {"goals": []}}}}})
    assert "So far: 1 met, 1 not met, 1 not measured." in lines
    assert lines[-3:] == [
        "| fast | PyTorch eager | 4.50 | >= 2 | yes |",
        "| slow | PyTorch eager | 1.50 | >= 2 | **no** |",
        "| absent | PyTorch eager | - | >= 2 | not measured |",
    ]
    assert gpu.markdown_goals({"tables": {}}) == []


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
