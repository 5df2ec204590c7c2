"""The embedding layer."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, DataError
from xpnn.layers import Run
from xpnn.testing import check_layer


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (xpnn.Embedding(5, 3), (4, 6)),
        (xpnn.Embedding(5, 3), (7,)),
        (xpnn.Sequential(xpnn.Reshape(-1), xpnn.Embedding(4, 2), xpnn.Flatten(), xpnn.Dense(3)), (5, 2, 2)),
        (xpnn.Parallel(xpnn.Embedding(4, 2), xpnn.Embedding(6, 3), combine="concatenate"), (5, 3)),
        (xpnn.Residual(xpnn.Embedding(4, 2), xpnn.Dense(2), shortcut=xpnn.Embedding(4, 2)), (5, 3)),
    ],
    ids=["2d", "1d", "sequential", "parallel", "residual"],
)
def test_embedding_is_right_on_every_row(backend, dtype, layer, input_shape):
    check_layer(layer, input_shape, backend, dtype)


def test_the_table_is_one_parameter_with_normal_rows():
    network = xpnn.Network(xpnn.Embedding(500, 8), xpnn.Flatten(), xpnn.Dense(2), input_shape=(3,))
    table = network.parameters["0.weight"]
    assert table.shape == (500, 8)
    assert abs(table.std() - 1.0) < 5 / np.sqrt(2 * 4000)
    assert network.parameters["2.weight"].shape == (24, 2)


def test_a_row_that_occurs_often_gets_all_its_gradients(backend, dtype):
    network = xpnn.Network(xpnn.Embedding(4, 2), backend=backend, dtype=dtype, input_shape=(3,))
    _, gradients = network.loss_and_gradients(
        np.array([[2, 2, 0], [2, 1, 2]]), np.zeros((2, 3, 2)), loss=xpnn.MSE(reduction="half_sum")
    )
    table = backend.to_host(network.parameters["0.weight"])
    want = table * np.array([[1.0], [1.0], [4.0], [0.0]])
    np.testing.assert_allclose(backend.to_host(gradients["0.weight"]), want, rtol=1e-6)


def test_training_an_embedding_moves_the_rows_that_occur_and_no_others(backend, dtype):
    X, y = np.array([[0], [1], [0], [1]]), np.array([[1.0], [-1.0], [1.0], [-1.0]])
    network = xpnn.Network(xpnn.Embedding(3, 1), xpnn.Flatten(), backend=backend, dtype=dtype)
    network.build((1,))
    before = backend.to_host(network.parameters["0.weight"])
    network.fit(X, y, loss="mse", optimizer=xpnn.SGD(0.5), epochs=30, batch_size=None, verbose=0)
    after = backend.to_host(network.parameters["0.weight"])
    np.testing.assert_allclose(after[:2, 0], [1.0, -1.0], atol=1e-6)
    np.testing.assert_array_equal(after[2], before[2])


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_refused_where_data_come_in(index):
    network = xpnn.Network(xpnn.Embedding(3, 2), xpnn.Flatten())
    with pytest.raises(DataError, match=f"index {index}"):
        network.predict(np.array([[0, index]]))


@pytest.mark.parametrize(
    ("layer", "limit"),
    [
        (xpnn.Embedding(7, 2), 7),
        (xpnn.Sequential(xpnn.Flatten(), xpnn.Embedding(7, 2), xpnn.Dense(1)), 7),
        (xpnn.Parallel(xpnn.Embedding(7, 2), xpnn.Embedding(5, 2)), 5),
        (xpnn.Residual(xpnn.Embedding(7, 2), shortcut=xpnn.Embedding(9, 2)), 7),
        (xpnn.Sequential(xpnn.Parallel([xpnn.Flatten(), xpnn.Embedding(4, 2)])), 4),
        (xpnn.Dense(3), None),
        (xpnn.Sequential(), None),
        (xpnn.Sequential(xpnn.Dense(3)), None),
    ],
    ids=repr,
)
def test_composites_pass_the_limit_of_the_indices_on(layer, limit):
    assert layer.index_limit == limit


def test_indices_have_no_gradient():
    y, backward = xpnn.Embedding(3, 2).forward(np.array([0, 2]), {"weight": np.eye(3, 2)}, Run())
    dx, gradients = backward(np.ones_like(y))
    assert dx is None
    np.testing.assert_array_equal(gradients["weight"], [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0), (2.0, 1), (True, 2)])
def test_sizes_are_positive_integers(sizes):
    with pytest.raises(ConfigError, match="give an integer of at least 1"):
        xpnn.Embedding(*sizes)


def test_an_initializer_by_name():
    network = xpnn.Network(xpnn.Embedding(3, 2, weight_initializer="ones"), input_shape=(1,))
    assert (network.parameters["0.weight"] == 1.0).all()
