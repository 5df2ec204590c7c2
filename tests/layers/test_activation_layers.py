"""The layers that hold an activation."""

import inspect
import math

import numpy as np
import pytest

import xpnn
from xpnn.config import decode, encode
from xpnn.dispatch import OPS
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import Constant
from xpnn.layers import activation as activations
from xpnn.layers.activation import ACTIVATIONS, Activation
from xpnn.layers.layer import Run
from xpnn.ops.linear import FUSABLE

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
OTHER_SETTINGS = [
    xpnn.LeakyReLU(0.3),
    xpnn.ELU(0.5),
    xpnn.CELU(alpha=2),
    xpnn.GELU("tanh"),
    xpnn.SmeLU(0.5),
    xpnn.Softplus(beta=3.0),
]


def test_every_activation_has_a_name_and_is_public():
    classes = [
        found
        for _, found in inspect.getmembers(activations, inspect.isclass)
        if issubclass(found, Activation) and found is not Activation
    ]
    assert set(ACTIVATIONS.values()) == set(classes)
    assert len(classes) == 16
    for name, found in ACTIVATIONS.items():
        assert name == found.op_name
        assert getattr(xpnn, found.__name__) is found


@pytest.mark.parametrize(
    "layer", [*(found() for found in ACTIVATIONS.values()), *OTHER_SETTINGS], ids=lambda layer: repr(layer)
)
def test_layer_is_its_op(layer):
    x = np.linspace(-4, 4, 12).reshape(4, 3).astype("float32")
    dy = np.cos(x)
    assert layer.build((3,)) == ((3,), {})
    y, backward = layer.forward(x, {}, Run())
    wanted, vjp = OPS[layer.op_name](x, **layer.arguments()[1])
    assert (y == wanted).all()
    dx, gradients = backward(dy)
    assert (dx == vjp(dy)[0]).all()
    assert gradients == {}
    assert y.dtype == dx.dtype == np.float32


@pytest.mark.parametrize(
    "layer",
    [*OTHER_SETTINGS, xpnn.ReLU(), xpnn.PReLU(True, Constant(0.1)), xpnn.Softmax(1), xpnn.LogSoftmax()],
    ids=lambda layer: repr(layer),
)
def test_layer_survives_a_model_file(layer):
    again = decode(encode(layer))
    assert again == layer
    assert repr(again) == repr(layer)


def test_repr_shows_what_is_not_the_default():
    assert repr(xpnn.GELU()) == "GELU()"
    assert repr(xpnn.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)"
    assert xpnn.ELU() == xpnn.ELU(1)
    assert xpnn.ELU() != xpnn.ELU(2)
    assert xpnn.ELU() != xpnn.CELU()


def test_a_numpy_setting_does_not_widen_float32():
    layer = xpnn.ELU(np.float64(0.5))
    y, backward = layer.forward(np.array([-1.0, 1.0], dtype="float32"), {}, Run())
    assert y.dtype == backward(y)[0].dtype == np.float32


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf, "1", None, True])
@pytest.mark.parametrize(
    ("layer", "name"), [(xpnn.ELU, "alpha"), (xpnn.CELU, "alpha"), (xpnn.SmeLU, "beta"), (xpnn.Softplus, "beta")]
)
def test_settings_must_be_positive(layer, name, value):
    with pytest.raises(ConfigError, match=f"{name}=.*finite number > 0"):
        layer(**{name: value})


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf, "0.1", False])
def test_negative_slope_must_not_be_negative(value):
    with pytest.raises(ConfigError, match=r"negative_slope=.*finite number >= 0"):
        xpnn.LeakyReLU(value)


@pytest.mark.parametrize("value", ["exact", None, True, 1])
def test_gelu_knows_two_forms(value):
    with pytest.raises(ConfigError, match=r"approximate=.*'none', 'tanh'"):
        xpnn.GELU(value)


@pytest.mark.parametrize("name", FUSABLE)
@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_network_gives_what_an_unfused_one_gives(name, bias, backend, dtype):
    layer = xpnn.GELU("tanh") if name == "gelu_tanh" else ACTIVATIONS[name]()
    fused = xpnn.Sequential(xpnn.Dense(3, bias=bias), layer)
    # A Sequential of its own around the activation keeps it apart.
    unfused = xpnn.Sequential(xpnn.Dense(3, bias=bias), xpnn.Sequential(layer))
    assert [fusion for _, _, fusion in fused._plan] == [name]
    assert [fusion for _, _, fusion in unfused._plan] == [None, None]
    host = [np.sin(np.arange(math.prod(shape)) * 1.7).reshape(shape) * 3 for shape in ((5, 4), (4, 3), (3,), (5, 3))]
    x, weight, bias_array, dy = (backend.asarray(array, dtype) for array in host)
    dense = {"weight": weight, "bias": bias_array} if bias else {"weight": weight}
    y, backward = fused.forward(x, {"0": dense, "1": {}}, Run(training=True))
    wanted, wanted_backward = unfused.forward(x, {"0": dense, "1": {"0": {}}}, Run(training=True))
    dx, gradients = backward(dy)
    wanted_dx, wanted_gradients = wanted_backward(dy)
    pairs = [(y, wanted), (dx, wanted_dx)]
    pairs += [(gradients["0"][key], wanted_gradients["0"][key]) for key in dense]
    for got, want in pairs:
        got, want = backend.to_host(got), backend.to_host(want)
        assert got.dtype == want.dtype == np.dtype(dtype)
        assert np.abs(got - want).max() <= 8 * EPS[dtype] * np.abs(want).max()


