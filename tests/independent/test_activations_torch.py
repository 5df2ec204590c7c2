"""The activations against PyTorch's own, values and gradients, in float64."""

import numpy as np
import pytest

import xpnn

torch = pytest.importorskip("torch")
functional = torch.nn.functional

# The kinks of the piecewise ones are among the points.
GRID = np.concatenate([np.linspace(-40.0, 40.0, 641), [0.0, 1e-30, -1e-30, 3.0, -3.0, 88.0, -88.0, 1e4, -1e4]])

CASES = [
    ("relu", {}, functional.relu),
    ("leaky_relu", {"negative_slope": 0.2}, lambda x: functional.leaky_relu(x, 0.2)),
    ("elu", {"alpha": 1.7}, lambda x: functional.elu(x, 1.7)),
    ("selu", {}, functional.selu),
    # PyTorch rounds some constants of celu to float32: this one loses nothing.
    ("celu", {"alpha": 0.625}, lambda x: functional.celu(x, 0.625)),
    ("gelu", {}, functional.gelu),
    ("gelu", {"approximate": "tanh"}, lambda x: functional.gelu(x, approximate="tanh")),
    ("gelu_tanh", {}, lambda x: functional.gelu(x, approximate="tanh")),
    ("silu", {}, functional.silu),
    ("mish", {}, functional.mish),
    # PyTorch takes x itself above a threshold, 20 by default: raised to where that is exact.
    ("softplus", {"beta": 1.3}, lambda x: functional.softplus(x, 1.3, threshold=50)),
    ("softsign", {}, functional.softsign),
    ("sigmoid", {}, functional.sigmoid),
    ("log_sigmoid", {}, functional.logsigmoid),
    ("hard_sigmoid", {}, functional.hardsigmoid),
    ("hard_swish", {}, functional.hardswish),
    ("tanh", {}, torch.tanh),
    ("erf", {}, torch.special.erf),
    ("normal_cdf", {}, torch.special.ndtr),
]


def _agree(y, gradients, torch_y, torch_gradients, rtol=1e-12):
    np.testing.assert_allclose(y, torch_y.detach().numpy(), rtol=1e-12, atol=1e-14)
    for gradient, torch_gradient in zip(gradients, torch_gradients, strict=True):
        np.testing.assert_allclose(gradient, torch_gradient.numpy(), rtol=rtol, atol=1e-14)


@pytest.mark.parametrize(("name", "options", "reference"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_elementwise_activation(name, options, reference):
    dy = np.cos(np.arange(GRID.size))
    y, vjp = getattr(xpnn.ops, name)(GRID, **options)
    x = torch.tensor(GRID, requires_grad=True)
    torch_y = reference(x)
    # PyTorch's derivative of hardsigmoid is 1/6 rounded to float32, also in float64.
    rtol = 1e-7 if name == "hard_sigmoid" else 1e-12
    _agree(y, vjp(dy), torch_y, torch.autograd.grad(torch_y, [x], torch.tensor(dy)), rtol)


@pytest.mark.parametrize("slopes", [1, 5])
def test_prelu(slopes):
    x = np.round(np.sin(np.arange(35.0)).reshape(7, 5) * 2, 1)
    slope = np.linspace(-0.5, 1.5, slopes)
    dy = np.cos(x) + 0.1
    y, vjp = xpnn.ops.prelu(x, slope)
    torch_x, torch_slope = torch.tensor(x, requires_grad=True), torch.tensor(slope, requires_grad=True)
    torch_y = functional.prelu(torch_x, torch_slope)
    _agree(y, vjp(dy), torch_y, torch.autograd.grad(torch_y, [torch_x, torch_slope], torch.tensor(dy)))


@pytest.mark.parametrize("axis", [-1, 1, 0])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, axis):
    x = 9.0 * np.sin(np.arange(60.0)).reshape(4, 3, 5)
    dy = np.cos(x * 1.7)
    y, vjp = getattr(xpnn.ops, name)(x, axis=axis)
    torch_x = torch.tensor(x, requires_grad=True)
    torch_y = getattr(torch, name)(torch_x, axis)
    _agree(y, vjp(dy), torch_y, torch.autograd.grad(torch_y, [torch_x], torch.tensor(dy)))
