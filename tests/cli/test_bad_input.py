"""Whatever is wrong with the input: one line on stderr, exit code 2, no traceback, and nothing is written."""

import os

import numpy as np
import pytest

GOOD = "a,b,y\n" + "".join(f"{i},{(i * 7) % 5},{'uv'[i % 2]}\n" for i in range(20))

FILES = {
    "good.csv": GOOD,
    "empty.csv": "",
    "header.csv": "a,b,y\n",
    "text.csv": GOOD.replace("3,1,v", "3,one,v"),
    "nan.csv": GOOD.replace("3,1,v", "3,nan,v"),
    "infinite.csv": GOOD.replace("3,1,v", "3,inf,v"),
    "hole.csv": GOOD.replace("3,1,v", "3,,v"),
    "no_label.csv": GOOD.replace("3,1,v", "3,1,"),
    "one_class.csv": GOOD.replace("v", "u"),
    "ragged.csv": GOOD.replace("3,1,v", "3,1,v,9,9"),
    "only_target.csv": "y\nu\nv\n",
    "twice.csv": GOOD.replace("a,b,y", "a,a,y"),
    "latin.csv": GOOD.replace("a,b", "größe,b").encode("latin-1"),
    "huge.csv": "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n1e308,1e308,-1e308,1\n",
    "words.csv": "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5,3,1.5,wide\n",
    "two_rows.csv": "a,y\n1,0.5\n2,1.5\n",
    "binary.csv": bytes(range(256)),
    "binary.npz": bytes(range(256)),
    "binary.parquet": bytes(range(256)),
    "picture.xyz": "x",
    "file": "x",
}

