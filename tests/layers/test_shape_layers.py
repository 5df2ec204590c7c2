"""Flatten and Reshape."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.testing import check_layer


@pytest.mark.parametrize(
    ("layer", "input_shape", "output_shape"),
    [
        (xpnn.Flatten(), (4, 2, 3), (6,)),
        (xpnn.Flatten(), (4, 5), (5,)),
        (xpnn.Flatten(), (4,), (1,)),
        (xpnn.Reshape(3, 2), (4, 6), (3, 2)),
        (xpnn.Reshape(2, -1), (4, 2, 3), (2, 3)),
        (xpnn.Reshape(-1), (4, 2, 3), (6,)),
        (xpnn.Reshape(-1, 1), (4,), (1, 1)),
        (xpnn.Reshape(), (4, 1), ()),
        (xpnn.Reshape((3, 2)), (4, 6), (3, 2)),
    ],
    ids=repr,
)
def test_shape_layers_are_right_on_every_row(backend, dtype, layer, input_shape, output_shape):
    assert layer.build(input_shape[1:]) == (output_shape, {})
    check_layer(layer, input_shape, backend, dtype)


def test_values_keep_their_order():
    x = np.arange(12.0).reshape(2, 6)
    network = xpnn.Network(xpnn.Reshape(2, 3), dtype="float64", input_shape=(6,))
    np.testing.assert_array_equal(network.predict(x), x.reshape(2, 2, 3))


@pytest.mark.parametrize("shape", [(-1, -1), (0, 2), (-2,), (1.5,), ("a",), (None,)])
def test_lengths_that_make_no_sense(shape):
    with pytest.raises(ConfigError, match=r"only one length may be -1|give an integer of at least 1"):
        xpnn.Reshape(*shape)


@pytest.mark.parametrize(
    ("shape", "wanted"), [((4, 2), "8"), ((4, -1), "a multiple of 4"), ((), "1"), ((7, -1), "a multiple of 7")]
)
def test_another_number_of_elements_is_a_shape_error(shape, wanted):
    message = rf"^layer 0 Reshape\(.*\): got samples of shape \(2, 3\) with 6 elements, wants {wanted}; give"
    with pytest.raises(ShapeError, match=message):
        xpnn.Network(xpnn.Reshape(*shape), input_shape=(2, 3))


def test_an_empty_batch_with_a_free_length():
    assert xpnn.Network(xpnn.Reshape(-1, 2)).predict(np.zeros((0, 6))).shape == (0, 3, 2)
