"""The contenders of `step.py`: each builds a network and returns a function that takes n training steps."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import models
from deep import Deep
from networks import Spec, data
from turns import Calls, Contender, NotApplicableError


def xpnn(spec: Spec | Deep) -> Calls:
    """The compiled step of xpnn, on its NumPy backend."""
    import xpnn

    if isinstance(spec, Deep):
        net = xpnn.Network(*spec.xpnn(), backend="numpy", input_shape=spec.input_shape)
    else:
        net = models.xpnn_network(spec.sizes, spec.activation)
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


def torch_eager(spec: Spec | Deep) -> Calls:
    """PyTorch, eager, with its default optimizers, as its tutorials write it."""
    return _torch(spec, fused=False)


def torch_fused(spec: Spec | Deep) -> Calls:
    """PyTorch, eager, with its fused optimizers."""
    return _torch(spec, fused=True)


def torch_channels_last(spec: Spec | Deep) -> Calls:
    """As `torch_fused`, with images in PyTorch's memory format channels_last."""
    if not isinstance(spec, Deep):
        raise NotApplicableError("no images")
    return _torch(spec, fused=True, channels_last=True)


def torch_parts(spec: Spec | Deep, channels_last: bool = False, device: str = "cpu") -> tuple[Any, Any, Any]:
    """(network, inputs, targets)."""
    import torch

    inputs, targets = (torch.from_numpy(array).to(device) for array in data(spec))
    if not isinstance(spec, Deep):
        return models.torch_network(spec.sizes, spec.activation).to(device), inputs, targets
    torch.manual_seed(0)
    net = spec.torch().to(device)
    if spec.is_image:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    if channels_last:
        if not spec.is_image:
            raise NotApplicableError("no images")
        net, inputs = net.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    return net, inputs, targets


def _torch(spec: Spec | Deep, fused: bool, channels_last: bool = False) -> Calls:
    net, inputs, targets = torch_parts(spec, channels_last)
    return torch_steps(net, spec, fused, inputs, targets)


def torch_steps(
    net: Any,
    spec: Spec | Deep,
    fused: bool,
    inputs: Any,
    targets: Any,
    autocast: Any = contextlib.nullcontext,
) -> Calls:
    """Steps as PyTorch's tutorials write them; network and loss are computed in a block of `autocast()`."""
    criterion = models.torch_loss(spec.loss)
    optimizer = models.torch_optimizer(net, spec.optimizer, fused)

    def steps(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                value = criterion(net(inputs), targets)
            value.backward()
            optimizer.step()
        return value.item()

    return steps


def torch_compile(spec: Spec | Deep) -> Calls:
    """PyTorch with the whole step compiled as one graph; of a deep network, the model with its loss and gradients.

    A graph of the whole step refuses running statistics, and PyTorch's LSTM is not compiled at all.
    """
    import torch

    net, inputs, targets = torch_parts(spec)
    if isinstance(spec, Deep):
        return torch_steps(torch.compile(net, dynamic=False), spec, True, inputs, targets)
    step, _ = models.torch_compiled_step(net, spec.loss, spec.optimizer)

    def steps(count: int) -> float:
        for _ in range(count):
            value = step(inputs, targets)
        return value.item()

    return steps


def jax(spec: Spec | Deep) -> Calls:
    """JAX: the whole step in one jit, the state donated, the batch on the device."""
    if isinstance(spec, Deep):
        parameters, forward = spec.jax()
        return jax_steps(spec, parameters, models.jax_step_of(forward, spec.loss, spec.optimizer))
    return _jax_dense(spec, models.jax_step)


def jax_flat(spec: Spec | Deep) -> Calls:
    """The same, with all parameters in one vector."""
    spec = _dense_alone(spec)
    return _jax_dense(spec, models.jax_flat_step)


def _jax_dense(spec: Spec, make_step: Any) -> Calls:
    made = make_step(spec.sizes, spec.activation, spec.loss, spec.optimizer)
    return jax_steps(spec, models.jax_parameters(spec.sizes), made)


def jax_steps(spec: Spec | Deep, parameters: Any, made: tuple[Any, Any]) -> Calls:
    """Steps of (step, start), as `models.jax_step_of` returns them."""
    import jax

    inputs, targets = (jax.numpy.asarray(array) for array in data(spec))
    step, start = made
    step = jax.jit(step, donate_argnums=0)
    state = start(parameters)

    def steps(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, value = step(state, inputs, targets)
        jax.block_until_ready(state)
        return float(value)

    return steps


def thinc(spec: Spec | Deep) -> Calls:
    """thinc: layers, backprop and optimizer of its own; the gradient of the loss by hand, its value not at all."""
    import numpy as np

    spec = _dense_alone(spec)

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


def sklearn(spec: Spec | Deep) -> Calls:
    """scikit-learn's partial_fit on the batch: its checks and the step; with its default L2 penalty at 0."""
    import numpy as np

    spec = _dense_alone(spec)

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


def tutorial(spec: Spec | Deep) -> Calls:
    """The way of the tutorials: layer objects in NumPy, one sample after the other."""
    from tutorial import steps_of

    return steps_of(_dense_alone(spec))


def _dense_alone(spec: Spec | Deep) -> Spec:
    if isinstance(spec, Deep):
        raise NotApplicableError("Dense layers only")
    return spec


def bare(spec: Spec | Deep) -> Calls:
    """Only the matrix products, with the BLAS kernels that xpnn chooses."""
    import xpnn

    xpnn.get_backend("numpy")
    return bare_default(spec)


def bare_default(spec: Spec | Deep) -> Calls:
    """Only the matrix products of the step, into existing arrays, with the BLAS kernels that NumPy chooses."""
    return _bare_deep(spec) if isinstance(spec, Deep) else _bare_dense(spec)


def _bare_deep(spec: Deep) -> Calls:
    """A convolution's products are those of its columns, which are there already."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(1))
    products = []
    for many, m, k, n in spec.products(spec.batch):
        left, right = (generator.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
        if k > m:  # a weight's gradient: the left one is the transpose of what lies in memory
            left = np.ascontiguousarray(left.T).T
        products.append((many, left, right, np.zeros((m, n), np.float32)))

    def steps(count: int) -> float:
        for _ in range(count):
            for many, left, right, result in products:
                for _ in range(many):
                    left.dot(right, result)
        return float(result[0, 0])

    return steps


def _bare_dense(spec: Spec) -> Calls:
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
    "torch-last": Contender(torch_channels_last, ("torch",)),
    "torch-compile": Contender(torch_compile, ("torch",)),
    "jax": Contender(jax, ("jax", "jaxlib")),
    "jax-flat": Contender(jax_flat, ("jax", "jaxlib")),
    "thinc": Contender(thinc, ("thinc",)),
    "sklearn": Contender(sklearn, ("scikit-learn",)),
    "tutorial": Contender(tutorial, ("numpy",)),
    "bare": Contender(bare, ("numpy",)),
    "bare-default": Contender(bare_default, ("numpy",)),
}
