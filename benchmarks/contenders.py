"""The contenders of `step.py`: each builds a network and returns a function that takes n training steps."""

from __future__ import annotations

import itertools
from typing import Any

import models
from networks import Spec, data
from turns import Calls, Contender


def xpnn(spec: Spec) -> Calls:
    """The compiled step of xpnn, on its NumPy backend."""
    net = models.xpnn_network(spec.sizes, spec.activation)  # imports xpnn, which chooses NumPy's BLAS kernels
    import xpnn

    optimizer = xpnn.SGD(models.RATES["sgd"]) if spec.optimizer == "sgd" else xpnn.Adam(models.RATES["adam"])
    step = net.step(spec.loss, optimizer)
    state = net.initial_state(optimizer, spec.loss)
    batch = net.prepare(*data(spec), spec.loss)

    def steps(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, value = step(state, batch)
        return float(value)

    return steps


def torch_eager(spec: Spec) -> Calls:
    """PyTorch, eager, with its default optimizers, as its tutorials write it."""
    return _torch(spec, fused=False)


def torch_fused(spec: Spec) -> Calls:
    """PyTorch, eager, with its fused optimizers."""
    return _torch(spec, fused=True)


def _torch(spec: Spec, fused: bool) -> Calls:
    import torch

    inputs, targets = (torch.from_numpy(array) for array in data(spec))
    net = models.torch_network(spec.sizes, spec.activation)
    criterion = models.torch_loss(spec.loss)
    optimizer = models.torch_optimizer(net, spec.optimizer, fused)

    def steps(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            value = criterion(net(inputs), targets)
            value.backward()
            optimizer.step()
        return value.item()

    return steps


def torch_compile(spec: Spec) -> Calls:
    """PyTorch with the whole step compiled as one graph."""
    import torch

    inputs, targets = (torch.from_numpy(array) for array in data(spec))
    net = models.torch_network(spec.sizes, spec.activation)
    step, _ = models.torch_compiled_step(net, spec.loss, spec.optimizer)

    def steps(count: int) -> float:
        for _ in range(count):
            value = step(inputs, targets)
        return value.item()

    return steps


def jax(spec: Spec) -> Calls:
    """JAX: the whole step in one jit, the state donated, the batch on the device."""
    return _jax(spec, models.jax_step)


def jax_flat(spec: Spec) -> Calls:
    """The same, with all parameters in one vector."""
    return _jax(spec, models.jax_flat_step)


def _jax(spec: Spec, make_step: Any) -> Calls:
    import jax

    inputs, targets = (jax.numpy.asarray(array) for array in data(spec))
    step, start = make_step(spec.sizes, spec.activation, spec.loss, spec.optimizer)
    step = jax.jit(step, donate_argnums=0)
    state = start(models.jax_parameters(spec.sizes))

    def steps(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, value = step(state, inputs, targets)
        jax.block_until_ready(state)
        return float(value)

    return steps


def thinc(spec: Spec) -> Calls:
    """thinc: layers, backprop and optimizer of its own; the gradient of the loss by hand, its value not at all."""
    import numpy as np

    inputs, targets = data(spec)
    net = models.thinc_network(spec.sizes, spec.activation, spec.loss)
    optimizer = models.thinc_optimizer(spec.optimizer)
    if spec.loss == "mse":
        wanted, factor = targets, np.float32(2 / targets.size)
    else:
        wanted, factor = np.eye(spec.sizes[-1], dtype=np.float32)[targets], np.float32(1 / spec.batch)

    def steps(count: int) -> float:
        for _ in range(count):
            outputs, backward = net.begin_update(inputs)
            backward((outputs - wanted) * factor)
            net.finish_update(optimizer)
        return float(np.mean((outputs - wanted) ** 2))

    return steps


def sklearn(spec: Spec) -> Calls:
    """scikit-learn's partial_fit on the batch: its checks and the step; with its default L2 penalty at 0."""
    import numpy as np

    inputs, targets = data(spec)
    settings: dict[str, Any] = {"batch_size": spec.batch, "shuffle": False}
    net = models.sklearn_network(spec.sizes, spec.activation, spec.loss, spec.optimizer, **settings)
    if spec.loss == "mse":
        targets = targets.reshape(-1) if spec.sizes[-1] == 1 else targets
        net.partial_fit(inputs, targets)
    else:
        net.partial_fit(inputs, targets, classes=np.arange(spec.sizes[-1]))

    def steps(count: int) -> float:
        for _ in range(count):
            net.partial_fit(inputs, targets)
        return float(net.loss_)

    return steps


def tutorial(spec: Spec) -> Calls:
    """The way of the tutorials: layer objects in NumPy, one sample after the other."""
    from tutorial import steps_of

    return steps_of(spec)


def bare(spec: Spec) -> Calls:
    """Only the matrix products, with the BLAS kernels that xpnn chooses."""
    import xpnn

    xpnn.get_backend("numpy")
    return bare_default(spec)


def bare_default(spec: Spec) -> Calls:
    """Only the matrix products of the step, into existing arrays, with the BLAS kernels that NumPy chooses."""
    import numpy as np

    inputs, _ = data(spec)
    generator = np.random.Generator(np.random.Philox(1))

    def normal(*shape: int) -> Any:
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(0.01)

    weights = [normal(m, n) for m, n in itertools.pairwise(spec.sizes)]
    activations = [inputs, *(normal(spec.batch, n) for n in spec.sizes[1:])]
    errors = [normal(*activation.shape) for activation in activations]
    gradients = [np.zeros_like(weight) for weight in weights]
    products = []  # (left, right, result)
    for index, weight in enumerate(weights):
        products.append((activations[index], weight, activations[index + 1]))
    for index in reversed(range(len(weights))):
        products.append((activations[index].T, errors[index + 1], gradients[index]))
        if index:  # nobody needs the gradient of the inputs
            products.append((errors[index + 1], weights[index].T, errors[index]))

    def steps(count: int) -> float:
        for _ in range(count):
            for left, right, result in products:
                left.dot(right, result)  # as np.matmul(left, right, out=result), at half the cost of a call
        return float(gradients[0][0, 0])

    return steps


CONTENDERS: dict[str, Contender] = {
    "xpnn": Contender(xpnn, ("numpy",), {"XPNN_FAST": "0"}),
    "xpnn-fast": Contender(xpnn, ("numpy", "numba")),
    "torch": Contender(torch_eager, ("torch",)),
    "torch-fused": Contender(torch_fused, ("torch",)),
    "torch-compile": Contender(torch_compile, ("torch",)),
    "jax": Contender(jax, ("jax", "jaxlib")),
    "jax-flat": Contender(jax_flat, ("jax", "jaxlib")),
    "thinc": Contender(thinc, ("thinc",)),
    "sklearn": Contender(sklearn, ("scikit-learn",)),
    "tutorial": Contender(tutorial, ("numpy",)),
    "bare": Contender(bare, ("numpy",)),
    "bare-default": Contender(bare_default, ("numpy",)),
}
