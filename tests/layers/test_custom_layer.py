"""The recipe for a layer of one's own, examples/custom_layer.py: right everywhere, trained, saved."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import xpnn
from xpnn.errors import CheckError, ShapeError
from xpnn.testing import check_gradients, check_layer


def load_example():
    path = Path(__file__).parents[2] / "examples" / "custom_layer.py"
    spec = importlib.util.spec_from_file_location("example_custom_layer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


def test_it_separates_the_rings(capsys):
    result = example.main(["--backend", "numpy"])
    assert result["accuracy"] > 0.99
    assert result["loss"] < 0.05
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.xpnn_rows(dtypes=["float64"], reason="the example checks both dtypes itself")
def test_it_runs_on_every_row(backend, dtype):
    result = example.main(["--backend", backend.spec, "--epochs", "2"])
    reference = example.main(["--backend", "numpy", "--epochs", "2"])
    assert abs(result["loss"] - reference["loss"]) < 1e-4


def test_the_layer_is_right_on_every_row(backend, dtype):
    check_layer(example.RadialBasis(5, width=0.8), (4, 3), backend, dtype)
    check_layer(xpnn.Sequential(xpnn.Dense(3), xpnn.Residual(example.RadialBasis(3))), (4, 2), backend, dtype)


def test_a_wrong_derivative_in_a_layer_of_ones_own_is_found():
    class Wrong(example.RadialBasis):
        def forward(self, x, parameters, run):
            y, backward = super().forward(x, parameters, run)
            return y, lambda dy: (backward(dy)[0], {"centres": -backward(dy)[1]["centres"]})

    with pytest.raises(CheckError, match="gradient of 'centres' is wrong"):
        check_gradients(Wrong(5), input_shape=(4, 3))


def test_its_shape_error_names_it_and_its_path():
    with pytest.raises(ShapeError, match=r"^layer 1 RadialBasis\(units=4\): got samples of shape \(2, 3\), wants one"):
        xpnn.Network(xpnn.Reshape(2, 3), example.RadialBasis(4), input_shape=(6,))


def test_it_survives_a_model_file(tmp_path):
    net = xpnn.Network(example.RadialBasis(4, width=0.5), xpnn.Dense(2), input_shape=(3,))
    net.save(tmp_path / "model.safetensors")
    again = xpnn.Network.load(tmp_path / "model.safetensors", custom=[example.RadialBasis])
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(x), net.predict(x))


def test_shared_layers_survive_a_model_file(tmp_path):
    dense = xpnn.Dense(3)
    net = xpnn.Network(dense, xpnn.Residual(xpnn.Tanh(), dense), input_shape=(3,))
    net.save(tmp_path / "model.safetensors")
    again = xpnn.Network.load(tmp_path / "model.safetensors")
    assert list(again.parameters) == ["0.weight", "0.bias"]
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(again.predict(x), net.predict(x))
