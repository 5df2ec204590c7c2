"""How fast xpnn is on a GPU, beside PyTorch and JAX, bare products and bare copies, in one run.

python benchmarks/gpu.py [--only small,float32] [--rounds 5] [--seconds 0.1] [--budget 240] [--out DIR]

It prints its tables and, with --out, writes them to benchmark.json and benchmark.md there, anew after each
table. gpu/README.md says what the tables are. `--device cpu --tiny` tries the script out where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

import turns  # noqa: E402
from gpu_contenders import (  # noqa: E402
    BARE,
    COPY,
    DEVICE_VARIABLE,
    FIT,
    HOST_FED,
    JAX,
    JAX_FLAT,
    NUMPY,
    ON_DEVICE,
    OP,
    TORCH,
    TORCH_MODEL,
    TORCH_STEP,
    XPNN,
    Job,
    Traffic,
    device,
)
from gpu_goals import Goal, goal_cells, judged  # noqa: E402
from gpu_networks import BLOCKS, CROSSOVER, LARGE, SMALL, STREAMED, TINY_VARIABLE, tiny  # noqa: E402
from gpu_paths import without_paths  # noqa: E402
from turns import Case, Contender, Table  # noqa: E402

SECONDS_VARIABLE = "XPNN_BENCHMARK_SECONDS"

PACKAGES = (
    *("numpy", "numba", "cupy-cuda13x", "cupy-cuda12x", "nvmath-python", "nvidia-cudnn-frontend", "ml_dtypes"),
    *("nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"),
    *("torch", "triton", "jax", "jaxlib", "jax-cuda13-plugin"),
)
"""The packages whose versions are printed."""

NAMES = {"float32": "float32", "tf32": "TF32", "bfloat16": "bfloat16"}
"""Precision -> its name in tables."""


COMPILED = ("torch-model", "torch-step", "jax")
"""The contenders whose compilers take tens of seconds."""

TURN_LIMIT = 30.0
"""Seconds after which a contender that does not answer is given up, once it is built."""

CROSSOVER_TITLE = "From which size on the GPU wins, float32: one training step on CuPy and on NumPy"


class Section(NamedTuple):
    """A table of the report.

    Attributes:
        name: on the command line.
        title: its heading.
        table: what is measured.
        goals: what it is to show.
        group: sections of one group are built together, before the first of them is measured; what compiles for long
            comes in the later ones, so that no lack of time can take the others away.
    """

    name: str
    title: str
    table: Table
    goals: tuple[Goal, ...]
    group: int


def _section(
    name: str,
    title: str,
    group: int,
    cases: Mapping[str, Case],
    contenders: Mapping[str, Contender],
    goals: Iterable[Goal] = (),
    ours: tuple[str, ...] = ("xpnn",),
    **options: Any,
) -> Section:
    table = Table(
        script=__file__,
        description=title,
        call=options.pop("call", "step"),
        cases={f"{name}-{case}": given for case, given in cases.items()},
        contenders=contenders,
        ours=ours,
        turn_seconds=float(os.environ.get(SECONDS_VARIABLE, "0.1")),
        pause_seconds=0.02,  # there are no thread pools that spin: the work is the device's
        warm_up=4,  # the second call captures a graph, of xpnn as of PyTorch
        lead_in=0.25,
        **options,
    )
    return Section(name, title, table, tuple(goals), group)


def _jobs(specs: Mapping[str, Any], precision: str, batches: int = 1) -> dict[str, Case]:
    suffix = "" if precision == "float32" else f", {NAMES[precision]}"
    return {name: Case(spec.title + suffix, Job(spec, precision, batches)) for name, spec in specs.items()}


def _large(precision: str, group: int) -> Section:
    others = ("torch", "torch-step", "jax")
    goals = [Goal("the best of the others", others, 1.0)]
    if precision == "bfloat16":
        goals.append(Goal("the bare products", ("bare",), 0.9, cases=(f"bfloat16-{list(LARGE)[-1]}",)))
    return _section(
        precision,
        f"Wide networks, {NAMES[precision]}: one training step",
        group,
        _jobs(LARGE, precision),
        {"xpnn": XPNN, "torch": TORCH, "torch-step": TORCH_STEP, "jax": JAX, "bare": BARE},
        goals,
    )


def _blocks(precision: str, group: int) -> Section:
    return _section(
        f"deep-{precision}",
        f"Convolution and attention, {NAMES[precision]}: one training step",
        group,
        _jobs(BLOCKS, precision),
        {"xpnn": XPNN, "torch": TORCH, "torch-model": TORCH_MODEL},
        [Goal("PyTorch eager", ("torch",), 1.1), Goal("torch.compile", ("torch-model",), 0.95)],
    )


def _traffic() -> dict[str, Case]:
    adam = Traffic("adam", (4096,) if tiny() else (100_000_000,))
    loss = Traffic("cross_entropy", (16, 320) if tiny() else (8192, 32000))
    return {
        "adam": Case(f"Adam, {adam.shape[0]:,} parameters", adam),
        "cross_entropy": Case(f"softmax cross-entropy with its gradient, {loss.shape[0]} x {loss.shape[1]}", loss),
    }


SECTIONS = {
    section.name: section
    for section in (
        _section(
            "small",
            "Small networks, float32: one training step",
            1,
            _jobs(SMALL, "float32", batches=4 if tiny() else 200),
            {
                "xpnn": XPNN,
                "xpnn-fit": FIT,
                "torch": TORCH,
                "torch-model": TORCH_MODEL,
                "torch-step": TORCH_STEP,
                "jax": JAX._replace(alone=False),  # too small for XLA to measure what it chooses from
                "jax-flat": JAX_FLAT,
            },
            [
                Goal("PyTorch eager", ("torch",), 5.0),
                Goal("the best of the others", ("torch-model", "torch-step", "jax", "jax-flat"), 1.5),
            ],
            ours=("xpnn", "xpnn-fit"),
        ),
        _large("float32", 1),
        _large("tf32", 2),
        _large("bfloat16", 2),
        _blocks("bfloat16", 3),
        _blocks("tf32", 3),
        _section(
            "bandwidth",
            "What memory bounds, float32: share of the rate of a copy on the device",
            0,
            _traffic(),
            {"xpnn": OP, "copy": COPY},
            [
                Goal("a copy of as many bytes", ("copy",), 0.85, cases=("bandwidth-adam",)),
                Goal("a copy of as many bytes", ("copy",), 0.7, cases=("bandwidth-cross_entropy",)),
            ],
            call="call",
            result="GB/s",
        ),
        _section(
            "streamed",
            "Data of the host, batch by batch: a step of fit beside one with all data on the device",
            0,
            _jobs(STREAMED, "float32", batches=4 if tiny() else 32),
            {"xpnn": HOST_FED, "on-device": ON_DEVICE},
            [Goal("data on the device", ("on-device",), 0.9)],
        ),
        _section(
            "crossover",
            CROSSOVER_TITLE,
            0,
            _jobs(CROSSOVER, "float32"),
            {"xpnn": XPNN, "numpy": NUMPY},
        ),
    )
}


# Running


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the sections; print, and write, each of them as soon as it is there."""
    began = time.monotonic()
    deadline = began + options.budget
    wanted = [SECTIONS[name] for name in SECTIONS if name in options.only and _cases(SECTIONS[name], options)]
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "device": device(),
        "sizes": "tiny" if tiny() else "full",
        "machine": {name: without_paths(fact) for name, fact in {**gpu_facts(), **turns.machine(PACKAGES)}.items()},
        "rounds": options.rounds,
        "seconds_of_a_turn": options.seconds,
        "tables": {},
    }
    print("\n".join(markdown_head(report)), flush=True)
    groups = sorted({section.group for section in wanted})
    pairs_of = {group: _pairs([section for section in wanted if section.group == group], options) for group in groups}
    for group in groups:
        building_ends = _building_ends(deadline, [pairs_of[number] for number in groups if number >= group], options)
        workers = turns.start(pairs_of[group], options.jobs, options.limit, building_ends, collect_errors=True)
        for section in wanted:
            if section.group == group:
                found = report["tables"][section.name] = _measured(section, workers, options, deadline)
                report["seconds"] = round(time.monotonic() - began, 1)
                print(without_paths("\n".join(markdown_section(found))), flush=True)
                if options.out:
                    write(report, options.out)
    return report


