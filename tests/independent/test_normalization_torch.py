"""PyTorch's own normalisations, with the same weights, agree: values and gradients of inputs and parameters."""

import numpy as np
import pytest

import xpnn
from xpnn import ops

torch = pytest.importorskip("torch")
functional = torch.nn.functional

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def vectors(channels, with_weight=True, with_bias=True):
    weight = np.random.default_rng(1).uniform(0.5, 1.5, channels)
    return weight if with_weight else None, normal(*np.atleast_1d(channels), seed=2) if with_bias else None


def channels_first(x):
    return torch.movedim(x, -1, 1)


def channels_last(y):
    return torch.movedim(y, 1, -1)


def assert_agrees(call, reference, *arguments):
    """Value and vjp of `call` are those of `reference` under PyTorch's autograd; None stays None."""
    tensors = [None if a is None else torch.tensor(a, requires_grad=True) for a in arguments]
    want = reference(*tensors)
    y, vjp = call(*arguments)
    np.testing.assert_allclose(y, want.detach().numpy(), **TOLERANCE)
    dy = normal(*y.shape, seed=3)
    want.backward(torch.tensor(dy))
    gradients = vjp(dy)
    assert len(gradients) == len(arguments)
    for argument, tensor, gradient in zip(arguments, tensors, gradients, strict=True):
        if argument is None:
            assert gradient is None
        else:
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), **TOLERANCE)


def batch_norm(epsilon, activation=None):
    def call(x, weight, bias):
        (y, _, _), vjp = ops.batch_norm(x, weight, bias, epsilon=epsilon, activation=activation)
        return y, lambda dy: vjp((dy, None, None))

    return call


ACTIVATIONS = {
    None: lambda y: y,
    "gelu": functional.gelu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
SHAPES = [(6, 4), (2, 4), (5, 3, 4), (2, 5, 3, 4), (1, 3, 3, 4), (2, 3, 2, 5, 1), (7, 1)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape, with_weight, with_bias):
    def reference(x, weight, bias):
        return channels_last(functional.batch_norm(channels_first(x), None, None, weight, bias, True, 0.1, 1e-3))

    assert_agrees(batch_norm(1e-3), reference, normal(*shape), *vectors(shape[-1], with_weight, with_bias))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_an_activation(activation, training):
    function = ACTIVATIONS[activation]
    x, (weight, bias) = normal(4, 3, 5), vectors(5)
    if training:

        def reference(x, weight, bias):
            y = functional.batch_norm(channels_first(x), None, None, weight, bias, True, 0.1, 1e-5)
            return function(channels_last(y))

        assert_agrees(batch_norm(1e-5, activation), reference, x, weight, bias)
        return

    def call(x, mean, variance, weight, bias):
        return ops.batch_norm_inference(x, mean, variance, weight, bias, activation=activation)

    def reference(x, mean, variance, weight, bias):
        return function((x - mean) / torch.sqrt(variance + 1e-5) * weight + bias)

    assert_agrees(call, reference, x, normal(5, seed=5), weight + 0.25, weight, bias)


def test_gradients_of_the_mean_and_variance_of_the_batch():
    x = normal(4, 3, 5)
    (y, mean, variance), vjp = ops.batch_norm(x)
    cotangents = normal(*y.shape, seed=1), normal(5, seed=2), normal(5, seed=3)
    tensor = torch.tensor(x, requires_grad=True)
    tensor_mean, tensor_variance = tensor.mean((0, 1)), tensor.var((0, 1), correction=0)
    values = (tensor - tensor_mean) / torch.sqrt(tensor_variance + 1e-5), tensor_mean, tensor_variance
    for mine, value in zip((y, mean, variance), values, strict=True):
        np.testing.assert_allclose(mine, value.detach().numpy(), **TOLERANCE)
    sum((c * v).sum() for c, v in zip(map(torch.tensor, cotangents), values, strict=True)).backward()
    np.testing.assert_allclose(vjp(cotangents)[0], tensor.grad.numpy(), **TOLERANCE)


@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(0, 4), *SHAPES])
def test_batch_norm_inference(shape, with_weight, with_bias):
    def call(x, mean, variance, weight, bias):
        return ops.batch_norm_inference(x, mean, variance, weight, bias, epsilon=1e-3)

    def reference(x, mean, variance, weight, bias):
        # Written out: PyTorch's own function gives no gradients of the statistics.
        y = (x - mean) / torch.sqrt(variance + 1e-3)
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
        if shape[0]:
            constants = mean.detach(), variance.detach()
            own = functional.batch_norm(channels_first(x), *constants, weight, bias, False, 0.1, 1e-3)
            torch.testing.assert_close(channels_last(own), y)
        return y

    channels = shape[-1]
    variance = np.random.default_rng(4).uniform(0.2, 2.0, channels)
    arguments = normal(*shape), normal(channels, seed=5), variance
    assert_agrees(call, reference, *arguments, *vectors(channels, with_weight, with_bias))


