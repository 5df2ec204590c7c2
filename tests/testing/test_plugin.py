"""The pytest plug-in, in the project of a user."""

import os
from pathlib import Path

import numpy
import pytest

import xpnn
import xpnn_backends

pytest_plugins = ["pytester"]

ROW_IDS = ["numpy", "numpy-readonly", "cupy", "strict", "strict-no64", "torch", "jax"]

LAYER = """
import xpnn

class Square(xpnn.Layer):
    def forward(self, x, parameters, run):
        return x * x, lambda dy: ({derivative}, {{}})

def test_square(backend, dtype):
    xpnn.testing.check_layer(Square(), input_shape=(4, 3), backend=backend, dtype=dtype)
"""

# Stands for a library that is not installed, whatever the machine has.
MISSING = """
import pytest
import xpnn.backend

xpnn.backend._BUILTIN["cupy"] = xpnn.backend._BUILTIN["cupy"]._replace(library="no_such_library")
pytest_plugins = ["xpnn.testing.plugin"]
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A folder of tests of a user's own, in which xpnn can be imported."""
    folders = [str(Path(module.__file__).parents[1]) for module in (xpnn, xpnn_backends, numpy)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    for name in ("XPNN_TEST_BACKENDS", "XPNN_REQUIRE_BACKENDS", "XPNN_BACKEND", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(MISSING)
    return pytester


def table(result):
    """Row id -> its line in the closing table."""
    lines = result.stdout.str().partition("xpnn backend matrix")[2].splitlines()
    return {line.split()[0]: line for line in lines if line.split() and line.split()[0] in ROW_IDS}


def test_three_lines_run_a_layer_on_every_row(project):
    project.makepyfile(LAYER.format(derivative="2.0 * x * dy"))
    result = project.runpytest_subprocess("-p", "no:xdist")
    assert result.ret == 0
    lines = table(result)
    assert list(lines) == ROW_IDS
    assert lines["numpy"].split()[1:5] == ["2", "0", "0", "0"]
    assert numpy.__version__ in lines["numpy"]
    assert "device1" in lines["strict"]
    assert lines["cupy"].split()[1:5] == ["0", "0", "2", "0"]
    assert "NOT RUN: no_such_library is not installed" in lines["cupy"]


def test_a_wrong_layer_fails(project):
    project.makepyfile(LAYER.format(derivative="x * dy"))
    result = project.runpytest_subprocess("--xpnn-backends=numpy")
    assert result.ret == 1
    assert "the gradient of 'input' is wrong" in result.stdout.str()
    assert table(result)["numpy"].split()[1:5] == ["1", "1", "0", "0"]


def test_required_row_that_is_missing_fails(project, monkeypatch):
    project.makepyfile("def test_it(backend): pass")
    monkeypatch.setenv("XPNN_TEST_BACKENDS", "numpy,cupy")
    monkeypatch.setenv("XPNN_REQUIRE_BACKENDS", "numpy,cupy")
    result = project.runpytest_subprocess()
    assert result.ret == 1
    output = result.stdout.str()
    assert "row 'cupy' is required and cannot run: no_such_library is not installed" in output
    assert "FAILED: row 'cupy' is required, and no test of it ran" in output
    assert table(result)["numpy"].split()[1:5] == ["2", "0", "0", "0"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def test_it(): pass", "no test of this row"),
        ("import pytest\n@pytest.mark.xpnn_rows(skip='numpy')\ndef test_it(backend): pass", "skipped by the tests"),
    ],
)
def test_required_row_without_a_test_fails(project, source, reason):
    project.makepyfile(source)
    result = project.runpytest_subprocess("--xpnn-require=numpy", "--xpnn-backends=numpy,strict")
    assert result.ret == 1
    assert "FAILED: row 'numpy' is required, and no test of it ran" in result.stdout.str()
    assert reason in table(result)["numpy"]


@pytest.mark.parametrize("how", ["XPNN_TEST_BACKENDS", "XPNN_REQUIRE_BACKENDS", "--xpnn-backends", "--xpnn-require"])
def test_unknown_row_is_a_usage_error(project, monkeypatch, how):
    project.makepyfile("def test_it(backend): pass")
    options = []
    if how.startswith("--"):
        options = [f"{how}=numpy,cuppy"]
    else:
        monkeypatch.setenv(how, "numpy,cuppy")
    result = project.runpytest_subprocess(*options)
    assert result.ret == 4
    assert (
        f"{how}: unknown row 'cuppy'; known rows: numpy, numpy-readonly, numpy-compiled, numpy-fast, cupy"
        in result.stderr.str()
    )


def test_selected_rows_alone_are_collected(project, monkeypatch):
    project.makepyfile("def test_it(backend, dtype): assert backend.name == 'numpy'")
    monkeypatch.setenv("XPNN_TEST_BACKENDS", "numpy")
    result = project.runpytest_subprocess("-v")
    result.assert_outcomes(passed=2)
    assert "test_it[numpy-float64]" in result.stdout.str()
    assert "NOT RUN: not selected" in table(result)["torch"]


def test_marker_chooses_rows(project):
    project.makepyfile(
        """
        import pytest

        @pytest.mark.xpnn_rows(only=["numpy", "strict"], skip="strict", dtypes="float64", reason="too strict")
        def test_it(backend, dtype):
            assert (backend.name, dtype) == ("numpy", "float64")
        """
    )
    result = project.runpytest_subprocess("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    assert "row strict: too strict" in result.stdout.str()


def test_test_whose_rows_are_not_selected_is_skipped(project):
    project.makepyfile("import pytest\n@pytest.mark.xpnn_rows(only='torch')\ndef test_it(backend): assert False")
    result = project.runpytest_subprocess("--xpnn-backends=numpy")
    result.assert_outcomes(skipped=1)


@pytest.mark.parametrize("mark", ["only='cuppy'", "dtypes='float16'", "rows='numpy'"])
def test_wrong_marker_is_an_error(project, mark):
    project.makepyfile(f"import pytest\n@pytest.mark.xpnn_rows({mark})\ndef test_it(backend): pass")
    result = project.runpytest_subprocess()
    assert result.ret != 0
    assert "xpnn_rows" in result.stdout.str() + result.stderr.str()


def test_expected_failure_is_counted_as_one(project):
    project.makepyfile("import pytest\n@pytest.mark.xfail\ndef test_it(backend): assert False")
    result = project.runpytest_subprocess("--xpnn-backends=numpy", "--xpnn-require=numpy")
    assert result.ret == 0
    assert table(result)["numpy"].split()[1:5] == ["0", "0", "0", "2"]


def test_table_is_complete_under_xdist(project):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    project.makepyfile(LAYER.format(derivative="2.0 * x * dy"))
    result = project.runpytest_subprocess("-n", "2", "--xpnn-backends=numpy,cupy,strict", "--xpnn-require=numpy")
    assert result.ret == 0
    lines = table(result)
    assert list(lines) == ROW_IDS
    assert lines["numpy"].split()[1:5] == ["2", "0", "0", "0"]
    assert lines["strict"].split()[1:5] == ["2", "0", "0", "0"]
    assert "no_such_library is not installed" in lines["cupy"]


def test_required_row_that_is_missing_fails_under_xdist(project):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    project.makepyfile("def test_it(backend): pass\ndef test_other(): pass")
    result = project.runpytest_subprocess("-n", "2", "--xpnn-backends=numpy", "--xpnn-require=strict")
    assert result.ret == 1
    assert "FAILED: row 'strict' is required, and no test of it ran" in result.stdout.str()


def test_session_that_does_not_use_it_is_left_alone(project):
    project.makepyfile(
        """
        import sys
        import pytest

        @pytest.fixture(params=["ours"])
        def backend(request):
            return request.param

        def test_own_fixture(backend):
            assert backend == "ours"
            assert not {"numpy", "torch", "jax", "cupy", "array_api_strict"} & set(sys.modules)
        """
    )
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    # pytest itself lists the distributions of its plug-ins; that is all that may be said of xpnn.
    lines = [line for line in result.stdout.lines if not line.startswith("plugins:")]
    assert not [line for line in lines if "xpnn" in line]
