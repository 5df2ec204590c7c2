"""`xpnn train` and `xpnn predict` on images: folders of pictures, IDX and NPZ files, --model, --resize, --augment."""

import csv
import io
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

import xpnn
from xpnn import saving


def accuracy(text):
    return float(re.search(r"accuracy ([\d.]+) \(", text)[1])


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def bars(samples, height=8, width=8, seed=0):
    """Bright bars, lying (class 0) or upright (class 1), on noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (samples, height, width), dtype=np.uint8)
    labels = np.arange(samples) % 2
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(1, (width if label else height) - 1)
        image[(slice(None), place) if label else (place, slice(None))] += 180
    return images, labels


@pytest.fixture
def pictures(tmp_path):
    """A folder with the sub-folders lying and upright; every third picture is larger."""
    images, labels = bars(120)
    folder = tmp_path / "bars"
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("upright" if label else "lying") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image)
        (picture.resize((16, 16)) if number % 3 == 2 else picture).save(path)
    return folder


@pytest.fixture
def npz(tmp_path):
    images, labels = bars(120)
    np.savez(tmp_path / "bars.npz", images=images, labels=labels)
    return tmp_path / "bars.npz"


def test_a_folder_of_pictures_from_training_to_prediction(call, pictures, tmp_path):
    model = tmp_path / "m.safetensors"
    result = call("train", pictures, "--resize", 8, "--epochs", 12, "--layers", "8,8", "--save", model)
    assert result.code == 0, result.err
    assert "classification of 'class' into 2 classes (lying, upright)" in result.out
    assert "96 samples to train on, 24 held out; images of 8 x 8 pixels, 1 channel, standardised" in result.out
    assert "network: Reshape(8, 8, 1), Conv2D(channels=8, ...), ReLU(), Conv2D(channels=8, ...), ReLU()" in result.out
    assert accuracy(result.out) >= 0.9

    found = rows(call("predict", model, pictures).out)
    assert [row["file"] for row in found] == [str(path) for path in sorted(pictures.rglob("*.png"))]
    assert sum(row["class"] in row["file"] for row in found) >= 110
    one = pictures / "upright" / "005.png"
    assert rows(call("predict", model, one).out) == [row for row in found if row["file"] == str(one)]
    inner = rows(call("predict", model, pictures / "lying").out)
    assert [row["file"] for row in inner] == [str(path) for path in sorted((pictures / "lying").iterdir())]


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("augment", [None, "flip,shift"])
def test_every_model_learns_an_npz(call, npz, model, augment):
    if model == "mlp" and augment:
        return
    options = [] if augment is None else ["--augment", augment]
    result = call("train", npz, "--model", model, "--epochs", 15, "--layers", "16,16", "--quiet", *options)
    assert result.code == 0, result.err
    assert accuracy(result.out) >= 0.9


def test_models_know_their_layers(call, npz, tmp_path):
    path = tmp_path / "m.safetensors"
    call("train", npz, "--model", "resnet", "--layers", "4,6", "--augment", "shift", "--epochs", 1, "--save", path)
    network = xpnn.Network.load(path, backend="numpy")
    names = [type(layer).__name__ for layer in network.root.layers]
    assert names[:2] == ["Reshape", "RandomShift"]
    assert names.count("Residual") == 2
    assert saving.read_metadata(path)["image"] == {"shape": [8, 8, 1], "white": 255.0, "resized": False}


def test_arrays_and_pictures_are_read_alike(call, npz, tmp_path):
    """A model trained on numbers from 0 to 255 reads pictures, and one trained on pictures reads such numbers."""
    images, labels = bars(120)
    folder = tmp_path / "same"
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    order = np.argsort(labels, kind="stable")
    np.savez(tmp_path / "sorted.npz", images=images[order], labels=labels[order])
    for data in (npz, folder):
        model = tmp_path / "m.safetensors"
        call("train", data, "--model", "cnn", "--layers", "4", "--epochs", 3, "--quiet", "--save", model)
        of_pictures = rows(call("predict", model, folder).out)
        of_arrays = rows(call("predict", model, tmp_path / "sorted.npz").out)
        assert [float(row["probability"]) for row in of_pictures] == pytest.approx(
            [float(row["probability"]) for row in of_arrays], abs=2e-6
        )


def write_idx(folder, images, labels, part="train"):
    folder.mkdir(exist_ok=True)
    for stem, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"{part}-{stem}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def test_idx_with_a_convolutional_network(call, tmp_path):
    for part, count in (("train", 120), ("t10k", 40)):
        write_idx(tmp_path, *bars(count, seed=count), part)
    model = tmp_path / "m.safetensors"
    result = call("train", tmp_path, "--model", "cnn", "--layers", "8", "--batch-size", 16, "--save", model)
    assert "120 samples to train on, 40 held out" in result.out
    assert accuracy(result.out) >= 0.9
    found = rows(call("predict", model, tmp_path / "t10k-images-idx3-ubyte").out)
    assert sum(int(row["label"]) == number % 2 for number, row in enumerate(found)) >= 36


def test_the_built_in_digits(call, tmp_path):
    model = tmp_path / "m.safetensors"
    result = call("train", "digits", "--model", "cnn", "--layers", "8,16", "--epochs", 3, "--save", model)
    assert "images of 8 x 8 pixels, 1 channel" in result.out
    assert accuracy(result.out) > 0.7
    assert saving.read_metadata(model)["image"]["white"] == 16.0
    assert len(rows(call("predict", model, "digits").out)) == 1797


def test_a_regression_on_images(call, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6, 5, 2))
    np.savez(tmp_path / "t.npz", images=x, y=x.mean(axis=(1, 2, 3)))
    model = tmp_path / "m.safetensors"
    result = call("train", tmp_path / "t.npz", "--model", "resnet", "--layers", "4", "--epochs", 2, "--save", model)
    assert result.code == 0, result.err
    assert "RMSE" in result.out
    # measured numbers, not pixels: pictures are refused below
    assert saving.read_metadata(model)["image"]["white"] is None
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(picture)
    result = call("predict", model, picture)
    assert result.code == 2
    assert "2 channels" in result.err or "other numbers" in result.err


@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "jax"])
def test_every_backend_trains_on_pictures(call, pictures, backend):
    if xpnn.available_backends()[backend] is not None:
        pytest.skip(f"{backend} is not usable here")
    result = call(
        "train", pictures, "--resize", 8, "--backend", backend, "--layers", "4", "--epochs", 1, "--augment", "flip"
    )
    assert result.code == 0, result.err
    assert f"on {backend}, seed 0" in result.out


CASES = {
    "unknown model": (["train", "bars.npz", "--model", "gpt"], "--model 'gpt' is unknown; choose mlp, cnn, resnet"),
    "images wanted": (["train", "iris", "--model", "cnn"], "--model cnn wants images, and these data are none"),
    "a table for a cnn": (["train", "t.csv", "--target", "y", "--model", "resnet"], "--model resnet wants images"),
    "activation of a cnn": (["train", "bars.npz", "--model", "cnn", "--activation", "tanh"], "belongs to --model mlp"),
    "augment of an mlp": (["train", "bars.npz", "--augment", "flip"], "it belongs to --model cnn and --model resnet"),
    "unknown change": (
        ["train", "bars.npz", "--model", "cnn", "--augment", "flop"],
        "write flip, shift, or flip,shift",
    ),
    "empty change": (["train", "bars.npz", "--model", "cnn", "--augment", ""], "write flip, shift, or flip,shift"),
    "no convolution": (["train", "bars.npz", "--model", "cnn", "--layers", "none"], "without a convolution"),
    "too small": (
        ["train", "bars.npz", "--model", "cnn", "--layers", "4,4,4,4"],
        "images of 8 x 8 pixels are too small for --model cnn with 4 poolings, each of which halves their sides; "
        "give at most 3, as in --layers 16,32,64",
    ),
    "resize as words": (["train", "bars", "--resize", "big"], "--resize 'big' is not understood"),
    "resize of zero": (["train", "bars", "--resize", "0"], "--resize '0' is not understood"),
    "resize of three": (["train", "bars", "--resize", "3,4,5"], "--resize '3,4,5' is not understood"),
    "resize of arrays": (["train", "bars.npz", "--resize", "8"], "--resize is for folders of pictures"),
    "resize of digits": (["train", "digits", "--resize", "8"], "leave out --target, --drop, --resize"),
    "target of pictures": (["train", "bars", "--target", "y"], "whose sub-folders are the classes; leave out"),
    "different sizes": (["train", "bars"], "--resize 8,8"),
    "resize beyond all memory": (["train", "bars", "--resize", "1000000"], "is too large; give at most 4096 pixels"),
    "channels first": (
        ["train", "first.npz", "--model", "resnet"],
        "'first.npz': images of shape (3, 8, 8) seem to have their channels first",
    ),
    "columns of arrays": (["train", "bars.npz", "--drop", "x1"], "'bars.npz' has no names of columns; leave out"),
    "columns of IDX files": (["train", "idx", "--drop", "pixel1"], "'idx' has no names of columns; leave out --drop"),
    "target of IDX files": (["train", "idx", "--target", "y"], "'idx' is a folder of IDX files, which has its own"),
    "one class of arrays": (["train", "same.npz"], "'same.npz': the target 'labels' has one class only (0)"),
    "save over a picture": (
        ["train", "bars", "--resize", "8", "--save", "bars/lying/000.png"],
        "cannot write the model to 'bars/lying/000.png': in the folder 'bars' that file would be one of the data",
    ),
    "plot among the pictures": (
        ["train", "bars", "--resize", "8", "--plot", "bars/loss.png"],
        "in the folder 'bars' that file would be one of the data",
    ),
    "save over IDX files": (
        ["train", "idx", "--save", "idx/train-images-idx3-ubyte"],
        "in the folder 'idx' that file would be one of the data",
    ),
    "predictions over a picture": (
        ["predict", "array.safetensors", "bars", "--output", "bars/lying/000.png"],
        "in the folder 'bars' that file would be one of the data",
    ),
    "predict IDX files": (["predict", "array.safetensors", "idx"], "a file, say one of MNIST's with images"),
    "predict pictures from columns": (
        ["predict", "array.safetensors", "wide.csv"],
        "has no columns 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7', 'x8', 'x9', 'x10', 'x11', 'x12' and 51 more; the",
    ),
    "one class": (["train", "lone"], "there must be one for each of at least two classes"),
    "no sub-folders": (["train", "bars/lying"], "sort them into one sub-folder for each class"),
    "damaged": (["train", "damaged", "--resize", "8"], "0.png' is no picture, or a damaged one"),
    "predict another size": (["predict", "array.safetensors", "bars"], "was trained on images 8 wide and 8 high"),
    "predict a damaged one": (["predict", "array.safetensors", "damaged/a/0.png"], "is no picture, or a damaged one"),
    "predict an empty folder": (["predict", "array.safetensors", "empty"], "holds no pictures"),
    "predict pictures from a table": (["predict", "iris.safetensors", "bars"], "was not trained on images"),
    "predict a missing picture": (["predict", "array.safetensors", "x.png"], "there is no file 'x.png'"),
}


@pytest.fixture
def folder(pictures, npz, call, tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + "1,0\n2,1\n" * 10)
    (tmp_path / "empty").mkdir()
    for name in ("a", "b"):
        (tmp_path / "damaged" / name).mkdir(parents=True)
        (tmp_path / "damaged" / name / "0.png").write_bytes(b"no picture")
    call("train", npz, "--epochs", 1, "--quiet", "--save", tmp_path / "array.safetensors")
    call("train", "iris", "--epochs", 1, "--quiet", "--save", tmp_path / "iris.safetensors")
    (tmp_path / "lone" / "only").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "lone" / "only" / "0.png")
    np.savez(tmp_path / "first.npz", images=np.ones((4, 3, 8, 8)), labels=np.array([0, 1, 0, 1]))
    np.savez(tmp_path / "same.npz", images=np.ones((4, 8, 8)), labels=np.zeros(4, int))
    (tmp_path / "wide.csv").write_text("x0\n1\n")
    write_idx(tmp_path / "idx", np.zeros((4, 2, 2)), np.array([0, 1, 0, 1]))
    return tmp_path


def test_whatever_is_wrong_is_said_in_one_line(folder, call, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(str(path) for path in folder.rglob("*"))
    for name, (arguments, message) in CASES.items():
        result = call(*arguments)
        assert result.code == 2, name
        assert result.err.startswith("xpnn: error: "), name
        assert result.err.count("\n") == 1, name
        assert message in result.err, (name, result.err)
        assert result.out == "", name
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_names_that_the_terminal_cannot_show(command, npz, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    named = npz.rename(npz.with_name("größe.npz"))
    result = command("train", named, "--epochs", 1)
    assert result.code == 0, result.err
    assert r"gr\xf6\xdfe.npz: classification of" in result.out
    result = command("train", named, "--epochs", 1, "--target", "y")
    assert result.code == 2
    assert result.err.startswith("xpnn: error: ")
    assert r"gr\xf6\xdfe.npz' has no array 'y'" in result.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names of files that are not text")
def test_names_of_files_that_are_not_text(call, pictures, tmp_path):
    model, output = tmp_path / "m.safetensors", tmp_path / "p.csv"
    (pictures / "lying" / "000.png").rename(os.fsdecode(os.fsencode(pictures / "lying") + b"/\xff.png"))
    arguments = (pictures, "--resize", 8, "--epochs", 1, "--layers", 2, "--quiet", "--save", model)
    assert call("train", *arguments).code == 0
    assert call("predict", model, pictures / "lying", "--output", output).code == 0
    assert b"/\xff.png,lying," in output.read_bytes() or b"/\xff.png,upright," in output.read_bytes()


def test_without_pillow(call, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = call("train", pictures)
    assert result.code == 2
    assert 'pip install "xpnn[data]"' in result.err
