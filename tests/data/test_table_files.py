"""CSV, Parquet and NPZ files: what is read, and what is refused with which words."""

import gzip
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from xpnn.data import read_features, read_table
from xpnn.errors import DataError

CSV = "a,b,kind\n1,2.5,cat\n3,4,dog\n-1e-3,6,cat\n"


def write(path, text):
    path.write_text(text)
    return path


def test_csv(tmp_path):
    table = read_table(write(tmp_path / "t.csv", CSV), "kind")
    assert table.features == ("a", "b")
    assert np.array_equal(table.x, [[1, 2.5], [3, 4], [-1e-3, 6]])
    assert table.x.dtype == np.float64
    assert table.y.tolist() == ["cat", "dog", "cat"]


@pytest.mark.parametrize("separator", [";", "\t", "|", ", "])
def test_other_separators(tmp_path, separator):
    table = read_table(write(tmp_path / "t.csv", CSV.replace(",", separator)), "kind")
    assert table.features == ("a", "b")
    assert table.y.tolist() == ["cat", "dog", "cat"]


def test_endings_in_capital_letters(tmp_path):
    assert read_table(write(tmp_path / "T.CSV", CSV), "kind").x.shape == (3, 2)
    (tmp_path / "T.CSV.GZ").write_bytes(gzip.compress(CSV.encode()))
    assert read_table(tmp_path / "T.CSV.GZ", "kind").x.shape == (3, 2)


def test_compressed_csv(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert read_table(tmp_path / "t.csv.gz", "kind").x.shape == (3, 2)
    assert read_features(tmp_path / "t.csv.gz", ("b",)).tolist() == [[2.5], [4.0], [6.0]]
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(CSV.replace(",", ";").encode()))
    assert read_table(tmp_path / "s.csv.gz", "kind").features == ("a", "b")


def test_numbers_keep_all_their_digits(tmp_path):
    values = np.random.default_rng(0).standard_normal(200)
    text = "a,y\n" + "".join(f"{value!r},{index}\n" for index, value in enumerate(values.tolist()))
    assert np.array_equal(read_table(write(tmp_path / "t.csv", text), "y").x[:, 0], values)


def test_dropped_columns_may_hold_anything(tmp_path):
    path = write(tmp_path / "t.csv", "name,a,y\nx,1,0\n,2,1\n")
    assert read_table(path, "y", ["name"]).features == ("a",)


def test_numbers_of_other_types(tmp_path):
    frame = pd.DataFrame({"a": [Decimal("1.5"), Decimal("-2.25")], "b": pd.Categorical(["3", "4"]), "y": ["u", "v"]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", "y").x.tolist() == [[1.5, 3.0], [-2.25, 4.0]]


def test_a_class_may_be_called_na(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "a,y\n1,NA\n2,None\n"), "y")
    assert table.y.tolist() == ["NA", "None"]


def test_true_and_false(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "a,y\nTrue,True\nFalse,False\n"), "y")
    assert table.x.tolist() == [[1.0], [0.0]]
    assert table.y.tolist() == ["True", "False"]


def test_parquet(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4], "y": ["u", "v"]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", "y")
    assert table.x.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert table.y.tolist() == ["u", "v"]


def test_npz(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.ones((3, 2, 2), np.float32), y=np.array([[0], [1], [1]]), other=np.zeros(7))
    table = read_table(tmp_path / "t.npz", None)
    assert table.x.shape == (3, 4)
    assert table.y.tolist() == [0, 1, 1]
    assert table.image


def test_npz_with_other_names(tmp_path):
    np.savez(tmp_path / "t.npz", inputs=np.ones((3, 2)), label=np.array(["a", "b", "a"]))
    table = read_table(tmp_path / "t.npz", "label")
    assert table.x.shape == (3, 2)
    assert table.y.tolist() == ["a", "b", "a"]


class Bomb:
    """Would leave a trace if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    objects = np.empty(2, dtype=object)
    objects[:] = [Bomb(tmp_path / "trace"), 1]
    np.savez(tmp_path / "t.npz", X=objects, y=np.zeros(2))
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_table(tmp_path / "t.npz", None)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,y\n", "has a header and no rows"),
        ("a,b\n1,2\n", "has no column 'y'; the columns are 'a', 'b'"),
        ("y\n1\n", "has no column besides the target 'y'"),
        ("a,y\n1,0\nseven,1\n", "column 'a' is to hold numbers, and has 'seven' in row 2.*--drop 'a'"),
        ("a,y\n1,0\nnan,1\n", "column 'a' has no value in row 2"),
        ("a,y\n1,0\n,1\n", "column 'a' has no value in row 2"),
        ("a,y\n1,0\ninf,1\n", "column 'a' is inf in row 2"),
        (f"a,y\n1,0\n{10**400},1\n", "column 'a' is inf in row 2"),
        ("a,b,a,y\n1,0,2,1\n2,1,3,0\n", "has 2 columns called 'a'"),
        ("a,y\n1,0\n2,\n", "the target 'y' has no value in row 2"),
        ("a,y\n1,0\n1,2,3,4\n", "cannot be read as csv"),
        ("a,y\n2020-01-01,0\n2020-01-02,1\n", "column 'a' is to hold numbers"),
    ],
)
def test_csv_that_is_refused(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(DataError, match=message):
        read_table(path, "y")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_bytes_that_are_no_table(tmp_path, suffix):
    (tmp_path / f"t.{suffix}").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / f"t.{suffix}", "y")
    assert "\n" not in str(caught.value)


def test_a_missing_target_is_asked_for(tmp_path):
    with pytest.raises(DataError, match="Give --target; the columns are 'a', 'b', 'kind'"):
        read_table(write(tmp_path / "t.csv", CSV), None)


def test_an_unknown_kind_of_file(tmp_path):
    with pytest.raises(DataError, match=r"files of kind '\.xyz' are not read"):
        read_table(write(tmp_path / "t.xyz", CSV), "kind")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_table(tmp_path / "t.csv", "y")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((2, 1))}, "has no array 'y'"),
        ({"a": np.ones((2, 1)), "b": np.ones((2, 1)), "y": np.ones(2)}, "has no array 'X'"),
        ({"X": np.ones((2, 1)), "y": np.ones(3)}, "has 2 samples, the target 'y' has 3"),
        ({"X": np.ones((0, 1)), "y": np.ones(0)}, "there are no samples"),
        ({"X": np.array([[1.0], [np.nan]]), "y": np.ones(2)}, "is nan in sample 1, feature 0"),
        ({"X": np.array([["a"], ["b"]]), "y": np.ones(2)}, "wants numbers"),
        ({"X": np.ones((2, 1)), "y": np.ones((2, 2))}, "one number or text for each sample"),
    ],
)
def test_npz_that_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.npz", None)


def test_features_come_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "t.csv", CSV)
    assert read_features(path, ("b", "a")).tolist() == [[2.5, 1.0], [4.0, 3.0], [6.0, -1e-3]]


def test_every_missing_feature_is_listed(tmp_path):
    path = write(tmp_path / "t.csv", CSV)
    with pytest.raises(DataError, match="has no columns 'c', 'd'; the columns are 'a', 'b', 'kind'"):
        read_features(path, ("a", "c", "d"))


def test_npz_with_the_wrong_number_of_features(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.ones((2, 3)))
    assert read_features(tmp_path / "t.npz", ("x0", "x1", "x2")).shape == (2, 3)
    with pytest.raises(DataError, match="has 3 features, the model wants 2"):
        read_features(tmp_path / "t.npz", ("x0", "x1"))
