"""Native lists on several threads: the same results, no deadlock, and a clean end."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import xpnn
from xpnn.training.step import make_step
from xpnn_backends import fast
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.numpy_backend import NumpyBackend
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import Recorder

if fast.why_not():
    pytest.skip(fast.why_not(), allow_module_level=True)


assert NumpyBackend  # it makes recorded arrays known to the dispatch table

ROWS, COLUMNS = 300, 257  # enough elements that calls are split, and no multiple of a vector
X = np.random.default_rng(0).standard_normal((ROWS, COLUMNS))


def record(function, *arrays):
    """(program, its result) of function(*stand-ins)."""
    recorder = Recorder()
    result = function(*map(recorder.input, arrays))
    recorder.call(KEEP, result)
    program = Program(recorder, arrays, True)
    return program, program.array(result)


def namespace_of(x):
    return xpnn.dispatch.namespace(x)


SPLIT = {
    "arithmetic": lambda x: x * 2.0 + x,
    "transposed": lambda x: x.T - 1.0,
    "tanh": lambda x: xpnn.ops.tanh(x)[0],
    "gelu": lambda x: xpnn.ops.gelu(x)[0],
    "row sums": lambda x: namespace_of(x).sum(x, axis=1),
    "column sums": lambda x: namespace_of(x).sum(x, axis=0),
    "sum": lambda x: namespace_of(x).sum(x),
    "mean of squares": lambda x: namespace_of(x).mean(x * x),
    "largest": lambda x: namespace_of(x).max(x, axis=0),
    "softmax": lambda x: xpnn.ops.softmax(x)[0],
    "small after large": lambda x: (x * 3.0)[:2, :2] + 1.0,
    "scatter": lambda x: xpnn.ops.relu(x)[1](x)[0],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", SPLIT.values(), ids=SPLIT)
def test_results_do_not_depend_on_the_number_of_threads(function, dtype, use_threads):
    x = X.astype(dtype)
    results = []
    for parts in (1, 2, 3):
        use_threads(parts)
        program, result = record(function, x)
        for _ in range(3):
            result[...] = 7.0
            program.run(0)
            results.append(result.copy())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def step_and_state(dtype):
    net = xpnn.Network(
        xpnn.Dense(160), xpnn.ReLU(), xpnn.Dense(160), xpnn.Tanh(), xpnn.Dense(10),
        input_shape=(COLUMNS,), dtype=dtype, seed=2,
    )  # fmt: skip
    optimizer, loss = xpnn.SGD(0.1, momentum=0.9), xpnn.CrossEntropy()
    batch = net.prepare(X.astype(dtype), np.arange(ROWS) % 10, loss)
    step = make_step(net.root, net.layout, loss, optimizer)
    return CompiledStep(step, True), net.initial_state(optimizer, loss), batch


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_on_any_number_of_threads(dtype, use_threads):
    """Products are split into blocks, which OpenBLAS may add up in another order: they agree but for rounding."""
    found = {}
    for parts in (1, 2, 3):
        use_threads(parts)
        for _ in range(2):
            compiled, state, batch = step_and_state(dtype)
            values = []
            for _ in range(4):
                state, value = compiled(state, batch)
                values.append(value)
            assert compiled.why_not is None
            found.setdefault(parts, []).append((values, state.theta[0].copy()))
    for values, theta in (each for runs in found.values() for each in runs):
        tolerance = 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(values, found[1][0][0], rtol=tolerance)
        np.testing.assert_allclose(theta, found[1][0][1], rtol=0.0, atol=tolerance)
    for (values, theta), (again, theta_again) in found.values():
        assert values == again
        np.testing.assert_array_equal(theta, theta_again)


def test_two_programs_of_two_threads_at_once(use_threads):
    use_threads(2)
    x = X.astype(np.float32)
    programs = [record(SPLIT["arithmetic"], x * np.float32(factor)) for factor in (1.0, 2.0)]
    wrong = []

    def repeat(program, result, wanted):
        for _ in range(100):
            result[...] = 0.0
            program.run(0)
            if not np.array_equal(result, wanted):
                wrong.append(result.copy())

    running = []
    for (program, result), factor in zip(programs, (1.0, 2.0), strict=True):
        wanted = (x * np.float32(factor)) * np.float32(2.0) + x * np.float32(factor)
        running.append(threading.Thread(target=repeat, args=(program, result, wanted), daemon=True))
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_one_more_thread_is_started_for_each_further_part(use_threads):
    before = threading.active_count()
    use_threads(3)
    program, _ = record(SPLIT["arithmetic"], X)
    assert threading.active_count() == before
    for _ in range(20):
        program.run(0)
    assert threading.active_count() == before + 2


def test_a_small_step_needs_no_threads(use_threads):
    before = threading.active_count()
    use_threads(2)
    program, result = record(SPLIT["arithmetic"], X[:5, :5].copy())
    program.run(0)
    np.testing.assert_array_equal(result, X[:5, :5] * 2.0 + X[:5, :5])
    assert threading.active_count() == before


# What may hang is tried in a process of its own, which gives up after a while.

BEGIN = """
import faulthandler, os, signal, sys, threading, time
faulthandler.dump_traceback_later(120, exit=True)
import numpy as np
import xpnn
from xpnn_backends import numpy_backend
from xpnn_backends.native import machine, threads
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import Recorder
threads.core_count = lambda: 2

