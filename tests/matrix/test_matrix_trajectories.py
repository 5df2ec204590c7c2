"""One seed, trained on every row: what differs is rounding alone."""

import numpy as np
import pytest

import xpnn
from xpnn import initializers

# How far the losses of 20 steps may lie apart, relative to the first loss: 20 and 10 times what was measured.
TOLERANCE = {"float64": 1e-14, "float32": 1e-6}

OPTIMIZERS = [
    xpnn.SGD(0.1),
    xpnn.SGD(0.1, momentum=0.9, nesterov=True),
    xpnn.RMSprop(0.01),
    xpnn.Adagrad(0.05),
    xpnn.Adadelta(1.0),
    xpnn.Adam(0.01),
    xpnn.AMSGrad(0.01),
    xpnn.AdamW(0.01),
    xpnn.Nadam(0.01),
    xpnn.Lion(0.01),
    xpnn.LAMB(0.01),
    xpnn.LARS(0.1),
    xpnn.Adafactor(0.01),
    xpnn.Muon(0.01),
]


FULL_BATCH = {"barzilai_borwein", "lbfgs"}
"""Optimizers that divide differences of gradients by each other and make no sense with mini-batches."""


def test_every_optimizer_is_here():
    assert {optimizer.name for optimizer in OPTIMIZERS} | FULL_BATCH == set(xpnn.optimizers.OPTIMIZERS)


def network(backend, dtype):
    return xpnn.Network(
        xpnn.Dense(4, 8), xpnn.Tanh(), xpnn.Dropout(0.25), xpnn.Dense(3), backend=backend, dtype=dtype, seed=3
    )


def data():
    x = np.sin(np.arange(128.0)).reshape(32, 4)
    return x, np.arange(32) % 3


def losses(backend, dtype, optimizer):
    """The loss of each of 5 epochs of 4 shuffled batches, with dropout."""
    x, y = data()
    history = network(backend, dtype).fit(
        x, y, loss="cross_entropy", optimizer=optimizer, epochs=5, batch_size=8, verbose=False
    )
    return np.asarray(history["loss"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_losses_agree_with_numpy_in_float64(optimizer, backend, dtype):
    want = losses("numpy", "float64", optimizer)
    got = losses(backend, dtype, optimizer)
    assert got.shape == want.shape == (5,)
    assert want[-1] < want[0]
    assert np.max(np.abs(got - want)) <= TOLERANCE[dtype] * want[0]


def test_initial_weights_are_the_same_bits(backend, dtype):
    mine, reference = network(backend, dtype).parameters, network("numpy", dtype).parameters
    assert list(mine) == list(reference)
    for name in reference:
        np.testing.assert_array_equal(backend.to_host(mine[name]), reference[name])


def test_order_of_batches_and_masks_are_the_same(backend, dtype):
    # With small dyadic numbers every step is exact, so that the weights tell in which order the samples came, and
    # which of them were dropped: they are the same bits everywhere, or something else happened.
    def train(where):
        net = xpnn.Network(
            xpnn.Dropout(0.5),
            xpnn.Dense(1, bias=False, weight_initializer=initializers.Zeros()),
            backend=where,
            dtype=dtype,
            seed=4,
        )
        x, y = np.asarray([[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0], [2.0, 2.0]]), np.asarray([[1.0], [2.0], [3.0], [-1.0]])
        net.fit(x, y, loss="mse", optimizer=xpnn.SGD(0.0625), epochs=1, batch_size=1, verbose=False)
        return net.backend.to_host(net.parameters["1.weight"])

    weights = train(backend)
    assert np.count_nonzero(weights) > 0
    np.testing.assert_array_equal(weights, train("numpy"))
