"""What the tables share: each contender runs in a process of its own, and the processes take turns.

A table offers cases (networks, batch sizes) and contenders. For each case, every contender is built in its own process,
warmed up, and told to take turns: a turn is as many calls as fill about a quarter of a second. Thread pools that share
a process slow each other, and idle ones go on spinning for a while: hence the processes, and a pause before each turn.

What compiles for long can be built side by side (`start`), as long as nobody is measured meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
"""Makes that many calls of what is measured, and returns the last result as a float (so that nothing is left out).

It may return a `Timed` instead, and may have an attribute `note`: a function that says, after the calls, how they ran.
"""


class Timed(NamedTuple):
    """What a contender returns that measures better than the clock around its calls, by events of a GPU, say.

    Attributes:
        seconds: of one call.
        result: of the last call.
    """

    seconds: float
    result: float


class NotApplicableError(Exception):
    """What a contender raises when it is built for a case that it has nothing to say about; the text says why."""


class Contender(NamedTuple):
    """One way to do the work.

    Attributes:
        build: case -> Calls. It imports its library itself: a worker process loads only what it measures.
        needs: the distributions that must be installed.
        environment: variables of its worker process.
        alone: not built beside others of that kind: they measure what they choose from.
    """

    build: Callable[[Any], Calls]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    alone: bool = False


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
        ours: the contenders that the others are compared with.
        turn_seconds, pause_seconds: how long a turn takes, and the pause before it.
        warm_up: calls after the first one, before the calls of a turn are counted.
        lead_in: calls before those that are timed, as a share of a turn's: clocks that slow down in a pause recover.
    """

    script: str
    description: str
    call: str
    cases: Mapping[str, Case]
    contenders: Mapping[str, Contender]
    result: str = ""
    ours: tuple[str, ...] = OURS
    turn_seconds: float = TURN_SECONDS
    pause_seconds: float = PAUSE_SECONDS
    warm_up: int = 0
    lead_in: float = 0.0


# The worker's side


def worker(table: Table, contender: str, case: str) -> None:
    """Build and warm up, then answer each line on standard input with a line of JSON.

    The first line asks how many calls fill a turn; each line after it, for one turn.
    """
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
    if table.warm_up:
        calls(table.warm_up)
    answer({"first_seconds": first})
    if not sys.stdin.readline():
        return
    count = _calls_in_a_turn(calls, table.turn_seconds)
    note = getattr(calls, "note", None)
    answer({"calls_in_a_turn": count, **({} if note is None else {"note": note()})})
    for _ in sys.stdin:
        if table.lead_in:
            calls(max(round(count * table.lead_in), 1))
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        result = calls(count)
        seconds = (time.perf_counter() - start) / count
        if isinstance(result, Timed):
            seconds, result = result
        usage = resource.getrusage(resource.RUSAGE_SELF)
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
        answer({"seconds": seconds, "peak_mib": peak, "faults": (usage.ru_minflt - faults) / count, "result": result})


def _calls_in_a_turn(calls: Calls, turn_seconds: float) -> int:
    """How many calls fill a turn; finding out is the warm-up."""
    count = 1
    while True:
        start = time.perf_counter()
        calls(count)
        seconds = time.perf_counter() - start
        if seconds > turn_seconds / 2:
            return max(round(count * turn_seconds / seconds), 1)
        count *= 2


# The side of the command line


class Worker:
    """One worker process.

    Attributes:
        built: its first answer, once `build` has waited for it.
    """

    def __init__(self, table: Table, contender: str, case: str, collect_errors: bool = False) -> None:
        self.table, self.contender, self.case = table, contender, case
        self.built: dict[str, Any] = {}
        command = [sys.executable, table.script, "--worker", contender, case]
        environment = {**own_choice(), **table.contenders[contender].environment}
        self._errors = tempfile.TemporaryFile() if collect_errors else None  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def build(self, limit: float | None) -> None:
        """Wait for the first answer."""
        self.built = self.read(limit)

    def read(self, limit: float | None = None) -> dict[str, Any]:
        """The next answer; {"failed": ...} if the process has ended, or does not answer within so many seconds."""
        assert self.process.stdout is not None
        # Each question has one line for an answer: nothing waits in the buffer of the pipe.
        if limit is not None and not select.select([self.process.stdout], [], [], max(limit, 0.0))[0]:
            self.process.kill()
            return {"failed": f"no answer within {limit:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": self._ending()}

    def _ending(self) -> str:
        code = f"its process ended with code {self.process.wait()}"
        if self._errors is None:
            return code
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        # The last line of a traceback, not what a library says after it on its way out.
        told = [line for line in lines if line and not line.startswith((" ", "\t"))]
        errors = [line for line in told if "Error" in line.partition(":")[0]]
        last = (errors or told or [""])[-1]
        return f"{code}: {last[:300]}" if last else code

    def ask(self, limit: float | None = None) -> dict[str, Any]:
        """Send a line, and return the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # reading tells why
        return self.read(limit)

    def dismiss(self) -> None:
        """Have the process end; do not wait for that."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()

    def end(self) -> None:
        """Have the process end, and wait for it."""
        assert self.process.stdout is not None
        self.dismiss()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._errors is not None:
            self._errors.close()


