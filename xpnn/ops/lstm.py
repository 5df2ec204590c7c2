"""Long short-term memory, over all steps of a sequence."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.scan import States, check_recurrent, initial_state, input_products, scan
from xpnn.ops.sigmoids import sigmoid, tanh


@op
def lstm(
    x: Array,
    weight_input: Array,
    weight_hidden: Array,
    bias: Array | None = None,
    hidden: Array | None = None,
    cell: Array | None = None,
    mask: Array | None = None,
    *,
    reverse: bool = False,
    input_gradient: bool = True,
) -> tuple[tuple[Array, Array, Array], Vjp]:
    """Long short-term memory (Hochreiter and Schmidhuber, Neural Computation 9, 1997) with a forget gate (Gers,
    Schmidhuber and Cummins, Neural Computation 12, 2000), over all steps of a sequence.

    With z = x_t W + h_(t-1) U + b, cut into four blocks of `units` columns, and s the sigmoid:

        i = s(z_i)    f = s(z_f)    g = tanh(z_g)    o = s(z_o)
        c_t = f c_(t-1) + i g       h_t = o tanh(c_t)       y_t = h_t

    Where the mask is False, a step does not happen: h and c stay as they are, and y is 0. So a sequence that is padded
    behind its end gives the last state of its real steps, and a reverse scan begins at the last real step.

    The derivative goes back through the steps with the gates that were kept. The gradients of W, U and x are one matrix
    product each, over all steps.

    Args:
        x: (batch, time, features).
        weight_input: W, (features, 4 units); the blocks are those of i, f, g, o.
        weight_hidden: U, (units, 4 units).
        bias: b, (4 units,), or None.
        hidden: h before the first step, (batch, units); None for zeros.
        cell: c before the first step, (batch, units); None for zeros.
        mask: bool (batch, time), True where a step counts; None if all do.
        reverse: True to go from the last step to the first; y keeps the order of x.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        (y, last h, last c) of shapes (batch, time, units), (batch, units), (batch, units); and
        vjp((dy, dh, dc)) -> (dx, dW, dU, db, dhidden, dcell, None). Each of dy, dh, dc may be None, for zeros.

    Raises:
        ShapeError: the shapes do not fit together.
        ConfigError: the mask is not bool.
    """
    xp = namespace(x)
    units = weight_hidden.shape[0]
    check_recurrent(
        "lstm",
        4,
        units,
        {
            "x": x,
            "weight_input": weight_input,
            "weight_hidden": weight_hidden,
            "bias": bias,
            "hidden": hidden,
            "cell": cell,
            "mask": mask,
        },
    )
    products, products_vjp = input_products(xp, x, weight_input, bias, input_gradient)
    start = initial_state(xp, hidden, x, units), initial_state(xp, cell, x, units)
    value, scan_vjp = scan(products, weight_hidden, None, mask, *start, step=lstm_step, reverse=reverse)

    def vjp(cotangents: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        dproducts, dweight_hidden, _, _, dhidden, dcell = scan_vjp(cotangents)
        dx, dweight_input, dbias = products_vjp(dproducts)
        dhidden = None if hidden is None else dhidden
        dcell = None if cell is None else dcell
        return dx, dweight_input, dweight_hidden, dbias, dhidden, dcell, None

    return value, vjp


def lstm_step(product: Array, hidden_product: Array, states: States) -> tuple[States, Any]:
    """One step of `lstm`; see `xpnn.ops.scan.Step`."""
    hidden, memory = states
    xp, units = namespace(hidden), hidden.shape[1]
    z = product + hidden_product
    put_in, put_in_vjp = sigmoid(z[:, :units])
    keep, keep_vjp = sigmoid(z[:, units : 2 * units])
    candidate, candidate_vjp = tanh(z[:, 2 * units : 3 * units])
    show, show_vjp = sigmoid(z[:, 3 * units :])
    new_memory = keep * memory + put_in * candidate
    squashed, squashed_vjp = tanh(new_memory)

    def vjp(dstates: States) -> tuple[Any, ...]:
        dnew, dnew_memory = dstates
        dnew_memory = dnew_memory + squashed_vjp(dnew * show)[0]
        dz = xp.concat(
            [
                put_in_vjp(dnew_memory * candidate)[0],
                keep_vjp(dnew_memory * memory)[0],
                candidate_vjp(dnew_memory * put_in)[0],
                show_vjp(dnew * squashed)[0],
            ],
            axis=-1,
        )
        return dz, dz, (None, dnew_memory * keep)

    return (show * squashed, new_memory), vjp
