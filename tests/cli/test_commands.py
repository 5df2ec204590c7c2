"""The command itself, and those that tell of backends and gradients."""

import re
import subprocess
import sys

import xpnn
from xpnn.cli.backends import aligned


def test_version(call, command):
    assert call("--version").out == f"xpnn {xpnn.__version__}\n"
    assert command("--version").out == f"xpnn {xpnn.__version__}\n"


def test_alone_it_shows_the_help_and_fails(call):
    result = call()
    assert result.code == 2
    for name in ("train", "predict", "backends", "check"):
        assert name in result.out


def test_help_of_a_command(call):
    result = call("train", "--help")
    assert result.code == 0
    for option in ("--target", "--layers", "--backend", "--save", "--plot", "--patience"):
        assert option in result.out


def test_importing_the_command_line_is_light(environment):
    heavy = ("numpy", "pandas", "sklearn", "matplotlib", "safetensors", "torch", "jax", "cupy")
    code = f"import sys, xpnn.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_backends_lists_every_one_with_its_state(call):
    result = call("backends")
    assert result.code == 0
    lines = result.out.partition("\n\n")[0].splitlines()
    states = {line.split()[0]: line for line in lines[1:]}
    for name, reason in xpnn.available_backends().items():
        if reason is None:
            assert re.search(r"\byes\b", states[name])
        else:
            assert reason in states[name]
    import numpy

    assert numpy.__version__ in states["numpy"]
    assert "linear" in result.out.partition("\n\n")[2]


def test_columns_stand_below_each_other():
    assert aligned(("a", "b"), [("long", "x"), ("", "y")]) == "a     b\nlong  x\n      y"


def test_a_long_last_column_goes_on_below_itself():
    text = aligned(("a", "b"), [("long", "one two three four five six seven")], width=36)
    assert text == "a     b\nlong  one two three four five six\n      seven"


def test_check_of_nothing_is_no_success(call, monkeypatch):
    monkeypatch.setattr("xpnn.testing.rows.why_not", lambda name: "not today")
    result = call("check", "--backends", "numpy")
    assert result.code == 1
    assert result.err == "xpnn: nothing was checked: none of these rows can run here\n"


def test_check_passes_on_numpy(call, tmp_path):
    result = call("check", "--backends", "numpy", "--require", "numpy", "--report", tmp_path / "r.html")
    assert result.code == 0, result.out
    for op in xpnn.dispatch.OPS:
        assert op in result.out
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "softmax" in page


def test_check_fails_where_a_derivative_is_wrong(call, monkeypatch):
    from xpnn.dispatch import OPS, refresh_bodies

    op = OPS["tanh"]
    right = op.generic

    def wrong(x):
        y, vjp = right(x)
        return y, lambda dy: (vjp(dy)[0] * 1.001,)

    refresh_bodies()
    monkeypatch.setattr(op, "generic", wrong)
    try:
        result = call("check", "--backends", "strict")
    finally:
        monkeypatch.undo()
        refresh_bodies()
    assert result.code == 1
    assert "FAILED tanh on strict" in result.out


def test_check_fails_where_a_required_row_cannot_run(call, monkeypatch):
    monkeypatch.setattr("xpnn.testing.rows.why_not", lambda name: "not today" if name == "jax" else None)
    result = call("check", "--backends", "numpy,jax", "--require", "jax")
    assert result.code == 1
    assert "required row jax did not run: not today" in result.err


def test_what_a_missing_library_is_told_with(call, monkeypatch, tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n1,0\n2,1\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    result = call("train", tmp_path / "t.csv", "--target", "y")
    assert result.code == 2
    assert 'pip install "xpnn[data]"' in result.err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call("train", "xor", "--plot", tmp_path / "c.png")
    assert result.code == 2
    assert 'pip install "xpnn[plot]"' in result.err
    assert result.err.count("\n") == 1
