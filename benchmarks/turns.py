"""What the tables share: each contender runs in a process of its own, and the processes take turns.

A table offers cases (networks, batch sizes) and contenders. For each case, every contender is built in its own process,
warmed up, and told to take turns: a turn is as many calls as fill about a quarter of a second. Thread pools that share
a process slow each other, and idle ones go on spinning for a while: hence the processes, and a pause before each turn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
PAUSE_SECONDS = 0.25
TURN_SECONDS = 0.25
OURS = ("xpnn", "xpnn-fast")
"""The contenders that the others are compared with."""

NOT_PASSED_ON = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that the workers do not inherit: each contender is measured with the BLAS kernels that it chooses."""

DATA_VARIABLE = "XPNN_BENCHMARK_DATA"
"""Where workers find data that the command line has written: they load no library only for its data."""

PACKAGES = ("numpy", "numba", "torch", "jax", "jaxlib", "scikit-learn", "thinc", "blis", "threadpoolctl")
"""The packages whose versions are printed."""

Calls = Callable[[int], Any]
"""Makes that many calls of what is measured, and returns the last result as a float (so that nothing is left out)."""


class NotApplicableError(Exception):
    """What a contender raises when it is built for a case that it has nothing to say about; the text says why."""


class Contender(NamedTuple):
    """One way to do the work.

    Attributes:
        build: case -> Calls. It imports its library itself: a worker process loads only what it measures.
        needs: the distributions that must be installed.
        environment: variables of its worker process.
    """

    build: Callable[[Any], Calls]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


class Case(NamedTuple):
    """One group of rows of a table.

    Attributes:
        title: its name in the table.
        given: what the contenders are built from.
    """

    title: str
    given: Any


class Table(NamedTuple):
    """A script's table.

    Attributes:
        script: the file that is run again for each worker.
        description: what the command line's help says.
        call: what one call is, as a column's head: "step".
        cases: name on the command line -> case.
        contenders: name on the command line -> contender.
        result: the head of a column for the calls' result; "" for none.
    """

    script: str
    description: str
    call: str
    cases: Mapping[str, Case]
    contenders: Mapping[str, Contender]
    result: str = ""


# The worker's side


