"""Compiled steps on NumPy for arrays of many shapes, and predictions, which run through them."""

import numpy as np
import pytest

import xpnn
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.fast import why_not
from xpnn_backends.numpy_backend import NumpyBackend

assert NumpyBackend  # it makes recorded arrays known to the dispatch table

native_too = pytest.mark.parametrize(
    "native",
    [False, pytest.param(True, marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))],
    ids=["numpy", "native"],
)

FEATURES, CLASSES = 5, 3
X = np.random.default_rng(3).standard_normal((11, FEATURES))
NUMBERS = np.random.default_rng(4).uniform(-1.0, 1.0, (11, CLASSES))

NETWORKS = {
    "relu": lambda: [xpnn.Dense(8), xpnn.ReLU(), xpnn.Dense(CLASSES)],
    "dropout": lambda: [xpnn.Dense(9), xpnn.GELU(), xpnn.Dropout(0.4), xpnn.Dense(CLASSES)],
    "embedding": lambda: [xpnn.Embedding(7, 3), xpnn.Flatten(), xpnn.Dense(CLASSES)],
    "softmax": lambda: [xpnn.Dense(CLASSES), xpnn.Softmax()],
    "residual": lambda: [xpnn.Residual(xpnn.Dense(FEATURES), xpnn.SiLU()), xpnn.Dense(CLASSES)],
}


def build(name, dtype):
    shape = (4,) if name == "embedding" else (FEATURES,)
    return xpnn.Network(*NETWORKS[name](), backend="numpy", dtype=dtype, seed=7, input_shape=shape)


def tolerance(dtype):
    return {"rtol": 1e-9, "atol": 1e-11} if dtype == "float64" else {"rtol": 5e-4, "atol": 5e-5}


@native_too
def test_more_shapes_than_programs_are_kept(native):
    recorded = []

    def step(state, batch):
        (x,) = batch
        if not isinstance(x, np.ndarray):
            recorded.append(x.shape[0])
        total = xpnn.dispatch.namespace(x).sum(x)
        return (state[0] + total,), total

    compiled = CompiledStep(step, native)
    state, wanted = (np.zeros(()),), 0.0
    lengths = [*range(1, 13), 3, 7, *range(1, 41), *range(1, 41), 5, 40, 5]
    for length in lengths:
        x = np.arange(length) + 1.0
        state, value = compiled(state, (x,))
        wanted += x.sum()
        assert (value, state[0]) == (x.sum(), wanted)
    assert compiled.why_not is None
    # as long as there is room, each shape is recorded at its first call, and never again
    first = recorded[: recorded.index(13)]
    assert sorted(set(first)) == list(range(1, 13))
    assert first == sorted(first)
    assert len(recorded) < len(lengths) * first.count(1)


def eager_outputs(net, inputs):
    """What the layers give, op by op."""
    tree = net.layout.tree(net._theta, net._buffers)
    return net.root.forward(inputs, tree, xpnn.layers.Run())[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_of_batches_of_any_size(name, dtype):
    net = build(name, dtype)
    rng = np.random.default_rng(0)
    results = []
    for count in (1, 2, 5, 32, 1025, 5, 1, 0):
        x = rng.integers(0, 7, (count, 4)) if name == "embedding" else rng.standard_normal((count, FEATURES))
        x = x if name == "embedding" else x.astype(dtype)
        result = net.predict(x)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, eager_outputs(net, x), **tolerance(dtype))
        results.append((result, result.copy()))
    for result, before in results:
        np.testing.assert_array_equal(result, before)


def test_predictions_follow_their_input_and_the_weights():
    net = build("relu", "float64")
    x = X.copy()
    first = net.predict(x)
    x[:] = X[::-1]
    second = net.predict(x)
    np.testing.assert_allclose(second, first[::-1], rtol=1e-12)
    assert not np.shares_memory(first, second)
    second[:] = 0.0
    np.testing.assert_allclose(net.predict(x), first[::-1], rtol=1e-12)
    net.set_parameters({name: 2.0 * array for name, array in net.parameters.items()})
    third = net.predict(x)
    np.testing.assert_allclose(third, eager_outputs(net, x), rtol=1e-12)
    net.fit(X, NUMBERS, loss="mse", optimizer="sgd", verbose=0)
    fourth = net.predict(x)
    np.testing.assert_allclose(fourth, eager_outputs(net, x), rtol=1e-12)
    assert not np.allclose(third, fourth)


def test_predictions_of_a_network_without_parameters_are_copies():
    net = xpnn.Network(xpnn.Flatten(), input_shape=(2, 3), dtype="float64")
    x = np.arange(12.0).reshape(2, 2, 3)
    first, second = net.predict(x), net.predict(x)
    np.testing.assert_array_equal(first, x.reshape(2, 6))
    assert not np.shares_memory(first, x)
    assert not np.shares_memory(first, second)
