"""Lambda: a function, or an op by its name, as a layer."""

import numpy as np
import pytest

import xpnn
from xpnn.config import decode, encode
from xpnn.dispatch import namespace
from xpnn.errors import ConfigError, ShapeError
from xpnn.testing import check_layer


def square(x):
    return x * x, lambda dy: (2.0 * x * dy,)


def total(x):
    xp = namespace(x)
    return xp.sum(x, axis=-1), lambda dy: (xp.broadcast_to(xp.expand_dims(dy, axis=-1), x.shape),)


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (xpnn.Lambda(square), (4, 3)),
        (xpnn.Lambda("tanh"), (4, 3)),
        (xpnn.Lambda("leaky_relu", negative_slope=0.25), (4, 3)),
        (xpnn.Lambda(total, output_shape=()), (4, 3)),
        (xpnn.Lambda(total, output_shape=lambda shape: shape[:-1]), (4, 2, 3)),
        (xpnn.Lambda("flatten", output_shape=(6,)), (4, 2, 3)),
    ],
    ids=["function", "op", "options", "tuple", "rule", "flatten"],
)
def test_lambda_is_right_on_every_row(backend, dtype, layer, input_shape):
    check_layer(layer, input_shape, backend, dtype)


def test_a_function_that_breaks_its_promise_is_an_error():
    network = xpnn.Network(xpnn.Lambda(total), input_shape=(3,))
    with pytest.raises(
        ShapeError, match=r"its function made \(2,\) of \(2, 3\), and \(2, 3\) was promised; give output"
    ):
        network.predict(np.zeros((2, 3)))


def test_an_op_object_is_taken_by_its_name():
    assert xpnn.Lambda(xpnn.ops.tanh) == xpnn.Lambda("tanh")


def test_an_op_by_name_survives_a_model_file_and_a_function_does_not():
    layer = xpnn.Lambda("leaky_relu", negative_slope=0.25)
    assert decode(encode(layer)) == layer
    assert repr(layer) == "Lambda(function='leaky_relu', negative_slope=0.25)"
    for broken in (xpnn.Lambda(square), xpnn.Lambda("tanh", output_shape=lambda shape: shape)):
        with pytest.raises(ConfigError, match="cannot be written into a model file"):
            encode(broken)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: xpnn.Lambda("tann"), r"Lambda\('tann'\): there is no op of that name; known: .*tanh"),
        (lambda: xpnn.Lambda(3), "function=3 is a int; give a function"),
        (lambda: xpnn.Lambda(square, output_shape="4"), "output_shape='4' is no shape"),
        (lambda: xpnn.Lambda(square, output_shape=(0,)), "give an integer of at least 1"),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
