"""`xpnn train` and `xpnn predict` on data that are right."""

import csv
import io
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import xpnn
from xpnn import saving


def accuracy(text):
    return float(re.search(r"accuracy ([\d.]+) \(", text)[1])


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_digits_reaches_97_percent(call):
    result = call("train", "digits", "--quiet")
    assert result.code == 0, result.err
    assert result.out.startswith("validation accuracy")
    assert accuracy(result.out) >= 0.97


@pytest.mark.parametrize(("name", "wanted"), [("iris", 0.9), ("wine", 0.9), ("breast_cancer", 0.93)])
def test_the_smaller_sets_of_flowers_wines_and_cells(call, name, wanted):
    result = call("train", name, "--quiet")
    assert accuracy(result.out) >= wanted


def test_diabetes_is_a_regression_in_its_own_units(call):
    result = call("train", "diabetes", "--quiet")
    found = re.fullmatch(r"validation RMSE ([\d.]+), R2 ([\d.]+) \(88 samples\)", result.out.splitlines()[0])
    assert 40 < float(found[1]) < 75
    assert float(found[2]) > 0.25


@pytest.mark.parametrize("name", ["xor", "xnor"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gates_are_learnt_whole(call, name, seed):
    result = call("train", name, "--quiet", "--seed", seed)
    assert "training accuracy 1.0000 (4 of 4)" in result.out


@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "jax", "cupy"])
def test_every_backend_trains(call, backend):
    if xpnn.available_backends()[backend] is not None:
        result = call("train", "xor", "--backend", backend)
        assert result.code == 2
        assert f"backend {backend!r} is not usable here" in result.err
        return
    result = call("train", "xor", "--backend", backend, "--epochs", 60)
    assert result.code == 0
    assert f"on {backend}, seed 0" in result.out


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(call, precision):
    if xpnn.available_backends()["torch"] is not None:
        pytest.skip("of the backends with half precision, PyTorch is the one that runs on every machine")
    result = call("train", "iris", "--backend", "torch", "--precision", precision, "--epochs", 30)
    assert result.code == 0
    assert f"parameters in float32, computed in {precision}, on torch, seed 0" in result.out
    assert accuracy(result.out) > 0.9


def test_a_csv_from_training_to_prediction(call, flowers, tmp_path):
    model = tmp_path / "m.safetensors"
    result = call("train", flowers, "--target", "species", "--save", model, "--epochs", 40)
    assert result.code == 0
    assert "classification of 'species' into 3 classes (setosa, versicolor, virginica)" in result.out
    assert "120 samples to train on, 30 held out" in result.out
    assert f"model: {model}" in result.out
    assert accuracy(result.out) >= 0.9

    predicted = call("predict", model, flowers)
    assert predicted.code == 0
    assert predicted.err == ""
    found = rows(predicted.out)
    truth = rows(flowers.read_text())
    assert len(found) == 150
    assert sum(a["species"] == b["species"] for a, b in zip(found, truth, strict=True)) >= 140
    assert all(1 / 3 - 1e-6 <= float(row["probability"]) <= 1 for row in found)


def test_prediction_finds_columns_by_name(call, flowers, tmp_path):
    model = tmp_path / "m.safetensors"
    call("train", flowers, "--target", "species", "--save", model, "--epochs", 5, "--quiet")
    table = rows(flowers.read_text())
    other = tmp_path / "other.csv"
    with other.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["extra", "petal width", "sepal width", "sepal length", "petal length"])
        writer.writeheader()
        for row in table:
            writer.writerow({"extra": "text", **{key: value for key, value in row.items() if key != "species"}})
    assert call("predict", model, other).out == call("predict", model, flowers).out

    lacking = tmp_path / "lacking.csv"
    lacking.write_text("sepal length,petal width\n5,0.2\n")
    result = call("predict", model, lacking)
    assert result.code == 2
    assert "has no columns 'sepal width', 'petal length'" in result.err


def test_output_goes_to_a_file(call, flowers, tmp_path):
    model, output = tmp_path / "m.safetensors", tmp_path / "o.csv"
    call("train", flowers, "--target", "species", "--save", model, "--epochs", 2, "--quiet")
    result = call("predict", model, flowers, "--output", output)
    assert result.code == 0
    assert result.out == ""
    assert output.read_text() == call("predict", model, flowers).out


