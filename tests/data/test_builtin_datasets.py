"""The data sets that come by name."""

import subprocess
import sys

import numpy as np
import pytest

from xpnn.data import DATASETS, load_dataset
from xpnn.errors import DataError

SHAPES = {
    "xor": (4, 2),
    "xnor": (4, 2),
    "iris": (150, 4),
    "digits": (1797, 64),
    "wine": (178, 13),
    "breast_cancer": (569, 30),
    "diabetes": (442, 10),
}


def test_all_of_them_are_tested():
    assert set(SHAPES) == set(DATASETS)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_names(name):
    table = load_dataset(name)
    assert table.x.shape == SHAPES[name]
    assert table.y.shape == (SHAPES[name][0],)
    assert len(table.features) == SHAPES[name][1]
    assert np.isfinite(table.x).all()
    if table.task == "classification":
        assert set(table.y.tolist()) == set(range(len(table.class_names)))
    else:
        assert name == "diabetes"


def test_the_gates_are_opposite():
    assert load_dataset("xor").y.tolist() == [0, 1, 1, 0]
    assert load_dataset("xnor").y.tolist() == [1, 0, 0, 1]


def test_an_unknown_name():
    with pytest.raises(DataError, match="no data set is called 'mnist'; there are: xor, xnor, iris"):
        load_dataset("mnist")


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r'comes with scikit-learn.*pip install "xpnn\[data\]"') as caught:
        load_dataset("iris")
    assert "\n" not in str(caught.value)


def test_importing_the_readers_loads_neither_pandas_nor_scikit_learn():
    heavy = ("pandas", "sklearn", "pyarrow", "PIL", "numpy")
    code = f"import sys, xpnn.data; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
