"""How long one training step takes, side by side in one run.

    python benchmarks/step.py [--networks xor,small] [--contenders xpnn,torch] [--rounds 9] [--json FILE]

Each contender runs in a process of its own, since thread pools that share a process slow each other. The processes
take turns, with a pause between turns in which idle pools stop spinning. Reported are medians over the rounds, ratios
as medians of the ratios within each round, and the peak memory of each process.
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

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

from contenders import CONTENDERS  # noqa: E402
from networks import SPECS  # noqa: E402

PAUSE_SECONDS = 0.25


def worker(contender: str, network: str) -> None:
    """Build, warm up, then time one turn for every line on standard input, and answer in JSON."""
    spec = SPECS[network]
    steps = CONTENDERS[contender](spec)
    steps(max(spec.steps // 5, 3))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        steps(spec.steps)
        seconds = (time.perf_counter() - start) / spec.steps
        usage = resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "seconds": seconds,
            "peak_mib": usage.ru_maxrss / 1024,
            "faults_per_step": (usage.ru_minflt - faults) / spec.steps,
        }
        print(json.dumps(answer), flush=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """One turn of a worker."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    return json.loads(line)


def measure(network: str, contenders: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Contender -> medians over the rounds, for one network."""
    processes = {}
    for contender in contenders:
        command = [sys.executable, str(HERE / "step.py"), "--worker", contender, network]
        processes[contender] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert processes[contender].stdout is not None
        if not processes[contender].stdout.readline():
            raise SystemExit(f"{contender} does not run here (see above)")
    turns: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
    for number in range(rounds):
        order = contenders if number % 2 == 0 else contenders[::-1]
        for contender in order:
            time.sleep(PAUSE_SECONDS)
            turns[contender].append(ask(processes[contender]))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    results = {}
    for contender in contenders:
        results[contender] = {
            key: statistics.median(turn[key] for turn in turns[contender]) for key in turns[contender][0]
        }
        results[contender]["slowest"] = max(turn["seconds"] for turn in turns[contender])
        results[contender]["fastest"] = min(turn["seconds"] for turn in turns[contender])
        if "xpnn" in contenders:
            pairs = zip(turns[contender], turns["xpnn"], strict=True)
            results[contender]["xpnn_is_faster_by"] = statistics.median(
                theirs["seconds"] / ours["seconds"] for theirs, ours in pairs
            )
    return results


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def blas() -> str:
    """Which BLAS kernels NumPy has picked."""
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return "; ".join(
        f"{p['internal_api']} {p['version']} {p.get('architecture')}, {p['num_threads']} threads" for p in pools
    )


def readable(seconds: float) -> str:
    """A time in the unit that fits it."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(SPECS))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    networks = options.networks.split(",")
    contenders = options.contenders.split(",")
    for name, known in ((networks, SPECS), (contenders, CONTENDERS)):
        if unknown := sorted(set(name) - set(known)):
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    versions = {}
    for package in ("numpy", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "blas": blas(),
        **versions,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()), "\n", flush=True)
    print(
        "| network | contender | step (median) | fastest - slowest | its time / xpnn's | peak memory | faults a step |"
    )
    print("|---|---|---|---|---|---|---|")
    report = {"machine": machine, "rounds": options.rounds, "networks": {}}
    for network in networks:
        results = measure(network, contenders, options.rounds)
        report["networks"][network] = results
        for contender, row in results.items():
            ratio = f"{row['xpnn_is_faster_by']:.2f}" if "xpnn_is_faster_by" in row else "-"
            print(
                f"| {SPECS[network].title} | {contender} | {readable(row['seconds'])} | {readable(row['fastest'])} - "
                f"{readable(row['slowest'])} | {ratio} | {row['peak_mib']:.0f} MiB | {row['faults_per_step']:.0f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