def test_a_regression_from_training_to_prediction(call, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(50, 20, (300, 2))
    y = 1000 + 3 * x[:, 0] - 7 * x[:, 1]
    path, model = tmp_path / "t.csv", tmp_path / "m.safetensors"
    path.write_text("a,constant,b,y\n" + "".join(f"{a},4,{b},{c}\n" for (a, b), c in zip(x, y, strict=True)))
    result = call("train", path, "--target", "y", "--save", model, "--layers", "none", "--lr", 0.01, "--epochs", 100)
    assert "regression of 'y'" in result.out
    assert float(re.search(r"R2 ([\d.]+)", result.out)[1]) > 0.999
    found = np.array([float(row["y"]) for row in rows(call("predict", model, path).out)])
    assert np.abs(found - y).max() < 0.05 * y.std()


def test_a_regression_of_huge_numbers(call, tmp_path):
    """Their squares are beyond float64: the result is told in standardised units, times the scale."""
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{i},{i}e304\n" for i in range(100)))
    options = ["--layers", "none", "--lr", 0.05, "--epochs", 100, "--quiet"]
    result = call("train", path, "--target", "y", *options)
    assert result.code == 0
    assert result.err == ""
    found = re.search(r"RMSE ([\d.e+]+), R2 ([\d.]+)", result.out)
    assert 0 < float(found[1]) < 1e304
    assert float(found[2]) > 0.99


def test_the_statistics_come_from_the_training_part_alone(call, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (50, 1)), np.arange(50) % 2
    np.savez(tmp_path / "t.npz", X=x, y=y)
    call("train", tmp_path / "t.npz", "--epochs", 1, "--save", tmp_path / "m.safetensors", "--quiet", "--seed", 5)
    stored = saving.read_metadata(tmp_path / "m.safetensors")["feature_scaling"]["mean"][0]
    training, held_out = xpnn.data.split(xpnn.data.encode_target(y, "y"), 0.2, 5)
    assert len(held_out) == 10
    assert stored == pytest.approx(float(x[training].mean()), rel=1e-12)
    assert stored != pytest.approx(float(x.mean()), rel=1e-6)


def test_the_same_seed_gives_the_same_file(call, flowers, tmp_path):
    for name in ("a", "b"):
        call("train", flowers, "--target", "species", "--save", tmp_path / name, "--epochs", 3, "--quiet")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_model_is_a_network_like_any_other(call, tmp_path):
    call("train", "iris", "--save", tmp_path / "m.safetensors", "--epochs", 3, "--quiet", "--dtype", "float64")
    network = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    assert network.dtype == "float64"
    assert network.predict(np.zeros((2, 4))).shape == (2, 3)
    assert network.training.epoch == 3


def test_an_idx_folder(call, tmp_path):
    rng = np.random.default_rng(0)

    def write(name, array):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / name).write_bytes(header + array.astype(np.uint8).tobytes())

    for part, count in (("train", 200), ("t10k", 40)):
        labels = rng.integers(0, 2, count)
        # class 1 is bright in the upper half, class 0 in the lower
        images = rng.integers(0, 60, (count, 6, 6))
        images[labels == 1, :3] += 150
        images[labels == 0, 3:] += 150
        write(f"{part}-images-idx3-ubyte", images)
        write(f"{part}-labels-idx1-ubyte", labels)
    model = tmp_path / "m.safetensors"
    result = call("train", tmp_path, "--save", model, "--layers", 8)
    assert "200 samples to train on, 40 held out" in result.out
    assert accuracy(result.out) > 0.95
    predicted = rows(call("predict", model, tmp_path / "t10k-images-idx3-ubyte").out)
    assert sum(row["label"] == str(label) for row, label in zip(predicted, labels, strict=True)) > 35


def test_patience_stops_early(call):
    result = call("train", "iris", "--epochs", 2000, "--patience", 3, "--lr", 0.05)
    assert "stopped early" in result.out
    assert "2000/2000" not in result.out


def test_no_validation_part(call, flowers):
    result = call("train", flowers, "--target", "species", "--validation", 0, "--epochs", 3)
    assert "150 samples to train on, 0 held out" in result.out
    assert "training accuracy" in result.out
    assert "the model is not saved; give --save" in result.out


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_plot(call, tmp_path, ending):
    path = tmp_path / f"curve.{ending}"
    result = call("train", "iris", "--epochs", 3, "--plot", path, "--quiet")
    assert result.code == 0
    start = path.read_bytes()[:5]
    assert start.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF-"}[ending])


@pytest.mark.parametrize("layers", ["none", "5", "7,5,3"])
@pytest.mark.parametrize("activation", ["tanh", "LeakyReLU", "leaky_relu"])
def test_layers_and_activations(call, layers, activation, tmp_path):
    model = tmp_path / "m.safetensors"
    call("train", "xor", "--layers", layers, "--activation", activation, "--epochs", 2, "--save", model, "--quiet")
    network = xpnn.Network.load(model, backend="numpy")
    units = [] if layers == "none" else [int(part) for part in layers.split(",")]
    assert [layer.sizes for layer in network.root.layers[::2]] == [(n,) for n in [*units, 2]]
    kinds = {type(layer).__name__ for layer in network.root.layers[1::2]}
    assert kinds == (set() if layers == "none" else {"Tanh" if activation == "tanh" else "LeakyReLU"})


def test_every_optimizer_can_be_asked_for(call):
    for name in xpnn.optimizers.OPTIMIZERS:
        result = call("train", "xor", "--optimizer", name, "--epochs", 2, "--quiet")
        assert result.code == 0, (name, result.err)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT as POSIX has it")
def test_ctrl_c_saves_what_was_learnt(environment, tmp_path):
    model = tmp_path / "m.safetensors"
    arguments = ["train", "digits", "--epochs", "100000", "--save", str(model)]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "xpnn", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    assert "stopped by Ctrl-C after" in out
    assert f"model: {model}" in out
    assert xpnn.Network.load(model, backend="numpy").training.step > 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes as POSIX has them")
def test_a_reader_that_leaves_early(call, environment, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "t.npz", X=rng.random((20000, 1)), y=rng.integers(0, 2, 20000))
    call("train", tmp_path / "t.npz", "--epochs", 1, "--batch-size", 5000, "--save", tmp_path / "m", "--quiet")
    line = f"{sys.executable} -m xpnn predict {tmp_path / 'm'} {tmp_path / 't.npz'} | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "y,probability\n"
    assert done.stderr == ""
