"""The recipe for a layer of one's own, examples/custom_layer.py: right everywhere, trained, saved."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import xpnn
from xpnn.errors import CheckError, ConfigError, ShapeError
from xpnn.layers import Layer, Parameter
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


class Affine(Layer):
    """y = x * scale + shift; tests replace its methods by faulty ones."""

    def build(self, input_shape):
        ones, zeros = xpnn.initializers.Ones(), xpnn.initializers.Zeros()
        return input_shape, {"scale": Parameter(input_shape, ones), "shift": Parameter(input_shape, zeros)}

    def gradients(self, x, dy):
        return {"scale": (dy * x).sum(axis=0), "shift": dy.sum(axis=0)}

    def forward(self, x, parameters, run):
        def backward(dy):
            return dy * parameters["scale"], self.gradients(x, dy)

        return x * parameters["scale"] + parameters["shift"], backward


FAULTY_GRADIENTS = {
    "no gradient of its parameter 'shift'": lambda x, dy: {"scale": (dy * x).sum(axis=0)},
    "no gradient of its parameter 'scale'": lambda x, dy: {"scale": None, "shift": dy.sum(axis=0)},
    "a gradient of 'bias', which is none": lambda x, dy: {
        "scale": (dy * x).sum(axis=0),
        "shift": dy.sum(axis=0),
        "bias": dy,
    },
    r"a gradient of 'shift' of shape \(6, 3\)": lambda x, dy: {"scale": (dy * x).sum(axis=0), "shift": dy},
    "a gradient of 'scale' of shape .* float64": lambda x, dy: {
        "scale": (dy * x).sum(axis=0).astype("float64"),
        "shift": dy.sum(axis=0),
    },
    "no gradient of its parameter 'scale';": lambda x, dy: None,
}
X = np.random.default_rng(0).standard_normal((6, 3)).astype("float32")


@pytest.mark.parametrize("message", list(FAULTY_GRADIENTS))
@pytest.mark.parametrize("inside", [False, True])
def test_faulty_gradients_name_layer_and_parameter(message, inside, monkeypatch):
    monkeypatch.setattr(Affine, "gradients", lambda self, x, dy: FAULTY_GRADIENTS[message](x, dy))
    layer = xpnn.Residual(Affine()) if inside else Affine()
    net = xpnn.Network(layer, xpnn.Dense(3), backend="numpy")
    where = f"layer '{'0.0' if inside else '0'}' gives {message}"
    with pytest.raises(ConfigError, match=where):
        net.fit(X, X, loss="mse", optimizer="sgd", batch_size=6, verbose=0)
    with pytest.raises(ConfigError, match=where):
        net.loss_and_gradients(X, X, loss="mse")
    with pytest.raises(CheckError):
        check_layer(Affine(), (6, 3), xpnn.get_backend("numpy"), "float32")


FAULTY_BUILDS = {
    "it returned None": None,
    "it returned 3": 3,
    r"it returned \(\(3,\), None\)": ((3,), None),
    "3 as the shape of an output sample": (3, {}),
    r"\(3.0,\) as the shape of its parameter 'scale'": ((3,), {"scale": Parameter((3.0,), xpnn.initializers.Ones())}),
    r"\(-1,\) as the shape of its parameter 'scale'": ((3,), {"scale": Parameter((-1,), xpnn.initializers.Ones())}),
    "initializer of its parameter 'scale' is 'ones'": ((3,), {"scale": Parameter((3,), "ones")}),
    "give an xpnn.Parameter": ((3,), {"scale": (3,)}),
}


@pytest.mark.parametrize("message", list(FAULTY_BUILDS))
def test_a_faulty_build_names_the_layer(message, monkeypatch):
    monkeypatch.setattr(Affine, "build", lambda self, input_shape: FAULTY_BUILDS[message])
    with pytest.raises(ConfigError, match=rf"Affine\(\): .*{message}"):
        xpnn.Network(xpnn.Dense(3), [Affine()], backend="numpy", input_shape=(3,))
    with pytest.raises(ConfigError, match=message):
        check_gradients(Affine(), (4, 3))


def test_an_initializer_of_ones_own_must_keep_to_the_shape():
    class Seven(xpnn.initializers.Initializer):
        def sample(self, shape, draw):
            return np.ones(7)

    with pytest.raises(ConfigError, match=r"Seven\(\) gave an array of shape \(7,\) for the parameter '0.weight'"):
        xpnn.Network(xpnn.Dense(3, 2, weight_initializer=Seven()), backend="numpy")


def test_an_error_inside_a_layer_says_in_which():
    class Failing(Layer):
        def forward(self, x, parameters, run):
            raise ZeroDivisionError("mine")

    class OutputOnly(Layer):
        def forward(self, x, parameters, run):
            return x

    class GradientOnly(Layer):
        def forward(self, x, parameters, run):
            return x, lambda dy: dy

    for layer, notes in {
        Failing: ["in the forward pass of layer 0 (Failing)", "in the forward pass of layer 1 (Sequential)"],
        OutputOnly: ["in the forward pass of layer 0 (OutputOnly)", "in the forward pass of layer 1 (Sequential)"],
        GradientOnly: [
            "in the backward pass of layer 0 (GradientOnly)",
            "in the backward pass of layer 1 (Sequential)",
        ],
    }.items():
        net = xpnn.Network(xpnn.Dense(3, 3), [layer()], backend="numpy")
        with pytest.raises((ZeroDivisionError, ValueError)) as caught:
            net.loss_and_gradients(X, X, loss="mse")
        assert [note.partition(",")[0] for note in caught.value.__notes__] == notes


def test_a_layer_whose_output_is_not_what_build_promised_is_noticed():
    class Narrow(Layer):
        def forward(self, x, parameters, run):
            return x[:, :1], lambda dy: (dy, {})

    with pytest.raises(ShapeError, match=r"gives samples of shape \(1,\), and its layers' build promised \(3,\)"):
        xpnn.Network(Narrow(), backend="numpy").predict(X)


def test_a_constructor_that_does_not_store_its_argument():
    class Forgetful(Layer):
        def __init__(self, k=3):
            self.kk = k

        def forward(self, x, parameters, run):
            return x, lambda dy: (dy, {})

    net = xpnn.Network(xpnn.Dense(3, 3), Forgetful(), backend="numpy")
    assert net.fit(X, X, loss="mse", optimizer="sgd", verbose=0).epochs == [1]
    with pytest.raises(ConfigError, match=r"Forgetful: the constructor must store its argument 'k' as self\.k"):
        repr(net)