@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((6, 4), 1), ((5, 3, 4), 1), ((5, 3, 4), 2), ((2, 5, 3, 4), 3), ((1, 4), 1), ((0, 4), 1), ((4,), 1), ((3, 1), 1)],
)
def test_layer_norm(shape, axes, with_weight, with_bias):
    normalized = shape[-axes:]
    assert_agrees(
        lambda x, w, b: ops.layer_norm(x, w, b, axes=axes, epsilon=1e-3),
        lambda x, w, b: functional.layer_norm(x, normalized, w, b, 1e-3),
        normal(*shape),
        *vectors(normalized, with_weight, with_bias),
    )


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize(
    ("shape", "axes"), [((6, 4), 1), ((5, 3, 4), 1), ((5, 3, 4), 2), ((1, 4), 1), ((0, 4), 1), ((4,), 1), ((3, 1), 1)]
)
def test_rms_norm(shape, axes, with_weight):
    normalized = shape[-axes:]
    assert_agrees(
        lambda x, w: ops.rms_norm(x, w, axes=axes, epsilon=1e-3),
        lambda x, w: functional.rms_norm(x, normalized, w, 1e-3),
        normal(*shape),
        vectors(normalized, with_weight)[0],
    )


@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 3, 5, 6), (1, 2, 2, 6), (0, 3, 6), (2, 2, 3, 2, 6)])
def test_group_norm(shape, groups, with_weight, with_bias):
    assert_agrees(
        lambda x, w, b: ops.group_norm(x, w, b, groups=groups, epsilon=1e-3),
        lambda x, w, b: channels_last(functional.group_norm(channels_first(x), groups, w, b, 1e-3)),
        normal(*shape),
        *vectors(6, with_weight, with_bias),
    )


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5, 3), (1, 2, 3)])
def test_instance_norm(shape):
    assert_agrees(
        lambda x, w, b: ops.group_norm(x, w, b, groups=3),
        lambda x, w, b: channels_last(functional.instance_norm(channels_first(x), weight=w, bias=b)),
        normal(*shape),
        *vectors(3),
    )


@pytest.mark.parametrize(("shape", "axis"), [((5, 4), -1), ((3, 3, 2, 4), -1), ((3, 4, 5), -2), ((4,), -1)])
def test_weight_norm(shape, axis):
    kept = axis % len(shape)
    along_axis = [shape[each] if each == kept else 1 for each in range(len(shape))]
    assert_agrees(
        lambda v, g: ops.weight_norm(v, g, axis=axis),
        lambda v, g: torch._weight_norm(v, g.reshape(along_axis), kept),
        normal(*shape),
        normal(shape[axis], seed=1),
    )


def copy_to_torch(network, module, names):
    """Fill the parameters and buffers of a PyTorch module: PyTorch's name -> xpnn's."""
    state = module.state_dict()
    for name, mine in names.items():
        value = np.asarray(network.parameters[mine])
        state[name] = torch.tensor(value.T if value.ndim == 2 else value)
    module.load_state_dict(state)


NAMES = {
    "0.weight": "0.weight",
    "0.bias": "0.bias",
    "1.weight": "1.weight",
    "1.bias": "1.bias",
    "1.running_mean": "1.running_mean",
    "1.running_var": "1.running_variance",
    "3.weight": "3.weight",
    "3.bias": "3.bias",
}


