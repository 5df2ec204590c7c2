"""The contenders: each builds a network and returns a function that takes n training steps.

Each imports its library inside its function: a worker process loads one library only.
"""

from __future__ import annotations

from collections.abc import Callable

from networks import Spec, data

Steps = Callable[[int], float]
"""Takes that many steps and returns the last loss (so that nothing can be left out)."""


def xpnn_numpy(spec: Spec) -> Steps:
    """xpnn on plain NumPy, with the BLAS that NumPy picks."""
    import xpnn

    inputs, targets = data(spec)
    layers = []
    for index, units in enumerate(spec.sizes[1:]):
        layers.append(xpnn.Dense(units))
        if spec.activation == "tanh":
            layers.append(xpnn.Tanh())
        elif index < len(spec.sizes) - 2:
            layers.append(xpnn.ReLU())
    net = xpnn.Network(*layers, backend="numpy", input_shape=spec.sizes[:1], dtype="float32", seed=0)
    loss = xpnn.losses.LOSSES[spec.loss]()
    optimizer = xpnn.SGD(0.1) if spec.optimizer == "sgd" else xpnn.Adam(0.001)
    step = net.backend.compile(xpnn.training.make_step(net.root, net.layout, loss, optimizer))
    state = net.initial_state(optimizer)
    batch = (inputs, loss.prepare(targets, net.output_shape, net.backend, net.dtype), None)

    def steps(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, value = step(state, batch)
        return float(value)

    return steps


def torch_eager(spec: Spec) -> Steps:
    """PyTorch, eager, as its tutorials write it."""
    return _torch(spec, fused=False)


def torch_fused(spec: Spec) -> Steps:
    """PyTorch, eager, with its fused optimizers."""
    return _torch(spec, fused=True)


def _torch(spec: Spec, fused: bool) -> Steps:
    import torch

    inputs, targets = (torch.from_numpy(array) for array in data(spec))
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for index, (features, units) in enumerate(zip(spec.sizes, spec.sizes[1:], strict=False)):
        layers.append(torch.nn.Linear(features, units))
        if spec.activation == "tanh":
            layers.append(torch.nn.Tanh())
        elif index < len(spec.sizes) - 2:
            layers.append(torch.nn.ReLU())
    net = torch.nn.Sequential(*layers)
    loss_function = torch.nn.MSELoss() if spec.loss == "mse" else torch.nn.CrossEntropyLoss()
    if spec.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=fused)

    def steps(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            value = loss_function(net(inputs), targets)
            value.backward()
            optimizer.step()
        return value.item()

    return steps


def bare_products(spec: Spec) -> Steps:
    """Only the matrix products of the step, into existing arrays, with NumPy's BLAS: the floor."""
    import numpy as np

    inputs, _ = data(spec)
    weights = [np.full((m, n), 0.01, np.float32) for m, n in zip(spec.sizes, spec.sizes[1:], strict=False)]
    activations = [inputs, *(np.zeros((spec.batch, n), np.float32) for n in spec.sizes[1:])]
    errors = [np.zeros_like(activation) for activation in activations]
    gradients = [np.zeros_like(weight) for weight in weights]

    def steps(count: int) -> float:
        for _ in range(count):
            for index, weight in enumerate(weights):
                np.matmul(activations[index], weight, out=activations[index + 1])
            for index in reversed(range(len(weights))):
                np.matmul(activations[index].T, errors[index + 1], out=gradients[index])
                if index:
                    np.matmul(errors[index + 1], weights[index].T, out=errors[index])
        return 0.0

    return steps


CONTENDERS: dict[str, Callable[[Spec], Steps]] = {
    "xpnn": xpnn_numpy,
    "torch": torch_eager,
    "torch-fused": torch_fused,
    "bare": bare_products,
}