def test_both_forms_of_gelu_are_fused_and_an_activation_with_a_setting_is_not():
    assert xpnn.GELU().fusable == "gelu"
    assert xpnn.GELU("tanh").fusable == "gelu_tanh"
    assert xpnn.ELU().fusable is None
    plan = xpnn.Sequential(xpnn.Dense(3), xpnn.ELU())._plan
    assert [fusion for _, _, fusion in plan] == [None, None]


@pytest.mark.parametrize(("shared", "slopes"), [(False, 3), (True, 1)])
def test_prelu_learns_its_slope(shared, slopes):
    layer = xpnn.PReLU(shared=shared)
    shape, parameters = layer.build((2, 3))
    assert shape == (2, 3)
    assert list(parameters) == ["slope"]
    assert parameters["slope"].shape == (slopes,)
    assert parameters["slope"].initializer == Constant(0.25)
    x = np.linspace(-2, 3, 24).reshape(4, 2, 3)
    slope = np.linspace(0.1, 0.5, slopes)
    y, backward = layer.forward(x, {"slope": slope}, Run())
    assert (y == np.where(x > 0, x, slope * x)).all()
    dy = np.cos(x)
    _, gradients = backward(dy)
    for index in range(slopes):
        shift = np.zeros(slopes)
        shift[index] = 0.5
        # y is linear in the slope: a difference quotient is exact but for rounding.
        upper, _ = layer.forward(x, {"slope": slope + shift}, Run())
        assert gradients["slope"][index] == pytest.approx(((upper - y) * dy).sum() / 0.5, rel=1e-12)


def test_prelu_in_a_network():
    net = xpnn.Network(xpnn.Dense(2, 4), xpnn.PReLU(), xpnn.Dense(1), dtype="float64")
    assert net.parameters["1.slope"].tolist() == [0.25] * 4
    x = np.array([[0.5, -1.0], [2.0, 1.0]])
    _, gradients = net.loss_and_gradients(x, np.ones((2, 1)), loss="mse")
    assert gradients["1.slope"].shape == (4,)
    assert np.abs(gradients["1.slope"]).max() > 0


def test_prelu_takes_another_initializer():
    _, parameters = xpnn.PReLU(slope_initializer=Constant(0.1)).build((3,))
    assert parameters["slope"].initializer == Constant(0.1)


def test_prelu_errors():
    with pytest.raises(ConfigError, match="shared=1 is a int"):
        xpnn.PReLU(shared=1)
    with pytest.raises(ConfigError, match=r"slope_initializer=0\.1 is a float.*Constant"):
        xpnn.PReLU(slope_initializer=0.1)
    with pytest.raises(ShapeError, match=r"single numbers; reshape"):
        xpnn.PReLU().build(())


@pytest.mark.parametrize(
    ("layer", "op", "kind"),
    [
        (xpnn.Softmax, xpnn.ops.softmax, "probabilities"),
        (xpnn.LogSoftmax, xpnn.ops.log_softmax, "log_probabilities"),
    ],
)
def test_softmax_layers(layer, op, kind, backend, dtype):
    assert layer().output_kind == kind
    assert xpnn.Sequential(xpnn.Dense(3), layer()).output_kind == kind
    x = backend.asarray(np.sin(np.arange(24.0)).reshape(4, 3, 2), dtype)
    dy = backend.asarray(np.cos(np.arange(24.0)).reshape(4, 3, 2), dtype)
    for axis in (-1, 1, 2, -2):
        found = layer(axis)
        assert found.build((3, 2)) == ((3, 2), {})
        y, backward = found.forward(x, {}, Run())
        wanted, vjp = op(x, axis=axis)
        assert (backend.to_host(y) == backend.to_host(wanted)).all()
        dx, gradients = backward(dy)
        assert (backend.to_host(dx) == backend.to_host(vjp(dy)[0])).all()
        assert gradients == {}


@pytest.mark.parametrize("layer", [xpnn.Softmax, xpnn.LogSoftmax])
def test_softmax_layer_errors(layer):
    with pytest.raises(ConfigError, match="axis 0 is the batch"):
        layer(0)
    for axis in (1.0, None, True, "last"):
        with pytest.raises(ConfigError, match="no integer"):
            layer(axis)
    with pytest.raises(ShapeError, match=r"samples of shape \(3,\), which have axes 1 to 1, or -1 to -1"):
        layer(2).build((3,))
    with pytest.raises(ShapeError, match="axes 1 to 1"):
        layer(-2).build((3,))
    with pytest.raises(ShapeError, match="no axis but the batch"):
        layer().build(())
