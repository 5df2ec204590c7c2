"""The same network in each library: Dense layers with an activation between them (and, for tanh, behind the last)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

RATES = {"sgd": 0.1, "adam": 0.001}
"""Optimizer -> learning rate."""


def has_activation(index: int, sizes: Sequence[int], activation: str) -> bool:
    """Whether an activation follows Dense layer number `index`."""
    return activation == "tanh" or index < len(sizes) - 2


# xpnn


def xpnn_network(sizes: Sequence[int], activation: str, seed: int = 0, **settings: Any) -> Any:
    """An xpnn.Network; on NumPy, unless the settings say otherwise."""
    import xpnn

    layers: list[Any] = []
    for index, units in enumerate(sizes[1:]):
        layers.append(xpnn.Dense(units))
        if has_activation(index, sizes, activation):
            layers.append(xpnn.Tanh() if activation == "tanh" else xpnn.ReLU())
    settings = {"backend": "numpy", **settings}
    return xpnn.Network(*layers, input_shape=tuple(sizes[:1]), dtype="float32", seed=seed, **settings)


# PyTorch


def torch_network(sizes: Sequence[int], activation: str) -> Any:
    """A torch.nn.Sequential."""
    import torch

    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for index, (features, units) in enumerate(itertools.pairwise(sizes)):
        layers.append(torch.nn.Linear(features, units))
        if has_activation(index, sizes, activation):
            layers.append(torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def torch_loss(loss: str) -> Any:
    """The loss as a module."""
    import torch

    return torch.nn.MSELoss() if loss == "mse" else torch.nn.CrossEntropyLoss()


def torch_optimizer(net: Any, optimizer: str, fused: bool) -> Any:
    """PyTorch's optimizer; its default is the loop over the parameters on a CPU."""
    import torch

    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    return kind(net.parameters(), lr=RATES[optimizer], fused=fused)


def torch_compiled_step(
    net: Any,
    loss: str,
    optimizer: str,
    count_correct: bool = False,
    mode: str | None = None,
    autocast: Any = contextlib.nullcontext,
) -> tuple[Any, Any]:
    """The whole training step as one graph of torch.compile.

    The gradients come from torch.func, so that backward and update are in the graph too; parameters and moments are
    changed in place. Measured, no slower than the other forms and mostly far faster: the compiled model and loss with
    the eager fused optimizer, or with a compiled optimizer; a compiled function that calls backward() breaks its graph
    there.

    Args:
        net, loss, optimizer: what is trained, and how.
        count_correct: whether right answers are counted, too.
        mode: of torch.compile. With "reduce-overhead" the whole step is one CUDA graph: what it changes keeps its
            address, and is marked so.
        autocast: () -> block in which network and loss are computed.

    Returns:
        step(inputs, targets) -> loss, or (loss, number of right answers); and reset(), which clears the optimizer.
    """
    import torch

    criterion, rate = torch_loss(loss), RATES[optimizer]
    # These share the memory of the network's parameters: the network is trained.
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    first = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    second = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = torch.zeros((), device=next(iter(parameters.values())).device)
    if mode is not None:
        for tensor in (count, *parameters.values(), *first.values(), *second.values()):
            torch._dynamo.mark_static_address(tensor)

    def loss_of(parameters: dict[str, Any], inputs: Any, targets: Any) -> tuple[Any, Any]:
        with autocast():
            outputs = torch.func.functional_call(net, parameters, (inputs,))
            return criterion(outputs, targets), outputs

    gradients_of = torch.func.grad_and_value(loss_of, has_aux=True)

    @torch.compile(fullgraph=True, dynamic=False, mode=mode)
    def compiled(inputs: Any, targets: Any) -> Any:
        gradients, (value, outputs) = gradients_of(parameters, inputs, targets)
        if optimizer == "sgd":
            for name, parameter in parameters.items():
                parameter.sub_(rate * gradients[name])
        else:
            count.add_(1)
            correction1 = 1 - 0.9**count
            correction2 = torch.sqrt(1 - 0.999**count)
            for name, parameter in parameters.items():
                gradient = gradients[name]
                first[name].lerp_(gradient, 0.1)
                second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                denominator = second[name].sqrt() / correction2 + 1e-8
                parameter.sub_(rate / correction1 * first[name] / denominator)
        return (value, (outputs.argmax(1) == targets).sum()) if count_correct else value

    def step(inputs: Any, targets: Any) -> Any:
        with torch.no_grad():  # torch.func differentiates; the parameters need no record of autograd besides
            return compiled(inputs, targets)

    def reset() -> None:
        for tensor in (count, *first.values(), *second.values()):
            tensor.zero_()

    return step, reset


# JAX


def jax_parameters(sizes: Sequence[int]) -> list[tuple[Any, Any]]:
    """(weight, bias) of each layer."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    initialize = jax.nn.initializers.glorot_uniform()
    return [
        (initialize(key, (features, units), jnp.float32), jnp.zeros(units, jnp.float32))
        for key, features, units in zip(keys, sizes, sizes[1:], strict=False)
    ]


def jax_forward(parameters: list[tuple[Any, Any]], x: Any, sizes: Sequence[int], activation: str) -> Any:
    """The network's outputs."""
    import jax
    import jax.numpy as jnp

    for index, (weight, bias) in enumerate(parameters):
        x = x @ weight + bias
        if has_activation(index, sizes, activation):
            x = jnp.tanh(x) if activation == "tanh" else jax.nn.relu(x)
    return x


