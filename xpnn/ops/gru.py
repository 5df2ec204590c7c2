"""The gated recurrent unit, over all steps of a sequence."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.scan import States, check_recurrent, initial_state, input_products, scan
from xpnn.ops.sigmoids import sigmoid, tanh


@op
def gru(
    x: Array,
    weight_input: Array,
    weight_hidden: Array,
    bias_input: Array | None = None,
    bias_hidden: Array | None = None,
    hidden: Array | None = None,
    mask: Array | None = None,
    *,
    reverse: bool = False,
    input_gradient: bool = True,
) -> tuple[tuple[Array, Array], Vjp]:
    """The gated recurrent unit (Cho et al., EMNLP 2014), over all steps of a sequence.

    With z = x_t W + b and q = h_(t-1) U + c, each cut into three blocks of `units` columns, and s the sigmoid:

        r = s(z_r + q_r)    u = s(z_u + q_u)    n = tanh(z_n + r q_n)
        h_t = (1 - u) n + u h_(t-1)     y_t = h_t

    This is the form of PyTorch and cuDNN: the reset gate r acts on the product of the state with its weights. In the
    paper it acts on the state itself.

    Where the mask is False, a step does not happen: h stays as it is, and y is 0. So a sequence that is padded behind
    its end gives the last state of its real steps, and a reverse scan begins at the last real step.

    Args:
        x: (batch, time, features).
        weight_input: W, (features, 3 units); the blocks are those of r, u, n.
        weight_hidden: U, (units, 3 units).
        bias_input: b, (3 units,), or None.
        bias_hidden: c, (3 units,), or None; only its part in q_n does what b cannot.
        hidden: h before the first step, (batch, units); None for zeros.
        mask: bool (batch, time), True where a step counts; None if all do.
        reverse: True to go from the last step to the first; y keeps the order of x.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        (y, last h) of shapes (batch, time, units) and (batch, units); and vjp((dy, dh)) -> (dx, dW, dU, db, dc,
        dhidden, None). Each of dy, dh may be None, for zeros.

    Raises:
        ShapeError: the shapes do not fit together.
        ConfigError: the mask is not bool.
    """
    xp = namespace(x)
    units = weight_hidden.shape[0]
    check_recurrent(
        "gru",
        3,
        units,
        {
            "x": x,
            "weight_input": weight_input,
            "weight_hidden": weight_hidden,
            "bias_input": bias_input,
            "bias_hidden": bias_hidden,
            "hidden": hidden,
            "mask": mask,
        },
    )
    products, products_vjp = input_products(xp, x, weight_input, bias_input, input_gradient)
    start = initial_state(xp, hidden, x, units)
    value, scan_vjp = scan(products, weight_hidden, bias_hidden, mask, start, step=gru_step, reverse=reverse)

    def vjp(cotangents: tuple[Any, Any]) -> tuple[Any, ...]:
        dproducts, dweight_hidden, dbias_hidden, _, dhidden = scan_vjp(cotangents)
        dx, dweight_input, dbias_input = products_vjp(dproducts)
        dhidden = None if hidden is None else dhidden
        return dx, dweight_input, dweight_hidden, dbias_input, dbias_hidden, dhidden, None

    return value, vjp


def gru_step(z: Array, q: Array, states: States) -> tuple[States, Any]:
    """One step of `gru`; see `xpnn.ops.scan.Step`."""
    (before,) = states
    xp, units = namespace(before), before.shape[1]
    reset, reset_vjp = sigmoid(z[:, :units] + q[:, :units])
    update, update_vjp = sigmoid(z[:, units : 2 * units] + q[:, units : 2 * units])
    remembered = q[:, 2 * units :]
    candidate, candidate_vjp = tanh(z[:, 2 * units :] + reset * remembered)
    share = 1.0 - update

    def vjp(dstates: States) -> tuple[Any, ...]:
        (dnew,) = dstates
        (dcandidate,) = candidate_vjp(dnew * share)
        (dreset,) = reset_vjp(dcandidate * remembered)
        (dupdate,) = update_vjp(dnew * (before - candidate))
        dz = xp.concat([dreset, dupdate, dcandidate], axis=-1)
        dq = xp.concat([dreset, dupdate, dcandidate * reset], axis=-1)
        return dz, dq, (dnew * update,)

    return (share * candidate + update * before,), vjp