def worker(table: Table, contender: str, case: str) -> None:
    """Build, warm up, then make one turn for every line on standard input; answers are lines of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers

    def answer(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        calls = table.contenders[contender].build(table.cases[case].given)
    except NotApplicableError as reason:
        answer({"left_out": str(reason)})
        return
    start = time.perf_counter()
    calls(1)
    first = time.perf_counter() - start
    count = _calls_in_a_turn(calls)
    answer({"first_seconds": first, "calls_in_a_turn": count})
    for _ in sys.stdin:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        result = calls(count)
        seconds = (time.perf_counter() - start) / count
        usage = resource.getrusage(resource.RUSAGE_SELF)
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
        answer({"seconds": seconds, "peak_mib": peak, "faults": (usage.ru_minflt - faults) / count, "result": result})


def _calls_in_a_turn(calls: Calls) -> int:
    """How many calls fill a turn; finding out is the warm-up."""
    count = 1
    while True:
        start = time.perf_counter()
        calls(count)
        seconds = time.perf_counter() - start
        if seconds > TURN_SECONDS / 2:
            return max(round(count * TURN_SECONDS / seconds), 1)
        count *= 2


# The side of the command line


class _Worker:
    """One worker process."""

    def __init__(self, table: Table, contender: str, case: str) -> None:
        command = [sys.executable, table.script, "--worker", contender, case]
        environment = {**own_choice(), **table.contenders[contender].environment}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read(self) -> dict[str, Any]:
        """The next answer; {"failed": ...} if the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": f"its process ended with code {self.process.wait()}"}

    def take_turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # reading tells why
        return self.read()

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(table: Table, case: str, contenders: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Contender -> medians over the rounds, or why there are none, for one case."""
    results: dict[str, dict[str, Any]] = {}
    workers: dict[str, _Worker] = {}
    for name in contenders:
        missing = [package for package in table.contenders[name].needs if _version(package) is None]
        if missing:
            results[name] = {"not_installed": f"not installed: {', '.join(missing)}"}
            continue
        one = _Worker(table, name, case)
        # One after the other: what is compiled at the start is timed as well.
        results[name] = one.read()
        if "first_seconds" in results[name]:
            workers[name] = one
        else:
            one.end()
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number in range(rounds):
        order = list(workers) if number % 2 == 0 else list(workers)[::-1]
        for name in order:
            time.sleep(PAUSE_SECONDS)
            found = workers[name].take_turn()
            if "failed" in found:
                results[name] = found
                workers.pop(name).end()
                del turns[name]
            else:
                turns[name].append(found)
    for one in workers.values():
        one.end()
    for name, taken in turns.items():
        row = results[name]
        row.update({key: statistics.median(turn[key] for turn in taken) for key in taken[0] if key != "result"})
        row["fastest"] = min(turn["seconds"] for turn in taken)
        row["slowest"] = max(turn["seconds"] for turn in taken)
        row["turns"] = [turn["seconds"] for turn in taken]
        row["result"] = taken[-1]["result"]
        row["ratios"] = {
            ours: statistics.median(
                theirs["seconds"] / mine["seconds"] for theirs, mine in zip(taken, turns[ours], strict=True)
            )
            for ours in OURS
            if ours in turns
        }
    return {name: results[name] for name in contenders}


def run(table: Table, after: Callable[[dict[str, Any], int], None] | None = None) -> None:
    """The command line of a table.

    Args:
        table: what is measured.
        after: prints a table of its own below, given the report (to add to) and the number of rounds.
    """
    parser = argparse.ArgumentParser(
        description=table.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(table.cases), help=f"of {', '.join(table.cases)}")
    parser.add_argument("--contenders", default=",".join(table.contenders), help=f"of {', '.join(table.contenders)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=pathlib.Path, help="write the report to this file, too")
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(table, *options.worker)
        return
    cases, contenders = options.networks.split(","), options.contenders.split(",")
    for names, known in ((cases, table.cases), (contenders, table.contenders)):
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "networks": {}}
    for name, fact in report["machine"].items():
        print(f"- {name}: {fact}")
    print(flush=True)
    head = ["network", "contender", f"{table.call} (median)", "fastest - slowest"]
    head += [f"its time / {name}'s" for name in OURS]
    head += [f"first {table.call}", "peak memory", f"faults a {table.call}", *([table.result] if table.result else [])]
    print_row(head)
    print_row(["---"] * len(head))
    for case in cases:
        results = report["networks"][case] = measure(table, case, contenders, options.rounds)
        for name, row in results.items():
            print_row([table.cases[case].title, name, *_cells(table, row)])
    if after is not None:
        after(report, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    failed = {name for results in report["networks"].values() for name, row in results.items() if "failed" in row}
    if failed:
        raise SystemExit(f"did not run to the end (see above): {', '.join(sorted(failed))}")


def print_row(cells: Sequence[str]) -> None:
    """One line of a markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def _cells(table: Table, row: dict[str, Any]) -> list[str]:
    if "seconds" not in row:
        why = row.get("not_installed") or row.get("left_out") or f"failed: {row['failed']}"
        return [why, *["-"] * (6 + bool(table.result))]
    cells = [readable(row["seconds"]), f"{readable(row['fastest'])} - {readable(row['slowest'])}"]
    cells += [f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in OURS]
    cells += [readable(row["first_seconds"]), f"{row['peak_mib']:.0f} MiB", f"{row['faults']:.0f}"]
    return cells + ([f"{row['result']:.3f}"] if table.result else [])


def readable(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


# Facts of the machine


def own_choice() -> dict[str, str]:
    """The environment without the variables that choose BLAS kernels."""
    return {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}


def machine() -> dict[str, str]:
    """Processor, cores, versions and BLAS kernels."""
    facts = {"processor": _processor(), "cores": str(_cores()), "python": platform.python_version()}
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    facts["versions"] = ", ".join(f"{package} {_version(package) or 'not installed'}" for package in PACKAGES)
    facts["BLAS of xpnn"] = _blas("import xpnn; xpnn.get_backend('numpy')")
    facts["BLAS of NumPy alone"] = _blas("")
    variables = ("OPENBLAS", "OMP", "MKL", "BLIS", "XLA", "JAX", "TORCH", "XPNN", "NUMBA")
    found = [
        f"{name}={value}{' (not passed on)' if name in NOT_PASSED_ON else ''}"
        for name, value in sorted(os.environ.items())
        if name.startswith(variables) and name != DATA_VARIABLE
    ]
    facts["environment"] = ", ".join(found) or "nothing set"
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int | None:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    """The processor's name, as the system gives it, and its widest vectors."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(facts.get("flags", "").split())
    vectors = [flag for flag in ("avx512_bf16", "avx512f", "avx2") if flag in flags][:1]
    return ", ".join([facts.get("model name", platform.machine()), *vectors])


def _blas(first: str) -> str:
    """The BLAS that NumPy has in a process that runs `first` before it loads NumPy."""
    code = f"""
import sys; sys.path[:0] = {[str(HERE.parent), str(HERE.parent / "backends")]!r}
{first}
import numpy as np
from threadpoolctl import threadpool_info
np.ones((2, 2)) @ np.ones((2, 2))
for pool in threadpool_info():
    if pool["user_api"] == "blas":
        print(pool["internal_api"], pool["version"], pool.get("architecture"), pool["num_threads"], "threads")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own_choice())
    if done.returncode:
        return f"unknown ({done.stderr.strip().splitlines()[-1]})"
    return "; ".join(done.stdout.splitlines())