def jax_flat_step(sizes: Sequence[int], activation: str, loss: str, optimizer: str) -> tuple[Any, Any]:
    """As `jax_step`, with all parameters in one vector, which jax.flatten_util makes of the tree.

    A call of a jitted function costs by the number of its arrays, so that small networks train faster in this form.
    With large ones it is far slower: slices of one vector end up inside the matrix products.
    """
    import jax
    import jax.flatten_util

    step, start = jax_step(sizes, activation, loss, optimizer, unravel=_unravel(sizes))
    return step, lambda parameters: start(jax.flatten_util.ravel_pytree(parameters)[0])


def _unravel(sizes: Sequence[int]) -> Any:
    import jax.flatten_util

    return jax.flatten_util.ravel_pytree(jax_parameters(sizes))[1]


def jax_step(
    sizes: Sequence[int],
    activation: str,
    loss: str,
    optimizer: str,
    count_correct: bool = False,
    unravel: Any = lambda parameters: parameters,
) -> tuple[Any, Any]:
    """`jax_step_of` for Dense layers.

    Args:
        sizes: units of the input and of each layer.
        activation: "tanh" or "relu".
        loss, optimizer, count_correct: as there.
        unravel: makes the tree of weights of the parameters, where they are held otherwise.
    """

    def forward(parameters: Any, inputs: Any) -> Any:
        return jax_forward(unravel(parameters), inputs, sizes, activation)

    return jax_step_of(forward, loss, optimizer, count_correct)


def jax_step_of(forward: Any, loss: str, optimizer: str, count_correct: bool = False) -> tuple[Any, Any]:
    """A training step to be jitted, its first argument donated, and what makes its first state.

    Args:
        forward: (parameters, inputs) -> outputs.
        loss: "mse" or "cross_entropy".
        optimizer: "sgd" or "adam".
        count_correct: whether right answers are counted, too.

    Returns:
        step(state, inputs, targets) -> (state, loss), or (state, (loss, number of right answers));
        start(parameters) -> state.
    """
    import jax
    import jax.numpy as jnp

    rate, over = RATES[optimizer], jax.tree.map

    def loss_of(parameters: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        outputs = forward(parameters, inputs)
        if loss == "mse":
            value = jnp.mean((outputs - targets) ** 2)
        else:
            picked = jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], axis=1)
            value = -jnp.mean(picked)
        correct = jnp.sum(jnp.argmax(outputs, axis=1) == targets) if count_correct else None
        return value, correct

    gradients_of = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
        parameters = state if optimizer == "sgd" else state[0]
        (value, correct), gradients = gradients_of(parameters, inputs, targets)
        found = (value, correct) if count_correct else value
        if optimizer == "sgd":
            return over(lambda p, g: p - rate * g, parameters, gradients), found
        _, first, second, count = state
        count = count + 1
        correction1, correction2 = 1 - 0.9**count, 1 - 0.999**count
        first = over(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = over(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        parameters = over(
            lambda p, m, v: p - rate * (m / correction1) / (jnp.sqrt(v / correction2) + 1e-8), parameters, first, second
        )
        return (parameters, first, second, count), found

    def start(parameters: Any) -> Any:
        if optimizer == "sgd":
            return parameters
        # Two trees of zeros: a buffer can be donated once only.
        return parameters, over(jnp.zeros_like, parameters), over(jnp.zeros_like, parameters), jnp.float32(0)

    return step, start


# thinc


def thinc_network(sizes: Sequence[int], activation: str, loss: str) -> Any:
    """A chain of thinc's layers; behind the last one its Softmax, where the loss is the cross-entropy."""
    from thinc.api import Linear, Model, NumpyOps, Relu, Softmax, chain, fix_random_seed, set_current_ops

    def tanh_forward(model: Any, x: Any, is_train: bool) -> tuple[Any, Any]:
        y = model.ops.xp.tanh(x)
        return y, lambda dy: dy * model.ops.dtanh(y)

    set_current_ops(NumpyOps(use_blis=False))  # NumPy's products are faster than BLIS's, on all of these networks
    fix_random_seed(0)
    layers: list[Any] = []
    for index, (features, units) in enumerate(itertools.pairwise(sizes)):
        if activation == "tanh":
            layers += [Linear(units, features), Model("tanh", tanh_forward)]  # thinc has no layer for it
        elif has_activation(index, sizes, activation):
            layers.append(Relu(units, features))
        else:
            layers.append(Linear(units, features) if loss == "mse" else Softmax(units, features))
    network = chain(*layers)
    network.initialize()
    return network


def thinc_optimizer(optimizer: str) -> Any:
    """thinc's own, without what the others do not do (clipping, decay, averages)."""
    from thinc.api import SGD, Adam

    kind = SGD if optimizer == "sgd" else Adam
    return kind(RATES[optimizer], L2=0.0, grad_clip=0.0, use_averages=False)


# scikit-learn


def sklearn_network(sizes: Sequence[int], activation: str, loss: str, optimizer: str, **settings: Any) -> Any:
    """An MLPRegressor or MLPClassifier. The last layer has no activation but the softmax of the classifier."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    kind = MLPRegressor if loss == "mse" else MLPClassifier
    return kind(
        hidden_layer_sizes=tuple(sizes[1:-1]),
        activation=activation,
        solver=optimizer,
        learning_rate_init=RATES[optimizer],
        momentum=0.0,
        alpha=0.0,
        random_state=0,
        **settings,
    )
