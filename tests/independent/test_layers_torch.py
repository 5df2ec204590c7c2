"""PyTorch's own layers and autograd, with the same weights, agree with xpnn's layers."""

import numpy as np
import pytest

import xpnn

torch = pytest.importorskip("torch")

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def tensors(network):
    """The network's parameters as PyTorch tensors that collect gradients."""
    return {name: torch.tensor(value, requires_grad=True) for name, value in network.parameters.items()}


def assert_agrees(network, x, forward, loss="mse"):
    """Output, loss and gradients of `network` are those of `forward(x, tensors)` under PyTorch's autograd."""
    parameters = tensors(network)
    want = forward(torch.tensor(x), parameters)
    np.testing.assert_allclose(network.predict(x), want.detach().numpy(), **TOLERANCE)
    target = np.random.default_rng(9).standard_normal(tuple(want.shape))
    criterion = torch.nn.functional.mse_loss(want, torch.tensor(target))
    criterion.backward()
    value, gradients = network.loss_and_gradients(x, target, loss=loss)
    np.testing.assert_allclose(value, criterion.item(), **TOLERANCE)
    assert set(gradients) == set(parameters)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, parameters[name].grad.numpy(), err_msg=name, **TOLERANCE)


def linear(x, p, name):
    """PyTorch keeps weights as (out, in)."""
    return torch.nn.functional.linear(x, p[f"{name}.weight"].T, p.get(f"{name}.bias"))


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4), (2, 3, 5, 4), (1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_on_inputs_of_any_dimension(shape, bias):
    network = xpnn.Network(xpnn.Dense(3, bias=bias), dtype="float64", input_shape=shape[1:])
    assert_agrees(network, normal(shape), lambda x, p: linear(x, p, "0"))


@pytest.mark.parametrize("shape", [(6,), (5, 7), (2, 3, 4)])
def test_embedding_with_many_duplicates(shape):
    network = xpnn.Network(xpnn.Embedding(5, 3), dtype="float64", input_shape=shape[1:])
    x = np.random.default_rng(0).integers(0, 4, shape)  # number 4 never occurs: its gradient is zero
    assert_agrees(network, x, lambda x, p: torch.nn.functional.embedding(x, p["0.weight"]))


def test_embedding_flatten_dense():
    network = xpnn.Network(
        xpnn.Embedding(6, 3), xpnn.Flatten(), xpnn.Dense(4), xpnn.Tanh(), dtype="float64", input_shape=(5,)
    )
    x = np.random.default_rng(1).integers(0, 6, (8, 5))

    def forward(x, p):
        rows = torch.nn.functional.embedding(x, p["0.weight"])
        return torch.tanh(linear(torch.flatten(rows, 1), p, "2"))

    assert_agrees(network, x, forward)


def test_a_nested_network():
    network = xpnn.Network(
        xpnn.Dense(6),
        xpnn.ReLU(),
        xpnn.Residual(xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(6)),
        xpnn.Parallel(
            xpnn.Dense(2),
            [xpnn.Dense(5), xpnn.Sigmoid(), xpnn.Residual(xpnn.Dense(3), shortcut=xpnn.Dense(3))],
            combine="concatenate",
        ),
        xpnn.Reshape(5, 1),
        xpnn.Dense(2),
        dtype="float64",
        seed=3,
        input_shape=(4,),
    )

    def forward(x, p):
        h = torch.relu(linear(x, p, "0"))
        h = h + linear(torch.tanh(linear(h, p, "2.0")), p, "2.2")
        inner = torch.sigmoid(linear(h, p, "3.branches.1.0"))
        inner = linear(inner, p, "3.branches.1.2.shortcut") + linear(inner, p, "3.branches.1.2.0")
        h = torch.cat([linear(h, p, "3.branches.0"), inner], dim=-1)
        return linear(h.reshape(-1, 5, 1), p, "5")

    assert_agrees(network, normal((7, 4)), forward)


def test_shared_layers():
    dense = xpnn.Dense(4)
    network = xpnn.Network(
        dense,
        xpnn.Tanh(),
        xpnn.Residual(dense, xpnn.Sigmoid(), dense),
        xpnn.Parallel(dense, [xpnn.Tanh(), dense]),
        dtype="float64",
        seed=2,
        input_shape=(4,),
    )

    def forward(x, p):
        h = torch.tanh(linear(x, p, "0"))
        h = h + linear(torch.sigmoid(linear(h, p, "0")), p, "0")
        return linear(h, p, "0") + linear(torch.tanh(h), p, "0")

    assert_agrees(network, normal((5, 4)), forward)


def test_lambda_against_autograd():
    def cube(x):
        return x * x * x, lambda dy: (3.0 * x * x * dy,)

    network = xpnn.Network(xpnn.Dense(3), xpnn.Lambda(cube), xpnn.Dense(2), dtype="float64", input_shape=(4,))
    assert_agrees(network, normal((5, 4)), lambda x, p: linear(linear(x, p, "0") ** 3, p, "2"))


def test_sgd_on_an_embedding_follows_pytorch_for_fifty_steps():
    network = xpnn.Network(xpnn.Embedding(4, 2), xpnn.Flatten(), xpnn.Dense(1), dtype="float64", input_shape=(3,))
    x, y = np.random.default_rng(0).integers(0, 4, (10, 3)), normal((10, 1), 1)
    parameters = tensors(network)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        rows = torch.nn.functional.embedding(torch.tensor(x), parameters["0.weight"])
        output = linear(torch.flatten(rows, 1), parameters, "2")
        torch.nn.functional.mse_loss(output, torch.tensor(y)).backward()
        optimizer.step()
    network.fit(x, y, loss="mse", optimizer=xpnn.SGD(0.1), epochs=50, batch_size=None, verbose=0)
    for name, value in network.parameters.items():
        np.testing.assert_allclose(value, parameters[name].detach().numpy(), err_msg=name, **TOLERANCE)
