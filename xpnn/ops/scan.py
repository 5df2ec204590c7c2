"""What the recurrent ops (`rnn`, `lstm`, `gru`) share: everything but what happens in one step.

Inside the ops, arrays lie with time in front, (time, batch, ...): the part of one step is then one piece of memory, and
the products of the input of all steps with the weights are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xpnn.dispatch import Array, Vjp, device
from xpnn.errors import ShapeError
from xpnn.ops.linear import linear

States = tuple[Array, ...]
Step = Callable[[Array, States], tuple[States, Callable[[States], tuple[Array, Array, States]]]]
"""step(product, states) -> (states after it, vjp): one step of a recurrent op.

`product` is what the input gives to it, x W + b. vjp(dstates) -> (dproduct, dhidden_product, dstates before), where the
second is the gradient with respect to the product of the hidden state with its weights. Where it is `dproduct` itself,
the same object is returned.
"""


def check_recurrent(name: str, gates: int, units: int, arrays: dict[str, Array | None]) -> None:
    """Raise ShapeError unless the arguments of a recurrent op fit together.

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


class Scan(NamedTuple):
    """What a scan gave.

    Attributes:
        outputs: the first state after each step, (batch, time, units); 0 where the step was masked.
        last: the states after the last step that was taken.
        backward: (doutputs or None, dlast) -> (dproducts, dweight_hidden, dhidden_products, dstates), the derivative.
    """

    outputs: Array
    last: States
    backward: Callable[[Any, tuple[Any, ...]], tuple[Array, Array, Array, States]]


def scan(xp: Any, step: Step, products: Array, states: States, mask: Array | None, reverse: bool) -> Scan:
    """Take the steps of a sequence, one after the other.

    Backwards, the steps are taken in the opposite order (back-propagation through time: Werbos, Proceedings of the
    IEEE 78, 1990).

    Args:
        xp: the namespace.
        step: one step; see `Step`.
        products: what the input gives to each step, (time, batch, columns); at least one step.
        states: the states before the first step, (batch, units) each; the first one is the hidden state.
        mask: (batch, time), False where a step does not happen: the states stay as they are, and the output is 0.
        reverse: True to go from the last step to the first.
    """
    time = products.shape[0]
    order = list(reversed(range(time))) if reverse else list(range(time))
    counts = None if mask is None else [xp.expand_dims(mask[:, number], axis=-1) for number in range(time)]
    zeros = xp.zeros_like(states[0])
    outputs: list[Any] = [None] * time
    before: list[Any] = [None] * time
    derivatives: list[Any] = [None] * time
    for number in order:
        before[number] = states[0]
        new, derivatives[number] = step(products[number, ...], states)
        outputs[number] = new[0]
        if counts is not None:
            outputs[number] = xp.where(counts[number], new[0], zeros)
            new = tuple(xp.where(counts[number], *pair) for pair in zip(new, states, strict=True))
        states = new

    def backward(doutputs: Any, dstates: tuple[Any, ...]) -> tuple[Array, Array, Array, States]:
        dstates = tuple(zeros if dstate is None else dstate for dstate in dstates)
        dproducts: list[Any] = [None] * time
        dhidden_products: list[Any] = [None] * time
        for number in reversed(order):
            dnew = dstates
            if doutputs is not None:
                dnew = (dstates[0] + doutputs[:, number, ...], *dstates[1:])
            if counts is not None:
                dnew = tuple(xp.where(counts[number], part, zeros) for part in dnew)
            dproducts[number], dhidden_products[number], dold = derivatives[number](dnew)
            if counts is not None:  # where the step did not happen, the states went past it
                dold = tuple(xp.where(counts[number], *pair) for pair in zip(dold, dstates, strict=True))
            dstates = dold
        dproduct = xp.stack(dproducts, axis=0)
        same = all(mine is other for mine, other in zip(dproducts, dhidden_products, strict=True))
        dhidden_product = dproduct if same else xp.stack(dhidden_products, axis=0)
        batch, units = zeros.shape
        rows = xp.reshape(xp.stack(before, axis=0), (time * batch, units))
        drows = xp.reshape(dhidden_product, (time * batch, dhidden_product.shape[-1]))
        return dproduct, xp.matmul(rows.T, drows), dhidden_product, dstates

    return Scan(xp.stack(outputs, axis=1), states, backward)


def without_steps(
    xp: Any,
    x: Array,
    weights: Sequence[Array | None],
    states: Sequence[Array | None],
    units: int,
    input_gradient: bool,
) -> tuple[Any, Vjp]:
    """Value and vjp of a recurrent op for sequences of no steps: states are passed on, weights have no effect."""
    y = xp.zeros((x.shape[0], 0, units), dtype=x.dtype, device=device(x))
    last = tuple(initial_state(xp, state, x, units) for state in states)

    def vjp(cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        dx = xp.zeros_like(x) if input_gradient else None
        dweights = (None if weight is None else xp.zeros_like(weight) for weight in weights)
        dstates = (
            None if state is None else initial_state(xp, dstate, x, units)
            for state, dstate in zip(states, cotangents[1:], strict=True)
        )
        return (dx, *dweights, *dstates, None)

    return (y, *last), vjp
