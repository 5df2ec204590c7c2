"""The simple recurrent network, over all steps of a sequence."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import OPS, Array, Vjp, namespace, op
from xpnn.errors import ConfigError
from xpnn.ops.scan import States, check_recurrent, initial_state, input_products, scan, without_steps

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
        ConfigError: the activation is neither "tanh" nor "relu".
    """
    xp = namespace(x)
    if activation not in RNN_ACTIVATIONS:
        raise ConfigError(
            f"activation={activation!r} of rnn is unknown; choose {' or '.join(map(repr, RNN_ACTIVATIONS))}"
        )
    activate = OPS[activation].function
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
    if x.shape[1] == 0:
        return without_steps(xp, x, (weight_input, weight_hidden, bias), (hidden,), units, input_gradient)

    def step(product: Array, states: States) -> tuple[States, Any]:
        new, activation_vjp = activate(product + xp.matmul(states[0], weight_hidden))

        def step_vjp(dstates: States) -> tuple[Array, Array, States]:
            (dz,) = activation_vjp(dstates[0])
            return dz, dz, (xp.matmul(dz, weight_hidden.T),)

        return (new,), step_vjp

    products, products_vjp = input_products(xp, x, weight_input, bias, input_gradient)
    start = (initial_state(xp, hidden, x, units),)
    outputs, last, backward = scan(xp, step, products, start, mask, reverse)

    def vjp(cotangents: tuple[Any, Any]) -> tuple[Any, ...]:
        dy, dlast = cotangents
        dproducts, dweight_hidden, _, (dhidden,) = backward(dy, (dlast,))
        dx, dweight_input, dbias = products_vjp(dproducts)
        return dx, dweight_input, dweight_hidden, dbias, None if hidden is None else dhidden, None

    return (outputs, *last), vjp
