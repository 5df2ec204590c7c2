"""Dense: values, gradients, shapes, settings."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.testing import check_layer


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (xpnn.Dense(4), (5, 3)),
        (xpnn.Dense(3, 4, bias=False), (5, 3)),
        (xpnn.Dense(2), (3, 4, 3)),
        (xpnn.Dense(1), (1, 1)),
    ],
    ids=repr,
)
def test_dense_is_right_on_every_row(backend, dtype, layer, input_shape):
    check_layer(layer, input_shape, backend, dtype)


def test_dense_is_x_times_weight_plus_bias():
    network = xpnn.Network(xpnn.Dense(2, 3), dtype="float64")
    network.set_parameters({"0.weight": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "0.bias": [10.0, 20.0, 30.0]})
    np.testing.assert_array_equal(network.predict(np.array([[1.0, -1.0]])), [[7.0, 17.0, 27.0]])


def test_the_bias_starts_at_zero_and_the_weight_is_inputs_by_units():
    network = xpnn.Network(xpnn.Dense(5, 3), xpnn.Dense(2, bias=False))
    assert list(network.parameters) == ["0.weight", "0.bias", "1.weight"]
    assert [value.shape for value in network.parameters.values()] == [(5, 3), (3,), (3, 2)]
    assert (network.parameters["0.bias"] == 0.0).all()
    limit = np.sqrt(6 / 8)
    assert 0.0 < np.abs(network.parameters["0.weight"]).max() < limit


def test_initializers_by_object_and_by_name():
    layer = xpnn.Dense(
        3, weight_initializer=xpnn.initializers.Constant(0.5), bias_initializer=xpnn.initializers.Constant(-1.0)
    )
    network = xpnn.Network(layer, input_shape=(2,))
    assert (network.parameters["0.weight"] == 0.5).all()
    assert (network.parameters["0.bias"] == -1.0).all()
    assert (xpnn.Network(xpnn.Dense(2, 2, bias_initializer="ones")).parameters["0.bias"] == 1.0).all()


@pytest.mark.parametrize("sizes", [(), (1, 2, 3)])
def test_dense_takes_one_or_two_sizes(sizes):
    with pytest.raises(ConfigError, match=r"write Dense\(units\) or Dense\(inputs, units\)"):
        xpnn.Dense(*sizes)


@pytest.mark.parametrize("size", [0, -1, 2.0, "3", None, True])
def test_a_size_is_a_positive_integer(size):
    with pytest.raises(ConfigError, match="give an integer of at least 1"):
        xpnn.Dense(size)


def test_a_size_may_be_any_integer_type():
    assert xpnn.Dense(np.int64(3)) == xpnn.Dense(3)
    assert type(xpnn.Dense(np.int64(3)).sizes[0]) is int


def test_a_wrong_shape_is_named_with_what_is_wanted():
    with pytest.raises(
        ShapeError,
        match=r"^layer 1 Dense\(4, 2\): got samples of shape \(3,\), wants 4 features in the last axis; write",
    ):
        xpnn.Network(xpnn.Dense(5, 3), xpnn.Dense(4, 2))
    with pytest.raises(ShapeError, match=r"layer 0 Dense\(2\): got samples that are single numbers"):
        xpnn.Network(xpnn.Dense(2), input_shape=())


def test_no_arithmetic_is_done_before_a_shape_error(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an op ran")

    built = xpnn.Network(xpnn.Dense(3, 2))
    unbuilt = xpnn.Network(xpnn.Tanh(), xpnn.Flatten(), xpnn.Dense(3, 2))
    monkeypatch.setattr(xpnn.dispatch.Op, "__call__", refuse)
    for network in (built, unbuilt):
        with pytest.raises(ShapeError, match=r"samples of shape \(5,\)"):
            network.predict(np.zeros((4, 5)))


def test_the_input_gradient_is_left_out_where_nobody_needs_it():
    x, weight, bias = np.ones((2, 3)), np.ones((3, 2)), np.zeros(2)
    for wanted in (True, False):
        y, backward = xpnn.Dense(2).forward(x, {"weight": weight, "bias": bias}, Run(input_gradient=wanted))
        dx, gradients = backward(np.ones_like(y))
        assert (dx is not None) is wanted
        np.testing.assert_array_equal(gradients["weight"], np.full((3, 2), 2.0))


def test_repr_and_equality():
    assert repr(xpnn.Dense(2, 3)) == "Dense(2, 3)"
    assert repr(xpnn.Dense(3, bias=False, weight_initializer="he_normal")) == (
        "Dense(3, bias=False, weight_initializer='he_normal')"
    )
    assert xpnn.Dense(3) == xpnn.Dense(3)
    assert xpnn.Dense(3) != xpnn.Dense(4)