def _building_ends(deadline: float, ahead: list[list[tuple[Table, str, str]]], options: argparse.Namespace) -> float:
    """The moment at which the next group must be built.

    What is still to be measured keeps its time; of the rest, the group gets its share.

    Args:
        deadline: of everything.
        ahead: what is to be built of the next group, and of each after it.
        options: of the command line.
    """
    now = time.monotonic()
    measuring = sum(map(len, ahead)) * (options.rounds * (1.3 * options.seconds + 0.03) + 0.5)
    weights = [1 + any(contender in COMPILED for _, contender, _ in pairs) for pairs in ahead]
    return now + max(deadline - now - measuring, 0.0) * weights[0] / sum(weights)


def _pairs(sections: list[Section], options: argparse.Namespace) -> list[tuple[Table, str, str]]:
    """(table, contender, case) for all that can be built: what all are compared with, then who is built at once."""
    found = [
        (section.table, name, case)
        for section in sections
        for case in _cases(section, options)
        for name in section.table.contenders
        if name in options.contenders and not turns.missing_packages(section.table, name)
    ]
    return sorted(found, key=lambda which: 0 if which[1] in which[0].ours else 1 + (which[1] in COMPILED))


def _cases(section: Section, options: argparse.Namespace) -> list[str]:
    return [name for name in section.table.cases if options.cases is None or name in options.cases]