def make(x):
    recorder = Recorder()
    y = recorder.input(x)
    for _ in range(4):
        y = y * 2.0 - 1.0
    recorder.call(KEEP, y)
    return Program(recorder, [x], True), y

x = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float32)
program, y = make(x)
wanted = x
for _ in range(4):
    wanted = wanted * np.float32(2.0) - np.float32(1.0)

def run_and_check():
    program.array(y)[...] = 0.0
    program.run(0)
    assert np.array_equal(program.array(y), wanted)

"""

ON_TWO = """
machine.Blas.threads = lambda self: 2  # OpenBLAS takes no more threads than there are cores
run_and_check()
assert threading.active_count() == 2, threading.enumerate()
"""


def in_its_own_process(script):
    """The output of a script that begins with BEGIN, in a process where OpenBLAS may have two threads."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        capture_output=True, text=True, env=environment, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_thousands_of_short_lists_with_pauses():
    """Threads that wait in a loop, that give way, and that sleep, are all found and woken."""
    in_its_own_process(
        ON_TWO
        + """
pauses = np.random.default_rng(1).choice([0.0, 0.0, 1e-5, 2e-4, 4e-4, 1e-3], 1500)
for pause in pauses.tolist():
    run_and_check()
    if pause:
        time.sleep(pause)
"""
    )


def test_a_child_process_has_threads_of_its_own():
    in_its_own_process(
        ON_TWO
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python, which warns of forks beside threads
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            run_and_check()
            run_and_check()
            other, z = make(x)
            other.run(0)
            assert np.array_equal(other.array(z), wanted)
            os._exit(0)
        finally:
            os._exit(1)
    run_and_check()
    _, status = os.waitpid(child, 0)
    assert status == 0, status
run_and_check()
"""
    )


def test_the_end_of_a_process_waits_for_no_thread():
    for ending in ("run_and_check()", "time.sleep(0.05)"):
        assert in_its_own_process(ON_TWO + ending) == ""


def test_the_number_of_threads_of_products_is_as_before():
    in_its_own_process("""
from threadpoolctl import threadpool_info, threadpool_limits

def counts():
    return [library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"]

before = counts()
run_and_check()
assert counts() == before, (counts(), before)
for limit in (1, 2, 3):
    with threadpool_limits(limit, user_api="blas"):
        limited = counts()
        run_and_check()
        assert counts() == limited, (counts(), limited)
        a = np.ones((300, 300))
        assert (a @ a == 300.0).all()
    run_and_check()
assert counts() == before, (counts(), before)
""")


TRAINING = """
import hashlib
net = xpnn.Network(xpnn.Dense(192), xpnn.ReLU(), xpnn.Dropout(0.2), xpnn.Dense(10), dtype="float32", seed=4)
X = np.random.default_rng(0).standard_normal((768, 190)).astype(np.float32)
net.fit(X, np.arange(768) % 10, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=256, verbose=0)
print(hashlib.sha256(b"".join(array.tobytes() for array in net.parameters.values())).hexdigest())
"""


def test_two_processes_train_to_the_same_bits():
    for count in (1, 2):
        script = f"machine.Blas.threads = lambda self: {count}\n{TRAINING}"
        first, second = in_its_own_process(script), in_its_own_process(script)
        assert len(first.strip()) == 64
        assert first == second
