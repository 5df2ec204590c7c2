"""The scan that the recurrent ops (`rnn`, `lstm`, `gru`) are made of: everything but what happens in one step.

Here, arrays lie with time in front, (time, batch, ...): the part of one step is then one piece of memory, and the
products of the input of all steps with the weights are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.linear import linear

States = tuple[Array, ...]
Step = Callable[[Array, Array, States], tuple[States, Callable[[States], tuple[Array, Array, tuple[Any, ...]]]]]
"""step(product, hidden_product, states) -> (states after it, vjp): one step of a recurrent op, elementwise.

`product` is what the input gives to it, x W + b, and `hidden_product` what the hidden state gives, h U + c.
vjp(dstates) -> (dproduct, dhidden_product, dstates before). Where dhidden_product is dproduct itself, the same object
is returned. The first of dstates leaves out what goes through h U; it is None if nothing else is there.
"""


def check_recurrent(name: str, gates: int, units: int, arrays: dict[str, Array | None]) -> None:
    """Raise ShapeError unless the arguments of a recurrent op fit together, ConfigError if the mask is not bool.

    Args:
        name: of the op.
        gates: how many blocks of `units` columns the weights have.
        units: the length of the state.
        arrays: the op's arguments by name; "x" and the weights are always there.
    """
    x = arrays["x"]
    if x is None or x.ndim != 3:
        shape = None if x is None else tuple(x.shape)
        raise ShapeError(f"{name}: x has shape {shape}; wants (batch, time, features)")
    batch, time, features = x.shape
    wanted = {
        "weight_input": (features, gates * units),
        "weight_hidden": (units, gates * units),
        "bias": (gates * units,),
        "bias_input": (gates * units,),
        "bias_hidden": (gates * units,),
        "hidden": (batch, units),
        "cell": (batch, units),
        "mask": (batch, time),
    }
    for argument, array in arrays.items():
        if argument != "x" and array is not None and tuple(array.shape) != wanted[argument]:
            raise ShapeError(
                f"{name}: {argument} has shape {tuple(array.shape)}; with x of shape {tuple(x.shape)} and {units} "
                f"units it must have {wanted[argument]}"
            )
    mask = arrays["mask"]
    if mask is not None and not namespace(mask).isdtype(mask.dtype, "bool"):
        raise ConfigError(f"{name}: the mask has dtype {mask.dtype}; give bools, True where a step counts (mask != 0)")


def input_products(
    xp: Any, x: Array, weight: Array, bias: Array | None, input_gradient: bool
) -> tuple[Array, Callable[[Array], tuple[Any, Any, Any]]]:
    """x W + b of all steps at once, and its derivative.

    Args:
        xp: the namespace.
        x: (batch, time, features).
        weight: (features, columns).
        bias: (columns,), or None.
        input_gradient: False if dx is not needed.

    Returns:
        The products (time, batch, columns), and vjp(dproducts) -> (dx, dweight, dbias).
    """
    batch, time, features = x.shape
    columns = weight.shape[-1]
    rows = xp.reshape(xp.permute_dims(x, (1, 0, 2)), (time * batch, features))
    products, linear_vjp = linear(rows, weight, bias, input_gradient=input_gradient)

    def vjp(dproducts: Array) -> tuple[Any, Any, Any]:
        drows, dweight, dbias = linear_vjp(xp.reshape(dproducts, (time * batch, columns)))
        dx = None
        if drows is not None:
            dx = xp.permute_dims(xp.reshape(drows, (time, batch, features)), (1, 0, 2))
        return dx, dweight, dbias

    return xp.reshape(products, (time, batch, columns)), vjp


def initial_state(xp: Any, state: Array | None, x: Array, units: int) -> Array:
    """`state` itself, or zeros (batch, units) for None."""
    if state is not None:
        return state
    return xp.zeros((x.shape[0], units), dtype=x.dtype, device=device(x))


@op
def scan(
    products: Array,
    weight_hidden: Array,
    bias_hidden: Array | None,
    mask: Array | None,
    *states: Array,
    step: Step,
    reverse: bool = False,
) -> tuple[tuple[Array, ...], Vjp]:
    """Take the steps of all sequences, one after the other: (states) <- step(products_t, h U + c, states).

    Backwards, the steps are taken in the opposite order (back-propagation through time: Werbos, Proceedings of the
    IEEE 78, 1990).

    Args:
        products: what the input gives to each step, (time, batch, columns).
        weight_hidden: U, (units, columns).
        bias_hidden: c, (columns,), or None.
        mask: bool (batch, time), False where a step does not happen: states stay as they are, and the output is 0; or
            None.
        states: the states before the first step, (batch, units) each; the first one is the hidden state h.
        step: what happens in one step; see `Step`. A function of a module, rather than one made anew for each call: a
            backend that compiles the scan does so for each step function and shape once.
        reverse: True to go from the last step to the first.

    Returns:
        (outputs, *last states): h after each step, (batch, time, units), and the states after the last step that was
        taken; and vjp((doutputs, *dlast)) -> (dproducts, dU, dc, None, *dstates). Each of doutputs and dlast may be
        None, for zeros.

    Raises:
        ShapeError: the shapes do not fit together.
    """
    _check_scan(products, weight_hidden, bias_hidden, mask, states)
    xp = namespace(products)
    time, batch, _ = products.shape
    units = weight_hidden.shape[0]
    if time == 0:
        return _without_steps(xp, products, weight_hidden, bias_hidden, states)
    order = list(reversed(range(time))) if reverse else list(range(time))
    counts = [None if mask is None else xp.expand_dims(mask[:, number], axis=-1) for number in range(time)]
    outputs: list[Any] = [None] * time
    before: list[Any] = [None] * time
    derivatives: list[Any] = [None] * time
    current: States = states
    for number in order:
        before[number] = current[0]
        hidden_product = product_of_hidden(xp, current[0], weight_hidden, bias_hidden)
        outputs[number], current, derivatives[number] = one_step(
            xp, step, products[number, ...], hidden_product, current, counts[number], weight_hidden
        )

    def vjp(cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        doutputs, *dlast = cotangents
        dstates = with_zeros(xp, dlast, states)
        dproducts: list[Any] = [None] * time
        dhidden_products: list[Any] = [None] * time
        for number in reversed(order):
            doutput = None if doutputs is None else doutputs[:, number, ...]
            dproducts[number], dhidden_products[number], dstates = derivatives[number](doutput, dstates)
        dproduct = xp.stack(dproducts, axis=0)
        same = all(mine is other for mine, other in zip(dproducts, dhidden_products, strict=True))
        dhidden_product = dproduct if same else xp.stack(dhidden_products, axis=0)
        rows = xp.reshape(xp.stack(before, axis=0), (time * batch, units))
        return dproduct, *weight_gradients(xp, rows, dhidden_product, bias_hidden), None, *dstates

    return (xp.stack(outputs, axis=1), *current), vjp


def product_of_hidden(xp: Any, hidden: Array, weight_hidden: Array, bias_hidden: Array | None) -> Array:
    """h U + c."""
    product = xp.matmul(hidden, weight_hidden)
    return product if bias_hidden is None else product + bias_hidden


def one_step(
    xp: Any,
    step: Step,
    product: Array,
    hidden_product: Array,
    states: States,
    counts: Array | None,
    weight_hidden: Array,
) -> tuple[Array, States, Callable[[Any, States], tuple[Array, Array, States]]]:
    """A step for the samples where it counts.

    Args:
        xp: the namespace.
        step: what happens in it.
        product: of the input, (batch, columns).
        hidden_product: h U + c, (batch, columns).
        states: before the step.
        counts: bool (batch, 1), or None if it does for all samples.
        weight_hidden: U.

    Returns:
        The output, the states behind the step, and vjp(doutput or None, dstates behind it) -> (dproduct,
        dhidden_product, dstates before it).
    """
    new, derivative = step(product, hidden_product, states)
    output = new[0]
    if counts is not None:
        output = xp.where(counts, new[0], xp.zeros_like(new[0]))
        new = tuple(xp.where(counts, *pair) for pair in zip(new, states, strict=True))

    def vjp(doutput: Any, dstates: States) -> tuple[Array, Array, States]:
        dnew = dstates if doutput is None else (dstates[0] + doutput, *dstates[1:])
        if counts is not None:
            dnew = tuple(xp.where(counts, part, xp.zeros_like(part)) for part in dnew)
        dproduct, dhidden_product, (dhidden, *dothers) = derivative(dnew)
        through_product = xp.matmul(dhidden_product, weight_hidden.T)
        dhidden = through_product if dhidden is None else dhidden + through_product
        dbefore: States = (dhidden, *dothers)
        if counts is not None:  # where the step did not happen, the states went past it
            dbefore = tuple(xp.where(counts, *pair) for pair in zip(dbefore, dstates, strict=True))
        return dproduct, dhidden_product, dbefore

    return output, new, vjp


def with_zeros(xp: Any, dstates: Any, states: States) -> States:
    """Gradients of the states, with zeros in the place of None."""
    pairs = zip(dstates, states, strict=True)
    return tuple(xp.zeros_like(state) if dstate is None else dstate for dstate, state in pairs)


def weight_gradients(
    xp: Any, hidden_rows: Array, dhidden_products: Array, bias_hidden: Array | None
) -> tuple[Array, Array | None]:
    """(dU, dc), from h before each step as rows (time * batch, units) and the gradients of h U + c of all steps."""
    drows = xp.reshape(dhidden_products, (hidden_rows.shape[0], dhidden_products.shape[-1]))
    return xp.matmul(hidden_rows.T, drows), None if bias_hidden is None else xp.sum(drows, axis=0)


def _check_scan(
    products: Array, weight_hidden: Array, bias_hidden: Array | None, mask: Array | None, states: States
) -> None:
    if products.ndim != 3 or not states:
        raise ShapeError(
            f"scan: got products of shape {tuple(products.shape)} and {len(states)} states; give (time, batch, "
            "columns), and at least one state"
        )
    time, batch, columns = products.shape
    units = states[0].shape[-1]
    given: list[tuple[str, Array | None, tuple[int, ...]]] = [
        ("weight_hidden", weight_hidden, (units, columns)),
        ("bias_hidden", bias_hidden, (columns,)),
        ("mask", mask, (batch, time)),
        *((f"state {number}", state, (batch, units)) for number, state in enumerate(states)),
    ]
    for name, array, shape in given:
        if array is not None and tuple(array.shape) != shape:
            raise ShapeError(
                f"scan: {name} has shape {tuple(array.shape)}; with products of shape {tuple(products.shape)} and "
                f"states of {units} units it must have {shape}"
            )


def _without_steps(
    xp: Any, products: Array, weight_hidden: Array, bias_hidden: Array | None, states: States
) -> tuple[tuple[Array, ...], Vjp]:
    """Value and vjp of `scan` for sequences of no steps: states are passed on, weights have no effect."""
    batch, units = states[0].shape

    def vjp(cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        dbias = None if bias_hidden is None else xp.zeros_like(bias_hidden)
        dstates = with_zeros(xp, cotangents[1:], states)
        return xp.zeros_like(products), xp.zeros_like(weight_hidden), dbias, None, *dstates

    return (xp.zeros((batch, 0, units), dtype=products.dtype, device=device(products)), *states), vjp