@pytest.mark.xpnn_rows(dtypes="float64")
def test_training_with_batch_norm_follows_pytorch(backend, dtype):
    """Weights and running statistics after 20 steps, the last of each epoch on a smaller batch, and the evaluation."""
    x, y = 1.5 * normal(14, 4) + 0.5, normal(14, 2, seed=1)
    layers = xpnn.Dense(4, 6), xpnn.BatchNorm(momentum=0.2, epsilon=1e-3), xpnn.ReLU(), xpnn.Dense(2)
    network = xpnn.Network(*layers, backend=backend, dtype=dtype, seed=1)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6, eps=1e-3, momentum=0.2), torch.nn.ReLU(), torch.nn.Linear(6, 2)
    ).double()
    host = xpnn.Network(*layers, dtype=dtype, seed=1)
    copy_to_torch(host, module, NAMES)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()
    for rows in 10 * (slice(0, 8), slice(8, 14)):
        with torch.enable_grad():  # the row of PyTorch runs without autograd
            optimizer.zero_grad()
            functional.mse_loss(module(torch.tensor(x[rows])), torch.tensor(y[rows])).backward()
        optimizer.step()
    network.fit(x, y, loss="mse", optimizer=xpnn.SGD(0.1), epochs=10, batch_size=8, shuffle=False, verbose=0)
    state = module.state_dict()
    for name, mine in NAMES.items():
        value = backend.to_host(network.parameters[mine])
        np.testing.assert_allclose(
            value.T if value.ndim == 2 else value, state[name].numpy(), err_msg=mine, **TOLERANCE
        )
    module.eval()
    want = module(torch.tensor(x))
    np.testing.assert_allclose(network.predict(x), want.detach().numpy(), **TOLERANCE)
    loss = functional.mse_loss(want, torch.tensor(y)).item()
    np.testing.assert_allclose(network.evaluate(x, y, loss="mse")["loss"], loss, **TOLERANCE)


def test_frozen_batch_norm_trains_like_a_module_in_evaluation_mode():
    x, y = normal(8, 4), normal(8, 2, seed=1)
    layers = xpnn.Dense(4, 6), xpnn.BatchNorm(frozen=True), xpnn.ReLU(), xpnn.Dense(2)
    network = xpnn.Network(*layers, dtype="float64", seed=1)
    statistics = {"1.running_mean": normal(6, seed=2), "1.running_variance": np.linspace(0.5, 2.0, 6)}
    network.set_parameters({**network.parameters, **statistics})
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
    ).double()
    copy_to_torch(network, module, NAMES)
    module.eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        functional.mse_loss(module(torch.tensor(x)), torch.tensor(y)).backward()
        optimizer.step()
    network.fit(x, y, loss="mse", optimizer=xpnn.SGD(0.1), epochs=5, batch_size=None, verbose=0)
    for name, value in statistics.items():
        np.testing.assert_array_equal(network.parameters[name], value)
    state = module.state_dict()
    for name, mine in NAMES.items():
        value = np.asarray(network.parameters[mine])
        np.testing.assert_allclose(
            value.T if value.ndim == 2 else value, state[name].numpy(), err_msg=mine, **TOLERANCE
        )


def test_training_with_weight_norm_follows_pytorch():
    x, y = normal(8, 4), normal(8, 3, seed=1)
    network = xpnn.Network(xpnn.WeightNorm(xpnn.Dense(4, 3)), dtype="float64", seed=1)
    v, g, bias = (
        torch.tensor(np.array(network.parameters[f"0.{name}"]), requires_grad=True)
        for name in ("direction", "magnitude", "bias")
    )
    optimizer = torch.optim.SGD([v, g, bias], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        weight = torch._weight_norm(v, g.reshape(1, -1), 1)
        functional.mse_loss(torch.tensor(x) @ weight + bias, torch.tensor(y)).backward()
        optimizer.step()
    network.fit(x, y, loss="mse", optimizer=xpnn.SGD(0.1), epochs=20, batch_size=None, verbose=0)
    for name, tensor in (("direction", v), ("magnitude", g), ("bias", bias)):
        np.testing.assert_allclose(network.parameters[f"0.{name}"], tensor.detach().numpy(), **TOLERANCE)