def _measured(
    section: Section, workers: list[turns.Worker], options: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """The report of a section; `workers` are those of its group. After the deadline, no case of it is begun."""
    table = section.table
    found: dict[str, Any] = {"title": section.title, "call": table.call, "ours": table.ours, "result": table.result}
    found["cases"] = {}
    for name in _cases(section, options):
        mine = [one for one in workers if one.table is table and one.case == name]
        is_late = time.monotonic() > deadline
        if is_late:
            for one in mine:
                one.end()
        measured = {} if is_late else turns.take_turns(mine, options.rounds, min(options.limit, TURN_LIMIT))
        rows: dict[str, Any] = {}
        for contender in table.contenders:
            missing = turns.missing_packages(table, contender)
            if contender not in options.contenders:
                rows[contender] = {"left_out": "not asked for"}
            elif missing:
                rows[contender] = {"not_installed": f"not installed: {', '.join(missing)}"}
            else:
                over = {"failed": f"not begun: the {options.budget:.0f} s of this benchmark were over"}
                row = rows[contender] = measured.get(contender, over)
                if "failed" in row:
                    row["failed"] = without_paths(row["failed"])
        goals = [goal for goal in section.goals if not goal.cases or name in goal.cases] if is_judged() else []
        found["cases"][name] = {"title": table.cases[name].title, "rows": rows}
        found["cases"][name]["goals"] = [judged(goal, rows) for goal in goals]
    return found


def is_judged() -> bool:
    """Whether the goals apply: on a GPU, in full size."""
    return device() == "cuda" and not tiny()


def gpu_facts() -> dict[str, str]:
    """The card and its driver, as nvidia-smi names them."""
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit,pcie.link.gen.max"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
        plain = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {"GPU": "none: nvidia-smi does not run"}
    if done.returncode:
        return {"GPU": f"none: {(done.stdout + done.stderr).strip()}"}
    cards = [dict(zip(fields.split(","), line.split(", "), strict=False)) for line in done.stdout.splitlines()]
    cuda = re.search(r"CUDA Version: *([0-9.]+)", plain.stdout)
    return {
        "GPU": "; ".join(", ".join(f"{name} {value}" for name, value in card.items()) for card in cards),
        "driver supports CUDA": cuda.group(1) if cuda else "unknown",
    }


# Reporting


def markdown_head(report: dict[str, Any]) -> list[str]:
    """The facts above the tables."""
    lines = [f"- {name}: {fact}" for name, fact in report["machine"].items()]
    lines.append(f"- date: {report['date']}; rounds: {report['rounds']}; a turn: {report['seconds_of_a_turn']} s")
    if not is_judged():
        lines += ["", f"**A trial of the script: device {report['device']}, sizes {report['sizes']}.**"]
    return lines


def markdown_section(found: dict[str, Any]) -> list[str]:
    """One table, and what became of its goals below it."""
    call, ours = found["call"], found["ours"]
    head = ["", "contender", f"{call} (median)", "fastest - slowest", *(f"its time / {name}'s" for name in ours)]
    head += [found["result"]] if found["result"] else []
    head.append("how it runs")
    lines = ["", f"## {found['title']}", "", _row(head), _row(["---"] * len(head))]
    goals = []
    for case in found["cases"].values():
        for name, row in case["rows"].items():
            if row.get("left_out") == "not asked for":
                continue
            if "seconds" not in row:
                lines.append(_row([case["title"], name, turns.why_not(row), *["-"] * (len(head) - 3)]))
                continue
            cells = [turns.readable(row["seconds"])]
            cells.append(f"{turns.readable(row['fastest'])} - {turns.readable(row['slowest'])}")
            cells += [f"{row['ratios'][one]:.2f}" if one in row["ratios"] else "-" for one in ours]
            cells += [f"{row['result']:.0f}"] if found["result"] else []
            lines.append(_row([case["title"], name, *cells, row.get("note") or "-"]))
        goals += _goal_rows(case)
    if found["title"] == CROSSOVER_TITLE:
        lines += ["", *crossover_lines(found)]
    return lines + (["", *_GOALS_HEAD, *goals] if goals else [])


def _goal_rows(case: dict[str, Any]) -> list[str]:
    return [_row([case["title"], *goal_cells(goal)]) for goal in case["goals"]]


def markdown_goals(report: dict[str, Any]) -> list[str]:
    """How many of the goals were met, and all of them in one table; nothing where there are none."""
    cases = [case for found in report["tables"].values() for case in found["cases"].values()]
    met = [goal["met"] for case in cases for goal in case["goals"]]
    if not met:
        return []
    counts = f"{met.count(True)} met, {met.count(False)} not met, {met.count(None)} not measured"
    rows = [row for case in cases for row in _goal_rows(case)]
    return ["", "## Goals", "", f"So far: {counts}.", "", *_GOALS_HEAD, *rows]


def crossover_lines(found: dict[str, Any]) -> list[str]:
    """Which networks train faster on which of the two: a table for the README of the library."""
    lines = [
        _row(["network", "a step on the GPU", "on the processor", "the GPU's speed / the processor's"]),
        _row(["---"] * 4),
    ]
    wins: dict[str, list[str]] = {"GPU": [], "processor": []}
    for case in found["cases"].values():
        gpu, processor = (case["rows"].get(name, {}) for name in ("xpnn", "numpy"))
        times = [turns.readable(row["seconds"]) if "seconds" in row else "not measured" for row in (gpu, processor)]
        ratio = processor.get("ratios", {}).get("xpnn")
        lines.append(_row([case["title"], *times, "-" if ratio is None else f"{ratio:.3g}"]))
        if ratio is not None:
            wins["GPU" if ratio > 1 else "processor"].append(case["title"])
    said = [f"Faster on the {place}: {'; '.join(titles) or 'none'}." for place, titles in wins.items()]
    return [*lines, "", " ".join(said)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


_GOALS_HEAD = [_row(["goal for", "against", "its time / xpnn's", "wanted", "met"]), _row(["---"] * 5)]


def write(report: dict[str, Any], out: pathlib.Path) -> None:
    """benchmark.json and benchmark.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = ["# Benchmarks on a GPU", "", *markdown_head(report), *markdown_goals(report)]
    for found in report["tables"].values():
        lines += markdown_section(found)
    (out / "benchmark.md").write_text(without_paths("\n".join(lines)) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    known = list(dict.fromkeys(name for section in SECTIONS.values() for name in section.table.contenders))
    parser.add_argument("--contenders", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--cases", help="such as small-xor,float32-4096; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="how long a turn takes")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which nothing new is begun")
    parser.add_argument("--limit", type=float, default=90, help="seconds that one contender may take to be built")
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 16), help="how many are built side by side"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, which show that the script runs, and no more")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for the report")
    parser.add_argument("--worker", nargs=2, metavar=("CONTENDER", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        contender, case = options.worker
        section = next(one for one in SECTIONS.values() if case in one.table.cases)
        turns.worker(section.table, contender, case)
        return
    settings = {DEVICE_VARIABLE: options.device, SECONDS_VARIABLE: str(options.seconds)}
    settings[TINY_VARIABLE] = "1" if options.tiny else ""
    if any(os.environ.get(name, "") != value for name, value in settings.items()):
        # They decide what the tables hold, here and in the workers: begin again with them.
        os.environ.update(settings)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.argv])
    options.only, options.contenders = options.only.split(","), options.contenders.split(",")
    options.cases = options.cases.split(",") if options.cases else None
    cases = [name for section in SECTIONS.values() for name in section.table.cases]
    for names, allowed in ((options.only, list(SECTIONS)), (options.contenders, known), (options.cases or [], cases)):
        if unknown := sorted(set(names) - set(allowed)):
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(allowed)}")
    if options.rounds < 1 or options.jobs < 1:
        parser.error("--rounds and --jobs must be 1 or more")
    report = run(options)
    rows = [case["rows"] for found in report["tables"].values() for case in found["cases"].values()]
    failed = {name for each in rows for name, row in each.items() if "failed" in row}
    if failed:
        raise SystemExit(f"did not run to the end (see above): {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