CASES = {
    "missing file": (["train", "nothing.csv", "--target", "y"], "'nothing.csv' is no file, no folder and no built-in"),
    "unknown data set": (["train", "mnist"], "those are: xor, xnor, iris"),
    "no target": (["train", "good.csv"], "Give --target; the columns are 'a', 'b', 'y'"),
    "no such column": (["train", "good.csv", "--target", "z"], "has no column 'z'; the columns are 'a', 'b', 'y'"),
    "no such column to drop": (["train", "good.csv", "--target", "y", "--drop", "a,q"], "has no column 'q'"),
    "empty file": (["train", "empty.csv", "--target", "y"], "'empty.csv' is empty"),
    "header only": (["train", "header.csv", "--target", "y"], "has a header and no rows"),
    "text in a numeric column": (
        ["train", "text.csv", "--target", "y"],
        "column 'b' is to hold numbers, and has 'one'",
    ),
    "nan": (["train", "nan.csv", "--target", "y"], "column 'b' has no value in row 4"),
    "infinite": (["train", "infinite.csv", "--target", "y"], "column 'b' is inf in row 4"),
    "hole": (["train", "hole.csv", "--target", "y"], "column 'b' has no value in row 4"),
    "no label": (["train", "no_label.csv", "--target", "y"], "the target 'y' has no value in row 4"),
    "one class": (["train", "one_class.csv", "--target", "y"], "has one class only (u)"),
    "ragged": (["train", "ragged.csv", "--target", "y"], "cannot be read as csv"),
    "only a target": (["train", "only_target.csv", "--target", "y"], "no column besides the target"),
    "a column twice": (["train", "twice.csv", "--target", "y"], "has 2 columns called 'a'"),
    "not UTF-8": (["train", "latin.csv", "--target", "y"], "it is no UTF-8 text; save it as UTF-8"),
    "target dropped": (["train", "good.csv", "--target", "y", "--drop", "b, y"], "'y' is the column to be predicted"),
    "a class for each sample": (
        ["train", "good.csv", "--target", "a", "--drop", "y", "--task", "classification"],
        "each of the 20 samples is of a class of its own",
    ),
    "an NPY file called NPZ": (["train", "array.npz"], "cannot be read as npz: it is no zip file"),
    "too few rows": (["train", "two_rows.csv", "--target", "y", "--validation", "0.1"], "cannot be split"),
    "binary csv": (["train", "binary.csv", "--target", "y"], "cannot be read as csv"),
    "binary npz": (["train", "binary.npz"], "cannot be read as npz"),
    "binary parquet": (["train", "binary.parquet", "--target", "y"], "cannot be read as parquet"),
    "npz without target": (["train", "good.npz"], "has no array 'y'"),
    "unknown kind": (["train", "picture.xyz", "--target", "y"], "files of kind '.xyz' are not read"),
    "folder without idx": (["train", "folder"], "has no train-images-idx3-ubyte"),
    "text as regression": (
        ["train", "good.csv", "--target", "y", "--task", "regression"],
        "a regression wants numbers",
    ),
    "unknown task": (["train", "good.csv", "--target", "y", "--task", "clustering"], "--task 'clustering' is unknown"),
    "unknown backend": (["train", "xor", "--backend", "tpu"], "unknown backend 'tpu'; known: numpy, cupy"),
    "unknown device": (["train", "xor", "--backend", "numpy:7"], "has no device '7'"),
    "unknown activation": (["train", "xor", "--activation", "rellu"], "--activation 'rellu' is unknown; known:"),
    "empty activation": (["train", "xor", "--activation", ""], "--activation '' is unknown; known:"),
    "empty optimizer": (["train", "xor", "--optimizer", ""], "--optimizer '' is unknown; known:"),
    "unknown optimizer": (["train", "xor", "--optimizer", "adamm"], "--optimizer 'adamm' is unknown; known:"),
    "layers as words": (["train", "xor", "--layers", "many"], "--layers 'many' is not understood"),
    "layers of zero units": (["train", "xor", "--layers", "8,0"], "--layers '8,0' is not understood"),
    "layers with a hole": (["train", "xor", "--layers", "8,,4"], "--layers '8,,4' is not understood"),
    "unknown dtype": (["train", "xor", "--dtype", "float16"], "--dtype 'float16' is not supported"),
    "unknown precision": (["train", "xor", "--precision", "half"], "precision='half' is unknown; known: float32, tf32"),
    "precision of GPUs": (
        ["train", "xor", "--backend", "numpy", "--precision", "bfloat16"],
        "backend 'numpy' computes in float32, not with precision='bfloat16'; use backend=\"cupy\"",
    ),
    "negative learning rate": (["train", "xor", "--lr", "-1"], "--lr -1 is out of range"),
    "learning rate nan": (["train", "xor", "--lr", "nan"], "--lr nan is out of range"),
    "validation of one": (["train", "xor", "--validation", "1"], "--validation 1 is out of range"),
    "negative seed": (["train", "xor", "--seed", "-1"], "seed=-1 is out of range"),
    "no epochs": (["train", "xor", "--epochs", "0"], "Invalid value for '--epochs'"),
    "epochs as words": (["train", "xor", "--epochs", "many"], "Invalid value for '--epochs'"),
    "target of a built-in": (["train", "xor", "--target", "y"], "has its own target"),
    "save without folder": (["train", "xor", "--save", "no/such/m.safetensors"], "there is no folder 'no/such'"),
    "save into a folder": (["train", "xor", "--save", "folder"], "it is a folder"),
    "save below a file": (["train", "xor", "--save", "file/m.safetensors"], "there is no folder 'file'"),
    "save over the data": (["train", "good.csv", "--target", "y", "--save", "./good.csv"], "reads or writes that file"),
    "plot over the model": (["train", "xor", "--save", "c.png", "--plot", "./c.png"], "reads or writes that file"),
    "predict over the data": (
        ["predict", "m.safetensors", "good.csv", "--output", "good.csv"],
        "reads or writes that file",
    ),
    "save without a name": (["train", "xor", "--save", ""], "the name of its file is empty"),
    "save into a pipe": (["train", "xor", "--save", "pipe"], "it is a device or a pipe"),
    "plot without folder": (["train", "xor", "--plot", "no/c.png"], "there is no folder 'no'"),
    "plot of another kind": (["train", "xor", "--plot", "c.xyz"], "must end in .png, .svg, .pdf"),
    "unknown option": (["train", "xor", "--speed", "9"], "No such option"),
    "no data": (["train"], "Missing argument"),
    "unknown command": (["trian", "xor"], "No such command"),
    "predict without model": (["predict", "nothing.safetensors", "good.csv"], "'nothing.safetensors' is not there"),
    "predict with no model file": (["predict", "good.csv", "good.csv"], "damaged, or no safetensors file"),
    "predict a missing file": (["predict", "m.safetensors", "nothing.csv"], "there is no file 'nothing.csv'"),
    "predict from text": (["predict", "m.safetensors", "words.csv"], "mend the file: the model needs this column"),
    "predict from numbers beyond float32": (["predict", "m.safetensors", "huge.csv"], "too large values for float32"),
    "predict without columns": (["predict", "m.safetensors", "two_rows.csv"], "has no columns 'sepal length (cm)', "),
    "predict another data set": (["predict", "m.safetensors", "wine"], "the data set 'wine' has no columns"),
    "predict into nowhere": (["predict", "m.safetensors", "iris", "--output", "no/o.csv"], "there is no folder 'no'"),
    "predict on an unknown backend": (["predict", "m.safetensors", "iris", "--backend", "tpu"], "unknown backend"),
    "predict with a foreign model": (["predict", "api.safetensors", "iris"], "`xpnn train --save` did not write it"),
    "check an unknown row": (["check", "--backends", "tpu"], "unknown row 'tpu'"),
    "check with a report nowhere": (["check", "--report", "no/r.html"], "there is no folder 'no'"),
    "require what is not checked": (["check", "--backends", "numpy", "--require", "jax"], "is not among --backends"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all the bad files, one model of the command line, and one of the library."""
    import xpnn
    from xpnn.cli import run

    path = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (path / "folder").mkdir()
    np.savez(path / "good.npz", X=np.ones((3, 2)))
    with open(path / "array.npz", "wb") as file:
        np.save(file, np.ones(3))
    os.mkfifo(path / "pipe")
    xpnn.Network(xpnn.Dense(4, 3), backend="numpy").save(path / "api.safetensors")
    assert run(["train", "iris", "--epochs", "1", "--quiet", "--save", str(path / "m.safetensors")]) == 0
    return path


def listing(path):
    return sorted((str(each), each.stat().st_mtime_ns) for each in path.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(name, folder, call, monkeypatch):
    arguments, message = CASES[name]
    monkeypatch.chdir(folder)
    before = listing(folder)
    result = call(*arguments)
    assert result.code == 2
    assert result.err.startswith("xpnn: error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert result.out == ""
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["missing file", "text in a numeric column", "unknown backend", "unknown option"])
def test_the_same_in_a_process_of_its_own(name, folder, command, monkeypatch):
    arguments, message = CASES[name]
    monkeypatch.chdir(folder)
    result = command(*arguments)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert message in result.err
    assert result.out == ""


def test_bad_data_leave_the_old_model_alone(folder, call, tmp_path):
    model = tmp_path / "old.safetensors"
    model.write_bytes(b"old")
    result = call("train", folder / "nan.csv", "--target", "y", "--save", model, "--plot", tmp_path / "c.png")
    assert result.code == 2
    assert model.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old.safetensors"]


def test_a_training_that_diverges_is_a_failure_and_saves_nothing(folder, call, tmp_path):
    result = call(
        "train", folder / "good.csv", "--target", "y", "--optimizer", "sgd", "--lr", "1e30", "--quiet",
        "--save", tmp_path / "m.safetensors",
    )  # fmt: skip
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "diverged" in result.err
    assert os.listdir(tmp_path) == []
