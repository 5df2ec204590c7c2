"""From recorded calls to native ones: what does not fit runs in Python; how kernels are compiled and kept."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import xpnn_backends
from xpnn.errors import BackendError
from xpnn_backends import fast
from xpnn_backends.numpy_backend import NumpyBackend
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import Kernel, Recorder

if fast.why_not():
    pytest.skip(fast.why_not(), allow_module_level=True)

from xpnn_backends.native import machine, registry

F4, F8, I8 = np.float32, np.float64, np.int64


def column_sums(x, out):
    np.sum(x, axis=0, out=out, dtype=out.dtype)


def averaged(average, new, decay):
    average[...] = decay * average + (1.0 - decay) * new


def copied(x, out):
    out[...] = x


def run(name, function, *operands, writes=-1):
    """(was it Python that ran it, the array that was written) for one call of a kernel."""
    by_python = []

    def spy(*arrays):
        by_python.append(name)
        function(*arrays)

    recorder = Recorder()
    arrays = [operand.copy() for operand in operands if isinstance(operand, np.ndarray)]
    given = iter([recorder.input(array) for array in arrays])
    stand_ins = [next(given) if isinstance(each, np.ndarray) else each for each in operands]
    stand_ins = [each(recorder) if callable(each) else each for each in stand_ins]
    recorder.call(Kernel(name, spy, name, (writes,)), *stand_ins)
    recorder.call(KEEP, stand_ins[writes])
    program = Program(recorder, arrays, True)
    program.run(0)
    return bool(by_python), program.array(stand_ins[writes]).copy()


X = np.arange(24.0).reshape(6, 4)

FITTING = {
    "float32": (F4, F4),
    "float64": (F8, F8),
}
NOT_FITTING = {
    "two dtypes": (F4, F8),
    "integers": (I8, I8),
    "integers into floats": (I8, F4),
    "half floats": (np.float16, np.float16),
    "bools": (np.bool_, F4),
}


@pytest.mark.parametrize(("left", "right"), FITTING.values(), ids=FITTING)
def test_operands_that_fit_run_natively(left, right):
    by_python, result = run("bias_gradient", column_sums, X.astype(left), np.zeros(4, right))
    assert not by_python
    np.testing.assert_array_equal(result, X.sum(axis=0))


@pytest.mark.parametrize(("left", "right"), NOT_FITTING.values(), ids=NOT_FITTING)
def test_operands_of_other_dtypes_run_in_python(left, right):
    x = X.astype(left)
    by_python, result = run("bias_gradient", column_sums, x, np.zeros(4, right))
    assert by_python
    assert result.dtype == right
    np.testing.assert_array_equal(result, x.sum(axis=0))


VIEWS = {
    "transposed": lambda x: x.T,
    "columns": lambda x: x[:, :2],
    "every second row": lambda x: x[::2, :],
    "reversed": lambda x: x[::-1, ...],
    "three axes": lambda x: x[None, :, :],
    "one axis": lambda x: x[0, :],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_operands_of_another_layout_run_in_python(view):
    wanted = view(X).sum(axis=0)
    array, out = X.astype(F4), np.zeros(wanted.shape, F4)
    by_python = []

    def spy(x, out):
        by_python.append(x.shape)
        out[...] = x.sum(axis=0)

    recorder = Recorder()
    stand_in, result = recorder.input(array), recorder.input(out)
    recorder.call(Kernel("bias_gradient", spy, "bias_gradient"), view(stand_in), result)
    program = Program(recorder, [array, out], True)
    program.run(0)
    assert by_python == [view(X).shape]
    np.testing.assert_array_equal(out, wanted)


def test_rows_of_an_array_run_natively():
    array, out = X.astype(F4), np.zeros(4, F4)
    recorder = Recorder()
    stand_in, result = recorder.input(array), recorder.input(out)

    def never(*_):
        raise AssertionError("Python ran it")

    recorder.call(Kernel("bias_gradient", never, "bias_gradient"), stand_in[2:5, :], result)
    Program(recorder, [array, out], True).run(0)
    np.testing.assert_array_equal(out, X[2:5].sum(axis=0))


def test_numbers_and_what_is_none():
    average, new = np.ones(5, F4), np.arange(5, dtype=F4)
    for decay, python in ((0.5, False), (True, False), (1, False), (np.float64(0.5), False)):
        by_python, result = run("moving_average", averaged, average, new, decay, writes=0)
        assert by_python is python
        np.testing.assert_array_equal(result, float(decay) * average + (1.0 - float(decay)) * new)
    by_python, result = run("moving_average", averaged, average, new, np.full(5, 0.5, F4), writes=0)
    assert by_python
    by_python, result = run("moving_average", averaged, average, new, lambda recorder: recorder.step * 0.5, writes=0)
    assert not by_python
    np.testing.assert_array_equal(result, new)  # at step 0


def test_another_number_of_operands_runs_in_python():
    by_python, _ = run("bias_gradient", lambda x, y, out: column_sums(x, out), X, X, np.zeros(4))
    assert by_python


def test_a_kernel_that_is_not_known_runs_in_python():
    by_python, result = run("no such kernel", column_sums, X, np.zeros(4))
    assert by_python
    np.testing.assert_array_equal(result, X.sum(axis=0))


def test_python_and_native_calls_in_turn():
    x = np.linspace(-1, 1, 12, dtype=F4)
    order = []

    def in_python(x, out):
        order.append("python")
        np.add(x, 1, out=out)

    recorder = Recorder()
    y = recorder.input(x)
    for _ in range(3):
        made = recorder.empty((12,), F4)
        recorder.call(Kernel("in python", in_python), y, made)
        y = (made * 2.0) - 3.0
    recorder.call(KEEP, y)
    program = Program(recorder, [x], True)
    wanted = x
    for _ in range(3):
        wanted = (wanted + F4(1)) * F4(2) - F4(3)
    for _ in range(2):
        program.run(0)
        np.testing.assert_array_equal(program.array(y), wanted)
    assert order == ["python"] * 6


def test_without_openblas_products_run_in_numpy(monkeypatch):
    monkeypatch.setattr(machine, "_openblas", lambda: None)
    monkeypatch.setattr(machine, "_POOL", machine._Pool())
    x = X.astype(F4)
    recorder = Recorder()
    result = recorder.input(x) @ recorder.input(np.ascontiguousarray(x.T)) + 1.0
    recorder.call(KEEP, result)
    program = Program(recorder, [x, np.ascontiguousarray(x.T)], True)
    program.run(0)
    np.testing.assert_array_equal(program.array(result), x @ x.T + 1.0)


# Kernels that do not compile.


def not_for_numba(part, parts, x, out):
    """Numba has no such thing."""
    with open("nowhere") as file:
        out[0] = file.read() + x


@pytest.fixture
def planted(monkeypatch):
    """A kernel that does not compile; what comes of it is forgotten after the test."""
    registry.kernel("T:1 T:1")(not_for_numba)
    monkeypatch.setattr(fast, "_broken", [])
    yield Kernel("not_for_numba", copied, "not_for_numba")
    del registry.KERNELS["not_for_numba"]


def test_a_kernel_that_does_not_compile_runs_in_python(planted, caplog):
    x = np.arange(5.0)
    recorder = Recorder()
    before = recorder.input(x) * 2.0
    results = [recorder.empty((5,), F8) for _ in range(2)]
    recorder.call(planted, before, results[0])
    recorder.call(planted, results[0], results[1])
    after = results[1] + 1.0
    recorder.call(KEEP, after)
    assert fast.why_not() is None
    with caplog.at_level("WARNING", "xpnn"):
        program = Program(recorder, [x], True)
    for factor in (1.0, -2.0):
        program.bind(0, factor * x)
        program.run(0)
        np.testing.assert_array_equal(program.array(after), 2.0 * factor * x + 1.0)
    notices = [notice for notice in NumpyBackend.notices() if "native kernels" in notice]
    assert len(notices) == 1
    assert "\n" not in notices[0]
    assert len(caplog.messages) == 1
    assert not NumpyBackend().native
    with pytest.raises(BackendError, match="native kernels are off"):
        NumpyBackend("fast")


def test_what_was_made_before_goes_on_natively(planted):
    x = np.arange(5, dtype=F4)
    recorder = Recorder()
    result = recorder.input(x) * 2.0
    recorder.call(KEEP, result)
    program = Program(recorder, [x], True)
    broken = Recorder()
    broken.call(planted, broken.input(x), broken.input(np.zeros(5, F4)))
    Program(broken, [x, np.zeros(5, F4)], True).run(0)
    assert fast.why_not() is not None
    program.run(0)
    np.testing.assert_array_equal(program.array(result), 2.0 * x)


# What compiling tells.


@pytest.mark.parametrize(("seconds", "said"), [(0.0, False), (0.9, False), (2.54, True)])
def test_long_compiling_is_said_in_one_line(seconds, said, monkeypatch, capsys):
    monkeypatch.setattr(registry, "what_was_compiled", lambda: (7, seconds))
    x = np.ones(3, F4)
    recorder = Recorder()
    recorder.call(KEEP, recorder.input(x) * 2.0)
    Program(recorder, [x], True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == (["xpnn: compiled 7 kernels for this processor in 2.5 s; they are kept on disk"] * said)


SMALL_PROGRAM = """
import numpy as np
from xpnn_backends import fast, numpy_backend
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import Recorder
x = np.arange(6, dtype=np.float32).reshape(2, 3)
recorder = Recorder()
result = recorder.input(x).T * 2.0
recorder.call(KEEP, result)
program = Program(recorder, [x], True)
program.run(0)
assert fast.why_not() is None, fast.why_not()
assert program.is_one_list
print(program.array(result).tolist())
"""
OUTPUT = "[[0.0, 6.0], [2.0, 8.0], [4.0, 10.0]]\n"


def in_its_own_process(script, path=None, **variables):
    """(output, lines on stderr) of a Python script."""
    search = [path] if path else []
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, search), *(entry for entry in sys.path if entry)])
    environment.pop("XPNN_FAST", None)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()


def test_kernels_are_compiled_once_and_found_by_the_next_process(tmp_path):
    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    output, lines = in_its_own_process(SMALL_PROGRAM, NUMBA_CACHE_DIR=str(tmp_path))
    assert output == OUTPUT
    assert all(line.startswith("xpnn: compiled ") for line in lines)
    assert len(lines) <= 1
    kept = files()
    assert kept
    assert in_its_own_process(SMALL_PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) == (OUTPUT, [])
    assert files() == kept


def test_without_a_folder_for_kernels_they_are_compiled_each_time(tmp_path):
    """As with a package and a home that nobody may write to."""
    here = pathlib.Path(xpnn_backends.__file__).parent
    shutil.copytree(here, tmp_path / "xpnn_backends", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "xpnn_backends" / "native" / "__pycache__").write_text("no folder can be made here")
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    variables = {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere), "PYTHONDONTWRITEBYTECODE": "1"}
    script = SMALL_PROGRAM + f"assert fast.__file__.startswith({str(tmp_path)!r})\n"
    script += "from xpnn_backends.native import registry\nassert not registry.can_keep()\n"
    output, lines = in_its_own_process(script, tmp_path, **variables)
    assert output == OUTPUT
    assert all("Numba finds no folder to keep them in" in line for line in lines)
