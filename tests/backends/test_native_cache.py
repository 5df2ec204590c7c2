"""Kernels that several processes compile and keep on disk, and others find there: each computes its own function."""

import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from xpnn_backends.fast import why_not

if why_not():
    pytest.skip(why_not(), allow_module_level=True)

# Computes the functions that it is told, in that order, each as a program of its own, and prints the results.
SCRIPT = """
import json, sys
import numpy as np
from xpnn_backends import fast
from xpnn_backends.native import registry
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import NAMESPACE, Recorder

registry.what_was_compiled()
registry.what_was_compiled = lambda: (0, 0.0)  # a program asks for the counts, which would begin anew
results = []
for name, dtype in json.loads(sys.argv[1]):
    recorder = Recorder()
    x = np.arange(1.0, 21.0).astype(dtype)
    result = getattr(NAMESPACE, name)(recorder.input(x))
    recorder.call(KEEP, result)
    program = Program(recorder, [x], True)
    program.run(0)
    assert program._machine.length == 1
    results.append(float(program.array(result)))
assert fast.why_not() is None, fast.why_not()
print(json.dumps([results, registry._compiling[0]]))
"""
KERNEL_NAME = """
from xpnn_backends.native import reductions, registry
print(registry.compiled(reductions.declared("sum", "f8", "f8"), "f4").native_name)
"""
BOTH = ("float32", "float64")


def start(folder, script, *arguments):
    """A process that keeps its kernels in that folder."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    environment.pop("XPNN_FAST", None)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def output(process):
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return printed


def starts_computing(folder, functions):
    return start(folder, SCRIPT, json.dumps(functions))


def check(process, functions):
    """All results are NumPy's. Returns how many kernels were compiled."""
    results, compiled = json.loads(output(process))
    wanted = [float(getattr(np, name)(np.arange(1.0, 21.0).astype(dtype))) for name, dtype in functions]
    assert dict(zip(map(tuple, functions), results, strict=True)) == dict(zip(functions, wanted, strict=True))
    return compiled


def test_kernels_of_two_processes_stay_apart_in_a_third(tmp_path):
    """Sum and maximum each call a function `fold`, as number so-and-so of those that their process had compiled."""
    check(starts_computing(tmp_path, []), [])  # what every process needs
    total, largest = ("sum", "float64"), ("max", "float64")
    assert check(starts_computing(tmp_path, [total]), [total]) == 1
    assert check(starts_computing(tmp_path, [largest]), [largest]) == 1
    for both in ([total, largest], [largest, total]):
        assert check(starts_computing(tmp_path, both), both) == 0


def test_two_processes_give_no_function_the_same_name(tmp_path):
    names = [output(start(tmp_path / folder, KERNEL_NAME)) for folder in ("first", "second")]
    assert names[0].startswith("cfunc.")
    assert names[0] != names[1]


def test_processes_that_compile_at_once_and_one_that_is_killed(tmp_path):
    functions = [(name, dtype) for dtype in BOTH for name in ("sum", "max", "min", "argmax")]
    orders = [functions, functions[::-1], functions[4:] + functions[:4]]
    killed = starts_computing(tmp_path, functions)
    processes = [starts_computing(tmp_path, order) for order in orders]
    while killed.poll() is None:
        if any(tmp_path.rglob("*sum*.nbi")):
            killed.kill()
        time.sleep(0.01)
    killed.communicate()
    assert sum([check(process, order) for process, order in zip(processes, orders, strict=True)]) >= len(functions)
    # Other processes find all of them, in any order.
    for order in orders[:2]:
        assert check(starts_computing(tmp_path, order), order) == 0
    indices = sorted(tmp_path.rglob("*.nbi"))
    assert indices
    # No two kernels share an index: then no index can call one by the number of another.
    assert not list(tmp_path.rglob("*.2.nbc"))
    for path in indices:
        with path.open("rb") as file:
            pickle.load(file)
            _, kept = pickle.load(file)
        assert len(kept) == 1