def missing_packages(table: Table, contender: str) -> list[str]:
    """What is not installed of what a contender needs."""
    return [package for package in table.contenders[contender].needs if _version(package) is None]


def start(
    wanted: Iterable[tuple[Table, str, str]],
    jobs: int = 1,
    limit: float | None = None,
    deadline: float = math.inf,
    collect_errors: bool = False,
) -> list[Worker]:
    """Workers for (table, contender, case), built, `jobs` of them at a time; those that failed are among them.

    Those that were not begun are not.

    Args:
        wanted: whom to start.
        jobs: how many are built side by side. One after the other, what is compiled at the start is timed rightly.
        limit: seconds that each may take.
        deadline: the moment of `time.monotonic()` after which none is begun or waited for.
        collect_errors: have the answer of one that fails say its last error; else errors go to the terminal.
    """

    one_at_a_time = threading.Lock()

    def begin(which: tuple[Table, str, str]) -> Worker | None:
        table, contender, case = which
        with one_at_a_time if table.contenders[contender].alone else contextlib.nullcontext():
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            one = Worker(table, contender, case, collect_errors)
            one.build(min((seconds for seconds in (limit, left) if seconds not in (None, math.inf)), default=None))
        return one

    with ThreadPoolExecutor(jobs) as pool:
        return [one for one in pool.map(begin, wanted) if one is not None]


def take_turns(workers: Sequence[Worker], rounds: int, limit: float | None = None) -> dict[str, dict[str, Any]]:
    """Contender -> medians over the rounds, or why there are none, for the workers of one case; they end."""
    results: dict[str, dict[str, Any]] = {}
    running: dict[str, Worker] = {}
    for one in workers:
        found = one.built
        if "first_seconds" in found:
            found = {**found, **one.ask(limit)}
        results[one.contender] = found
        if "calls_in_a_turn" in found:
            running[one.contender] = one
        else:
            one.end()
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for number in range(rounds):
        order = list(running) if number % 2 == 0 else list(running)[::-1]
        for name in order:
            time.sleep(running[name].table.pause_seconds)
            found = running[name].ask(limit)
            if "failed" in found:
                results[name] = found
                running.pop(name).end()
                del turns[name]
            else:
                turns[name].append(found)
    ours_of = {name: one.table.ours for name, one in running.items()}
    for one in running.values():
        one.dismiss()
    for one in running.values():
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
            for ours in ours_of[name]
            if ours in turns
        }
    return results


def measure(table: Table, case: str, contenders: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Contender -> medians over the rounds, or why there are none, for one case."""
    missing = {name: missing_packages(table, name) for name in contenders}
    workers = start((table, name, case) for name in contenders if not missing[name])
    results = take_turns(workers, rounds)
    for name in contenders:
        if missing[name]:
            results[name] = {"not_installed": f"not installed: {', '.join(missing[name])}"}
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
    head += [f"its time / {name}'s" for name in table.ours]
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
        return [why_not(row), *["-"] * (4 + len(table.ours) + bool(table.result))]
    cells = [readable(row["seconds"]), f"{readable(row['fastest'])} - {readable(row['slowest'])}"]
    cells += [f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in table.ours]
    cells += [readable(row["first_seconds"]), f"{row['peak_mib']:.0f} MiB", f"{row['faults']:.0f}"]
    return cells + ([f"{row['result']:.3f}"] if table.result else [])


def why_not(row: dict[str, Any]) -> str:
    """Why a contender has no time, for people."""
    return row.get("not_installed") or row.get("left_out") or f"failed: {row['failed']}"


def readable(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


# Facts of the machine


def own_choice() -> dict[str, str]:
    """The environment without the variables that choose BLAS kernels."""
    return {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Processor, cores, versions and BLAS kernels."""
    facts = {"processor": _processor(), "cores": str(_cores()), "python": platform.python_version()}
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    facts["versions"] = ", ".join(f"{package} {_version(package) or 'not installed'}" for package in packages)
    facts["BLAS of xpnn"] = _blas("import xpnn; xpnn.get_backend('numpy')")
    facts["BLAS of NumPy alone"] = _blas("")
    variables = ("OPENBLAS", "OMP", "MKL", "BLIS", "XLA", "JAX", "TORCH", "XPNN", "NUMBA", "CUDA_VISIBLE", "CUPY_TF32")
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
