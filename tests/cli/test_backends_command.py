"""`xpnn backends`: the overrides in use, and the notices."""

import pytest

from xpnn import dispatch
from xpnn.backend import BackendInfo, Memory

TABLE = [
    BackendInfo("numpy", "2.4", None, ("cpu",), ("adam", "linear"), ("the first notice", "the second")),
    BackendInfo("cupy", "-", "not installed", (), ()),
    BackendInfo("torch", "2.13", None, ("cpu",), (), ("a third",)),
]


@pytest.fixture
def table(monkeypatch):
    def show(lines):
        monkeypatch.setattr("xpnn.cli.backends.describe_backends", lambda: lines)

    return show


def test_notices_stand_below_the_table_one_line_each(call, table):
    table(TABLE)
    blocks = call("backends").out.rstrip("\n").split("\n\n")
    assert len(blocks) == 3
    assert blocks[2].splitlines() == ["numpy: the first notice", "numpy: the second", "torch: a third"]


def test_without_notices_the_output_ends_with_the_overrides(call, table):
    table([line._replace(notices=()) for line in TABLE])
    out = call("backends").out
    assert len(out.rstrip("\n").split("\n\n")) == 2
    assert out.endswith("none\n")


def test_memory_is_shown_where_a_library_keeps_account_of_it(call, table):
    memory = {"0": Memory(60 << 30, 80 << 30, 3 << 29, 1 << 28), "1": Memory(0, 80 << 30, 0, 0)}
    table([TABLE[0], BackendInfo("cupy", "14.2.0", None, ("0", "1"), (), (), memory)])
    blocks = call("backends").out.rstrip("\n").split("\n\n")
    assert len(blocks) == 4
    assert [line.split() for line in blocks[2].splitlines()[1:]] == [
        ["cupy:0", "60.00", "GiB", "80.00", "GiB", "1.50", "GiB", "0.25", "GiB"],
        ["cupy:1", "0.00", "GiB", "80.00", "GiB", "0.00", "GiB", "0.00", "GiB"],
    ]


def test_overrides_that_are_switched_off_are_listed_as_such(call):
    with dispatch.without_overrides():
        own_code = call("backends").out.split("\n\n")[1]
    assert own_code.splitlines()[1] == "numpy    none: switched off by the variable XPNN_OVERRIDES"
    assert "linear" not in own_code


def test_variable_reaches_the_command(command, monkeypatch):
    monkeypatch.setenv("XPNN_OVERRIDES", "0")
    result = command("backends")
    assert result.code == 0
    assert "linear" not in result.out
    assert "switched off by the variable XPNN_OVERRIDES" in result.out


def test_the_cost_of_older_kernels_is_said_by_the_command_and_by_no_other(command, monkeypatch):
    from xpnn_backends import blas

    here = blas.processor()
    if here is None or "avx2" not in here.flags or blas.running_kernels() is None:
        pytest.skip("NumPy's BLAS is no OpenBLAS with Haswell's kernels here")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    result = command("backends")
    lost = blas.notice_for(here, "Haswell", "Haswell", False)
    assert result.code == 0
    assert result.out.count("Haswell") == (0 if lost is None else 2)
    assert lost is None or f"numpy: {lost}\n" in result.out
    result = command("train", "xor", "--epochs", "1")
    assert "Haswell" not in result.out + result.err
