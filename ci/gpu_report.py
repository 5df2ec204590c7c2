"""Runs what only a machine with an NVIDIA GPU can show, and writes a report; `gpu.sh` calls it.

The steps are lists of commands with limits of time; one that fails stops none of the others. After each of them the
report is written anew to --out, so that a run which is cut short leaves one too:

    report.md, report.json          the card, versions, each step with its result, the benchmark's tables
    benchmark.md, benchmark.json    the benchmark alone, with every turn's time
    log.txt                         all that the steps have printed
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_paths import without_paths  # noqa: E402

TOTAL_SECONDS = 465.0
"""All steps together; the machine's limit is 8 minutes."""

BENCHMARK_SECONDS = 240.0
"""Of these, what the tests may not use up."""

GRACE_SECONDS = 10.0
"""A step that is interrupted has so long to sum up what it did."""

SLOW_TEST_SECONDS = 40
"""A test that takes longer says where it is: if it hangs, the log tells which one, and in what."""

PACKAGES = (
    *("xpnn", "numpy", "array-api-compat", "cupy-cuda13x", "cupy-cuda12x", "nvmath-python", "cuda-bindings"),
    *("cuda-core", "nvidia-cudnn-frontend", "ml_dtypes", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-nvrtc"),
    *("torch", "jax", "jaxlib", "numba", "pytest", "pytest-xdist"),
)

ROWS = {"XPNN_TEST_BACKENDS": "numpy,cupy,cupy-graph"}
REQUIRED = {**ROWS, "XPNN_REQUIRE_BACKENDS": "numpy,cupy,cupy-graph"}

FOR_TESTS = {
    # JAX has no row here; on the GPU it would take most of the memory as soon as a test imports it.
    "JAX_PLATFORMS": "cpu",
    # The workers share the cores: each takes one thread.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


class Step(NamedTuple):
    """One command.

    Attributes:
        name: short, for the log.
        title: what it shows.
        arguments: of Python.
        limit: seconds that it may take.
        environment: variables beside those that are set; the empty text removes one.
        is_pytest: whether its output counts tests.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    limit: float
    environment: Mapping[str, str] = {}
    is_pytest: bool = False


def _tests(
    name: str, title: str, arguments: Sequence[str], limit: float, workers: int, rows: Mapping[str, str] = ROWS
) -> Step:
    command = ["-m", "pytest", "-q", "-r", "fE", "--tb=short", "-p", "no:cacheprovider"]
    # Where it is installed, pytest-benchmark warns beside xdist, and here warnings are errors.
    command += ["-p", "no:benchmark", "-p", "ci.lost_device", "-o", f"faulthandler_timeout={SLOW_TEST_SECONDS}"]
    command += arguments
    if workers > 1 and _version("pytest-xdist"):
        command += ["-n", str(workers)]
    return Step(name, title, tuple(command), limit, {**FOR_TESTS, **rows}, is_pytest=True)


def test_steps(workers: int) -> list[Step]:
    """What must be right."""
    folder = "tests/backends"
    graphs = f"{folder}/test_cupy_graph.py"
    found = [f"{folder}/{path.name}" for path in sorted((ROOT / folder).glob("test_cupy_*.py"))]
    kernels = [path for path in found if path != graphs]
    library = ["tests/backends/test_backend_contract.py"]
    library += [f"tests/{name}" for name in ("layers", "ops", "losses", "optimizers", "training")]
    library += [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py"))]
    check = ("-m", "xpnn", "check", "--backends", "numpy,cupy", "--require", "numpy,cupy")
    example = ("examples/same_on_every_backend.py", "--backend", "cupy")
    return [
        Step("backends", "which backends run, and with what", ("-m", "xpnn", "backends"), 60, FOR_TESTS),
        Step("example", "one training run on both backends", example, 45, FOR_TESTS),
        _tests("graphs", "steps as CUDA graphs", [graphs], 60, workers),
        _tests("kernels", "kernels and products against NumPy", kernels, 90, workers),
        _tests("matrix", "the matrix: rows numpy, cupy, cupy-graph", ["tests/matrix"], 150, workers, REQUIRED),
        _tests("library", "layers, ops, losses, optimizers, training on these rows", library, 90, workers, REQUIRED),
        Step("check", "every op against float64 on NumPy, with its error", check, 60, FOR_TESTS),
    ]


def benchmark_step(out: pathlib.Path, arguments: Sequence[str]) -> Step:
    """How fast it is."""
    command = ("benchmarks/gpu.py", "--out", str(out), *arguments)
    return Step("benchmark", "training steps beside PyTorch and JAX, and their limits", command, TOTAL_SECONDS)


# Running


def run(
    steps: Sequence[Step], out: pathlib.Path, total: float = TOTAL_SECONDS, reserved: float = BENCHMARK_SECONDS
) -> dict[str, Any]:
    """Run the steps and write the report.

    Args:
        steps: what is run; a step called "benchmark" gets --budget, of what is left.
        out: the folder of the report.
        total: seconds for all of them.
        reserved: of these, what is kept for the benchmark if there is one.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    names = {"card": card(), **facts()}
    report: dict[str, Any] = {"machine": names, "date": _now(), "total_limit": total, "steps": []}
    (out / "log.txt").write_text("")
    for index, step in enumerate(steps):
        later = reserved if any(other.name == "benchmark" for other in steps[index + 1 :]) else 0.0
        left = total - (time.monotonic() - began) - later - GRACE_SECONDS
        entry: dict[str, Any] = {"name": step.name, "title": step.title, "command": readable_command(step)}
        report["steps"].append(entry)
        if left < 5:
            entry.update({"result": "not run: no time was left", "seconds": 0.0, "ok": False})
        else:
            entry.update({"result": "running, or cut short with the whole run", "seconds": 0.0, "ok": False})
            write(report, out)
            budget = ("--budget", f"{min(step.limit, left) - 15:.0f}") if step.name == "benchmark" else ()
            entry.update(carry_out(step._replace(arguments=step.arguments + budget), min(step.limit, left), out))
        report["seconds"] = round(time.monotonic() - began, 1)
        print(f"== {step.title}: {entry['result']} ({entry['seconds']:.0f} s)", flush=True)
        for line in entry.get("failures", []):
            print(f"   {line}")
        write(report, out)
    return report


def carry_out(step: Step, limit: float, out: pathlib.Path) -> dict[str, Any]:
    """Run one step; what became of it."""
    # What a step has printed must be in the log when it is ended.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
    environment = {name: value for name, value in environment.items() if value or name not in step.environment}
    print(f"-- {step.title}: {readable_command(step)}", flush=True)
    began = time.monotonic()
    late = False
    with (out / "log.txt").open("ab") as log:
        log.write(f"\n== {step.title}\n$ {readable_command(step)}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            late = True
            code = _interrupt(process)
        except BaseException:
            _interrupt(process)
            raise
    seconds = round(time.monotonic() - began, 1)
    with (out / "log.txt").open("r+b") as log:
        log.seek(start)
        output = without_paths(log.read().decode(errors="replace"))
        log.seek(start)
        log.write(output.encode())
        log.truncate()
    found: dict[str, Any] = {"seconds": seconds, "code": code, "tail": output.splitlines()[-40:]}
    counts = count_tests(output) if step.is_pytest else {}
    if step.is_pytest:
        found["tests"] = counts
        found["failures"] = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))][:40]
        if late:
            found["failures"] += slow_tests(output)[:10]
    found["ok"] = code == 0 and not late and (not step.is_pytest or counts.get("passed", 0) > 0)
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    if late:
        found["result"] = f"cut short after {limit:.0f} s" + (f": {told}" if told else "")
    elif found["ok"]:
        found["result"] = told or "passed"
    elif step.is_pytest and code == 0:
        found["result"] = f"failed: no test has passed ({told})"
    else:
        found["result"] = f"failed with code {code}" + (f": {told}" if told else "")
    return found


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """End a step with all that it has started: politely, then not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


_SYMBOLS = {".": "passed", "F": "failed", "E": "errors", "s": "skipped", "x": "xfailed", "X": "xpassed"}


def count_tests(output: str) -> dict[str, int]:
    """What a run of pytest says in its last line; if it was killed before that, what its progress shows."""
    for line in reversed(output.splitlines()):
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed|deselected)", line)
        if found and re.search(r" in \d[\d.]*s", line):
            return {what.replace("errors", "error").replace("error", "errors"): int(count) for count, what in found}
    counts: dict[str, int] = {}
    for line in output.splitlines():
        progress = re.fullmatch(r"([.FEsxX]+)( *\[ *\d+%\])?", line.strip())
        for symbol in progress.group(1) if progress else "":
            counts[_SYMBOLS[symbol]] = counts.get(_SYMBOLS[symbol], 0) + 1
    return counts


def slow_tests(output: str) -> list[str]:
    """The tests that have said where they are, as they took so long: one of them may be what a step hung in."""
    places = re.findall(r'^  File "([^"]+)", line (\d+) in (test_\w+)$', output, flags=re.MULTILINE)
    return [f"SLOW {file}:{line} in {test}" for file, line, test in dict.fromkeys(places)]


def readable_command(step: Step) -> str:
    """The command with its variables, without the folders of this machine."""
    words = [f"{name}={value}" for name, value in step.environment.items() if name not in FOR_TESTS and value]
    arguments = list(step.arguments)
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return without_paths(" ".join([*words, "python", *arguments]))


# Facts


def card() -> str:
    """Name, memory and driver of the card, as nvidia-smi has them."""
    fields = "name,memory.total,driver_version,power.limit,clocks.max.sm"
    return _said(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]) or "none: nvidia-smi does not run"


def facts() -> dict[str, str]:
    """Everything else that a number may depend on."""
    cuda = re.search(r"CUDA [A-Z ]*Version: *([0-9.]+)", _said(["nvidia-smi"]))
    commit = os.environ.get("XPNN_COMMIT") or _said(["git", "rev-parse", "HEAD"])
    if commit and "XPNN_COMMIT" not in os.environ and _said(["git", "status", "--porcelain"]):
        commit += ", with changes"
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    return {
        "driver supports CUDA": cuda.group(1) if cuda else "unknown",
        "commit": commit or "unknown",
        "system": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": ", ".join(versions),
    }


def _said(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# Reporting


def write(report: dict[str, Any], out: pathlib.Path) -> None:
    """report.json and report.md."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text("\n".join(markdown(report, out)) + "\n")


