"""The simple recurrent network, over all steps of a sequence."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ConfigError
from xpnn.ops.rectifiers import relu
from xpnn.ops.scan import States, check_recurrent, initial_state, input_products, scan
from xpnn.ops.sigmoids import tanh

RNN_ACTIVATIONS = ("tanh", "relu")
"""What `rnn` takes as its `activation`."""


@op
def rnn(
    x: Array,
    weight_input: Array,
    weight_hidden: Array,
    bias: Array | None = None,
    hidden: Array | None = None,
    mask: Array | None = None,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    input_gradient: bool = True,
) -> tuple[tuple[Array, Array], Vjp]:
    """The simple recurrent network (Elman, Cognitive Science 14, 1990), over all steps of a sequence.

        h_t = f(x_t W + h_(t-1) U + b)      y_t = h_t

    Where the mask is False, a step does not happen: h stays as it is, and y is 0. So a sequence that is padded behind
    its end gives the last state of its real steps, and a reverse scan begins at the last real step.

    Args:
        x: (batch, time, features).
        weight_input: W, (features, units).
        weight_hidden: U, (units, units).
        bias: b, (units,), or None.
        hidden: h before the first step, (batch, units); None for zeros.
        mask: bool (batch, time), True where a step counts; None if all do.
        activation: f, "tanh" or "relu".
        reverse: True to go from the last step to the first; y keeps the order of x.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        (y, last h) of shapes (batch, time, units) and (batch, units); and vjp((dy, dh)) -> (dx, dW, dU, db, dhidden,
        None). Each of dy, dh may be None, for zeros.

    Raises:
        ShapeError: the shapes do not fit together.
        ConfigError: the mask is not bool, or the activation is neither "tanh" nor "relu".
    """
    xp = namespace(x)
    if activation not in RNN_ACTIVATIONS:
        raise ConfigError(
            f"activation={activation!r} of rnn is unknown; choose {' or '.join(map(repr, RNN_ACTIVATIONS))}"
        )
    units = weight_hidden.shape[0]
    check_recurrent(
        "rnn",
        1,
        units,
        {
            "x": x,
            "weight_input": weight_input,
            "weight_hidden": weight_hidden,
            "bias": bias,
            "hidden": hidden,
            "mask": mask,
        },
    )
    products, products_vjp = input_products(xp, x, weight_input, bias, input_gradient)
    start = initial_state(xp, hidden, x, units)
    step = tanh_step if activation == "tanh" else relu_step
    value, scan_vjp = scan(products, weight_hidden, None, mask, start, step=step, reverse=reverse)

    def vjp(cotangents: tuple[Any, Any]) -> tuple[Any, ...]:
        dproducts, dweight_hidden, _, _, dhidden = scan_vjp(cotangents)
        dx, dweight_input, dbias = products_vjp(dproducts)
        return dx, dweight_input, dweight_hidden, dbias, None if hidden is None else dhidden, None

    return value, vjp


def tanh_step(product: Array, hidden_product: Array, states: States) -> tuple[States, Any]:
    """One step of the network with f = tanh; see `xpnn.ops.scan.Step`."""
    return _step(tanh, product + hidden_product)


def relu_step(product: Array, hidden_product: Array, states: States) -> tuple[States, Any]:
    """One step of the network with f = relu."""
    return _step(relu, product + hidden_product)


def _step(activate: Any, z: Array) -> tuple[States, Any]:
    new, activation_vjp = activate(z)

    def vjp(dstates: States) -> tuple[Any, ...]:
        (dz,) = activation_vjp(dstates[0])
        return dz, dz, (None,)

    return (new,), vjp
