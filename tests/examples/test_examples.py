"""Every file in examples/ is run: with its full settings on NumPy, and shortened on each row of the matrix."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import xpnn
from xpnn.errors import BackendError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

FLOAT32 = {
    "xnor_gate": ["--epochs", "30"],
    "xor_gate": ["--epochs", "30"],
    "iris_three_layers": ["--epochs", "3"],
    "digits": ["--epochs", "1"],
    "cnn_digits": ["--epochs", "1"],
    "residual_images": ["--epochs", "1", "--filters", "4", "8"],
    "char_rnn": ["--epochs", "1", "--windows", "48", "--window", "8", "--units", "16", "--write", "4"],
    "transformer_text": [
        "--epochs",
        "1",
        "--windows",
        "48",
        "--window",
        "8",
        "--features",
        "16",
        "--blocks",
        "1",
        "--write",
        "4",
    ],
    "custom_layer": ["--epochs", "2"],
}
"""Examples that train in float32, with arguments for a short run."""

FLOAT64 = {
    "linear_system": ["--steps", "200"],
    "closed_form_gradients": ["--widths", "3", "4", "2", "--samples", "3"],
    "two_layer_softmax": ["--epochs", "2", "--samples", "20"],
}
"""Examples that compute in float64."""

OTHERS = {"same_on_every_backend"}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_here():
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {*FLOAT32, *FLOAT64, *OTHERS}


# With full settings, on NumPy


def test_linear_system_is_solved():
    result = example("linear_system").main(["--backend", "numpy"])
    assert result["gradient_difference"] < 1e-12
    assert result["descent_F"] < 1e-20
    assert result["barzilai_borwein_F"] < 1e-20
    assert 0 < result["barzilai_borwein_steps"] < 100
    assert result["solution_error"] < 1e-10


def test_xnor_gate_ends_near_a_thousandth(capsys):
    result = example("xnor_gate").main(["--backend", "numpy"])
    assert result["first_loss"] > 0.2
    assert 0.0005 < result["loss"] < 0.0015
    assert result["worst"] < 0.06
    printed = capsys.readouterr().out
    for epoch in range(0, 10001, 1000):
        assert f"epoch {epoch:5d}: loss" in printed


def test_xor_gate_error_falls_to_near_zero(tmp_path):
    picture = tmp_path / "boundary.png"
    result = example("xor_gate").main(["--backend", "numpy", "--plot", str(picture)])
    assert result["first_error"] > 0.2
    assert result["error"] < 0.001
    assert result["worst"] < 0.05
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_two_layer_softmax_learns_and_its_gradients_follow_the_closed_forms():
    result = example("two_layer_softmax").main(["--backend", "numpy"])
    assert result["gradient_difference"] < 1e-12
    assert result["first_loss"] > 0.6
    assert result["accuracy"] > 0.97
    assert result["val_accuracy"] > 0.95


def test_iris_three_layers_knows_the_flowers_held_out():
    result = example("iris_three_layers").main(["--backend", "numpy"])
    assert result["val_accuracy"] >= 0.9
    assert result["accuracy"] >= 0.95
    assert result["loss"] < 0.05


def test_closed_form_gradients_are_the_librarys():
    result = example("closed_form_gradients").main(["--backend", "numpy"])
    assert result["layers"] < 1e-12
    assert result["perceptron"] < 1e-14


def test_digits_are_read():
    result = example("digits").main(["--backend", "numpy"])
    assert result["val_accuracy"] >= 0.97


def test_cnn_digits_are_read(capsys):
    result = example("cnn_digits").main(["--backend", "numpy"])
    assert result["val_accuracy"] >= 0.985
    assert "read wrong: " in capsys.readouterr().out


def test_residual_images_reads_digits():
    result = example("residual_images").main(["--backend", "numpy", "--epochs", "8"])
    assert result["val_accuracy"] >= 0.98


def test_residual_images_reads_a_folder_of_pictures(tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(80):
        colours = rng.integers(0, 90, (10, 12, 3), dtype=np.uint8)
        colours[..., number % 2] += 120  # one class is red, the other green
        path = tmp_path / ("green" if number % 2 else "red") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(colours).save(path)
    arguments = [str(tmp_path), "--resize", "8", "--flip", "--filters", "4", "8", "--epochs", "6"]
    result = example("residual_images").main(["--backend", "numpy", *arguments])
    assert result["val_accuracy"] >= 0.9
    assert "2 classes, 64 images of 8x8x3 to train on" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["IDX", "IDX with a part held out", "NPZ"])
def test_residual_images_reads_arrays(tmp_path, capsys, kind):
    rng = np.random.default_rng(0)
    labels = np.arange(80, dtype=np.uint8) % 2
    images = rng.integers(0, 90, (80, 7, 6), dtype=np.uint8) + np.where(labels, 120, 0)[:, None, None].astype(np.uint8)
    if kind == "NPZ":
        np.savez(tmp_path / "images.npz", images=images, labels=labels)
    else:
        for part in ("train", "t10k") if "held out" in kind else ("train",):
            for stem, array in (("images-idx3", images), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
                (tmp_path / f"{part}-{stem}-ubyte").write_bytes(header + array.tobytes())
    path = tmp_path / "images.npz" if kind == "NPZ" else tmp_path
    result = example("residual_images").main([str(path), "--backend", "numpy", "--filters", "4", "8", "--epochs", "6"])
    assert result["val_accuracy"] >= 0.9
    printed = capsys.readouterr().out
    trained = 80 if "held out" in kind else 64
    assert f"2 classes, {trained} images of 7x6x1 to train on" in printed


def test_char_rnn_learns_and_writes(capsys):
    arguments = ["--backend", "numpy", "--epochs", "3", "--write", "40"]
    result = example("char_rnn").main(arguments)
    # guessing by the frequency of the characters alone gives 2.97
    assert result["val_loss"] < 2.1
    written = capsys.readouterr().out.partition("the network writes:\n\n")[2]
    assert len(written.removesuffix("\n")) == 40
    again = example("char_rnn").main(arguments)
    assert again == result
    assert capsys.readouterr().out.partition("the network writes:\n\n")[2] == written


def test_transformer_text_learns_and_writes(capsys):
    arguments = ["--backend", "numpy", "--epochs", "2", "--features", "64", "--write", "40", "--temperature", "0.5"]
    result = example("transformer_text").main(arguments)
    assert result["val_loss"] < 2.4
    written = capsys.readouterr().out.partition("the network writes:\n\n")[2]
    assert len(written.removesuffix("\n")) == 40


def test_custom_layer_is_checked_and_learns(capsys):
    result = example("custom_layer").main(["--backend", "numpy"])
    assert result["accuracy"] > 0.97
    assert result["loss"] < 0.2
    assert "numpy" in capsys.readouterr().out


# On every row of the matrix


@pytest.mark.xpnn_rows(dtypes="float32")
@pytest.mark.parametrize("name", FLOAT32)
def test_float32_example_runs_as_on_numpy(name, backend):
    here = example(name).main(["--backend", backend.spec, *FLOAT32[name]])
    reference = example(name).main(["--backend", "numpy", *FLOAT32[name]])
    assert here.keys() == reference.keys()
    for key, value in reference.items():
        # A sample on the border between two classes may fall to either side.
        tolerance = {"abs": 0.05} if "accuracy" in key else {"rel": 2e-3}
        assert here[key] == pytest.approx(value, **tolerance)


@pytest.mark.xpnn_rows(dtypes="float64")
@pytest.mark.parametrize("name", FLOAT64)
def test_float64_example_runs_as_on_numpy(name, backend):
    here = example(name).main(["--backend", backend.spec, *FLOAT64[name]])
    reference = example(name).main(["--backend", "numpy", *FLOAT64[name]])
    for key, value in reference.items():
        # Differences and residuals are rounding errors: small, and not the same twice.
        assert here[key] == pytest.approx(value, rel=1e-9, abs=1e-10)


@pytest.mark.xpnn_rows(dtypes="float64")
def test_the_training_run_is_the_same_on_the_backend(backend):
    arguments = ["--backend", backend.spec, "--epochs", "3"]
    same_on_every_backend = example("same_on_every_backend")
    assert same_on_every_backend.main([*arguments, "--dtype", "float32"])[backend.spec] < 1e-4
    assert same_on_every_backend.main([*arguments, "--dtype", "float64"])[backend.spec] < 1e-12


def test_same_on_every_backend_names_those_that_cannot_run(capsys, monkeypatch):
    module = example("same_on_every_backend")
    monkeypatch.setattr(module.xpnn, "available_backends", lambda: {"numpy": None, "cupy": "no driver here"})
    assert module.main(["--epochs", "1"]) == {}
    assert "cupy: not usable here: no driver here" in capsys.readouterr().out


def test_without_an_argument_the_selector_decides(capsys):
    with xpnn.use_backend("numpy:readonly"):
        example("closed_form_gradients").main(FLOAT64["closed_form_gradients"])
    assert "backend numpy:readonly" in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize("name", [*FLOAT32, *FLOAT64, *sorted(OTHERS)])
def test_unknown_backend_is_refused(name):
    with pytest.raises(BackendError, match="unknown backend 'nonsense'; known: numpy"):
        example(name).main(["--backend", "nonsense"])


def run_file(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_file_runs_as_a_script():
    finished = run_file("closed_form_gradients", "--backend", "numpy", *FLOAT64["closed_form_gradients"])
    assert finished.returncode == 0, finished.stderr
    assert "perceptron: dc/dw" in finished.stdout


def test_script_with_an_unknown_backend_says_so():
    finished = run_file("xor_gate", "--backend", "nonsense")
    assert finished.returncode != 0
    assert "unknown backend 'nonsense'" in finished.stderr.splitlines()[-1]