def markdown(report: dict[str, Any], out: pathlib.Path) -> list[str]:
    """The report for people."""
    lines = ["# What ran on a GPU", ""]
    lines += [f"- {name}: {fact}" for name, fact in {"date": report["date"], **report["machine"]}.items()]
    lines += ["", "| step | result | seconds |", "| --- | --- | --- |"]
    lines += [f"| {step['title']} | {step['result']} | {step['seconds']:.0f} |" for step in report["steps"]]
    lines += ["", "Commands:", ""]
    lines += [f"- {step['title']}: `{step['command']}`" for step in report["steps"]]
    for step in report["steps"]:
        shown = step.get("failures") or ([] if step["ok"] and step["name"] != "backends" else step.get("tail", []))
        if step["name"] == "benchmark":
            shown = shown[-5:]  # why it has ended; its tables are below
        if shown:
            lines += ["", f"{step['title']}:", "", "```", *(line[:400] for line in shown), "```"]
    benchmark = out / "benchmark.md"
    if any(step["name"] == "benchmark" for step in report["steps"]) and benchmark.exists():
        lines += ["", *benchmark.read_text().splitlines()]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if every step has passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "gpu", help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="the tests only")
    parser.add_argument("--bench", action="store_true", help="the benchmarks only")
    parser.add_argument("--total", type=float, default=TOTAL_SECONDS, help="seconds for everything")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 16), help="of pytest")
    parser.add_argument("--steps", help="only these, of the names in report.json, separated by commas")
    parser.add_argument("benchmark", nargs="*", help="after --: arguments for benchmarks/gpu.py")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    steps = [] if options.bench else test_steps(options.workers)
    steps += [] if options.quick else [benchmark_step(out, options.benchmark)]
    if options.steps:
        names = options.steps.split(",")
        unknown = sorted(set(names) - {step.name for step in steps})
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(step.name for step in steps)}")
        steps = [step for step in steps if step.name in names]
    if any(step.name == "benchmark" for step in steps):
        for name in ("benchmark.md", "benchmark.json"):
            (out / name).unlink(missing_ok=True)  # of a run before
    report = run(steps, out, options.total, BENCHMARK_SECONDS * options.total / TOTAL_SECONDS)
    failed = [step["title"] for step in report["steps"] if not step["ok"]]
    print("\n".join(markdown(report, out)))
    if failed:
        print(f"\ndid not pass: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
