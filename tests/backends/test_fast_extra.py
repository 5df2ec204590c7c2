"""The `fast` extra: everything works without it, and says what is missing."""

import os
import subprocess
import sys

import pytest

import xpnn
from xpnn_backends import fast
from xpnn_backends.numpy_backend import NumpyBackend

TRAINING = """
import numpy as np
import xpnn
X = np.linspace(-1.0, 1.0, 60).reshape(20, 3)
net = xpnn.Network(xpnn.Dense(5), xpnn.Tanh(), xpnn.Dropout(0.2), xpnn.Dense(2), dtype="float64", seed=1)
schedule = xpnn.schedules.Warmup(3, then=0.01)
history = net.fit(X, np.arange(20) % 2, loss="cross_entropy", optimizer=xpnn.Adam(schedule), epochs=3, batch_size=8,
                  metrics=["accuracy"], validation_split=0.2, verbose=0)
print("result", *history["loss"], *history["val_loss"], float(net.predict(X).sum()))
"""

REPORT = """
import sys
from xpnn.backend import describe_backends
from xpnn_backends import fast
from xpnn.errors import BackendError
import xpnn.cli
[here] = [each for each in describe_backends() if each.name == "numpy"]
assert here.reason is None
for notice in here.notices:
    print("notice", notice)
print("native", xpnn.get_backend("numpy").native, "xpnn_backends.native.machine" in sys.modules)
try:
    xpnn.get_backend("numpy:fast")
except BackendError as error:
    print("refusal", error)
assert xpnn.cli.run(["backends"]) == 0
"""

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def in_its_own_process(script, path=None, **variables):
    """The lines that a Python script prints."""
    search = os.pathsep.join([*([str(path)] if path else []), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": search, "COLUMNS": "200"}
    environment.pop("XPNN_FAST", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "default::DeprecationWarning", "-c", script],
        capture_output=True, text=True, env={**environment, **variables}, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def starting(lines, word):
    return [line.removeprefix(word + " ") for line in lines if line.startswith(word + " ")]


def numbers(lines):
    """What the training in a process gave."""
    [result] = starting(lines, "result")
    return list(map(float, result.split()))


def check_report(lines):
    """There are no native kernels, and exactly one line says so; returns it."""
    assert starting(lines, "native") == ["False False"]
    [notice] = [notice for notice in starting(lines, "notice") if "native kernels" in notice]
    assert [line for line in lines if line.startswith("numpy: native kernels")] == [f"numpy: {notice}"]
    assert starting(lines, "refusal") == [f"backend 'numpy:fast': {notice}"]
    return notice


@pytest.fixture(scope="module")
def wanted():
    """The results without native kernels, as this process has them."""
    backend = xpnn.get_backend("numpy:compiled")
    assert not backend.native
    printed = []
    with xpnn.use_backend(backend):
        exec(TRAINING, {"print": lambda _, *found: printed.extend(found)})
    return printed


@pytest.mark.parametrize("name", ["numba", "threadpoolctl"])
def test_without_a_package_of_the_extra_everything_works(name, wanted):
    lines = in_its_own_process(HIDE.format(name=name) + TRAINING + REPORT)
    assert numbers(lines) == pytest.approx(wanted, rel=1e-9)
    notice = check_report(lines)
    assert notice == f'native kernels are off: {name} is not installed; pip install "xpnn[fast]"'


def test_the_variable_turns_native_kernels_off(wanted):
    script = TRAINING + REPORT + 'assert "numba" not in sys.modules\n'
    lines = in_its_own_process(script, XPNN_FAST="0")
    assert numbers(lines) == pytest.approx(wanted, rel=1e-9)
    assert "XPNN_FAST=0" in check_report(lines)


@pytest.mark.parametrize("error", ["ImportError('Numba needs\\nNumPy 1.0 or less')", "SystemError()"])
def test_a_numba_that_does_not_load_is_a_notice(error, wanted, tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(f"raise {error}\n")
    lines = in_its_own_process(TRAINING + REPORT, tmp_path)
    assert numbers(lines) == pytest.approx(wanted, rel=1e-9)
    notice = check_report(lines)
    assert notice.startswith("native kernels are off: Numba does not load: ")
    assert error.partition("(")[0] in notice


def test_numba_is_loaded_by_the_first_step_that_is_compiled():
    lines = in_its_own_process("""
import sys
import numpy as np
import xpnn
net = xpnn.Network(xpnn.Dense(2), input_shape=(3,), backend="numpy")
print("loaded", "numba" in sys.modules)
""")
    assert lines == ["loaded False"]


def test_the_device_for_tests_has_no_native_kernels():
    assert not NumpyBackend("compiled").native
    assert NumpyBackend().native is (fast.why_not() is None)


@pytest.mark.skipif(fast.why_not() is not None, reason=str(fast.why_not()))
def test_with_the_extra_the_results_are_the_same_but_for_rounding(wanted):
    lines = in_its_own_process(TRAINING + "assert net.backend.native\n")
    assert numbers(lines) == pytest.approx(wanted, rel=1e-9)
