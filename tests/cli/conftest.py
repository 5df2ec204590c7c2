"""The command line, run in this process (fast) or in one of its own (exact)."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from xpnn.cli import run


class Result(NamedTuple):
    code: int
    out: str
    err: str


def process_environment():
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "NO_COLOR": "1"}


@pytest.fixture
def call(capsys):
    """call("train", "xor", ...) -> Result, in this process."""

    def in_process(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return in_process


@pytest.fixture
def command():
    """command("train", "xor", ...) -> Result, in a process of its own."""

    def in_its_own(*arguments):
        full = [sys.executable, "-m", "xpnn", *(str(argument) for argument in arguments)]
        done = subprocess.run(full, capture_output=True, text=True, env=process_environment(), check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return in_its_own


@pytest.fixture
def environment():
    """The variables for a process that imports this checkout."""
    return process_environment()


@pytest.fixture
def flowers(tmp_path):
    """A CSV with the iris flowers; the species is text."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    lines = ["sepal length,sepal width,petal length,petal width,species"]
    for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True):
        lines.append(",".join([*map(repr, row), str(bunch.target_names[label])]))
    path = tmp_path / "flowers.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
