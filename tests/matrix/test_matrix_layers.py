"""Every layer on every row: values, gradients, discipline, an empty batch, and central differences."""

import pytest

import xpnn
from xpnn import layers
from xpnn.layers import Layer

LAYERS = [
    (xpnn.Dense(2), (4, 3)),
    (xpnn.Dense(2, bias=False), (4, 3)),
    (xpnn.Dense(3, 2), (2, 4, 3)),
    (xpnn.CELU(), (4, 3)),
    (xpnn.ELU(), (4, 3)),
    (xpnn.GELU(), (4, 3)),
    (xpnn.SELU(), (4, 3)),
    (xpnn.HardSigmoid(), (4, 3)),
    (xpnn.HardSwish(), (4, 3)),
    (xpnn.LeakyReLU(), (4, 3)),
    (xpnn.LogSigmoid(), (4, 3)),
    (xpnn.Mish(), (4, 3)),
    (xpnn.PReLU(), (4, 3)),
    (xpnn.ReLU(), (4, 3)),
    (xpnn.Sigmoid(), (4, 3)),
    (xpnn.SiLU(), (4, 3)),
    (xpnn.SmeLU(), (4, 3)),
    (xpnn.Softplus(), (4, 3)),
    (xpnn.Softsign(), (4, 3)),
    (xpnn.Tanh(), (4, 3)),
    (xpnn.Softmax(), (4, 3)),
    (xpnn.LogSoftmax(), (4, 3)),
    (xpnn.Dropout(0.4), (4, 3)),
    (xpnn.Embedding(5, 2), (4, 3)),
    (xpnn.Flatten(), (4, 3, 2)),
    (xpnn.Reshape((2, 3)), (4, 6)),
    (xpnn.Lambda("softplus"), (4, 3)),
    (xpnn.Residual(xpnn.Dense(3), xpnn.Tanh()), (4, 3)),
    (xpnn.Parallel(xpnn.Dense(2), xpnn.Dense(2)), (4, 3)),
    (xpnn.Parallel(xpnn.Dense(2), xpnn.Sequential(), combine="concatenate"), (4, 3)),
    (xpnn.Sequential(xpnn.Dense(4), xpnn.Tanh(), xpnn.Dropout(0.5), xpnn.Dense(2), xpnn.Softmax()), (4, 3)),
    (xpnn.Sequential(xpnn.Embedding(5, 2), xpnn.Flatten(), xpnn.Dense(3)), (4, 3)),
]
SHARED = xpnn.Dense(3, 3)
LAYERS.append((xpnn.Sequential(SHARED, xpnn.Tanh(), SHARED), (4, 3)))

ABSTRACT = {"Activation", "Layer"}
"""Base classes, which compute nothing themselves."""


def test_every_layer_has_an_entry():
    public = {
        name
        for name in layers.__all__
        if isinstance(getattr(layers, name), type) and issubclass(getattr(layers, name), Layer)
    }
    assert {type(layer).__name__ for layer, _ in LAYERS} == public - ABSTRACT


@pytest.mark.parametrize(
    ("layer", "input_shape"), [pytest.param(layer, shape, id=f"{layer!r}-{shape}") for layer, shape in LAYERS]
)
def test_layer(layer, input_shape, backend, dtype):
    xpnn.testing.check_layer(layer, input_shape, backend, dtype)
