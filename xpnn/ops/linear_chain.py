"""Linear maps one behind the other, each with its activation: a multilayer perceptron as one op."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import OPS, Array, Vjp, op
from xpnn.errors import ConfigError


@op
def linear_chain(
    x: Array, *arrays: Array | None, activations: tuple[str | None, ...], input_gradient: bool = True
) -> tuple[Array, Vjp]:
    """y = f_n(... f_2(f_1(x W_1 + b_1) W_2 + b_2) ... W_n + b_n): what n calls of `linear` give.

    Derivatives, with z_k what f_k is applied to and g_k = dz_k: g_n = f_n'(z_n) dy, g_k = f_k'(z_k) (g_k+1 W_k+1^T),
    and of each map dW_k and db_k as in `linear` (Goodfellow, Bengio and Courville, "Deep Learning", 2016, section
    6.5.6). As one op, a backend can apply f_k' and sum db_k in the product that gives g_k+1 W_k+1^T.

    Args:
        x: (..., in).
        arrays: W_1, b_1, W_2, b_2, ...: weights (in of map k, out of map k) and biases (out of map k,) or None.
        activations: f_1, f_2, ...: for each map a name in `xpnn.ops.linear.FUSABLE`, or None.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        y of shape (..., out of map n), and vjp(dy) -> (dx, dW_1, db_1, dW_2, db_2, ...), with None for what is not
        there.

    Raises:
        ConfigError: there are not two arrays for each activation.
    """
    check_chain(arrays, activations)
    vjps: list[Vjp] = []
    y = x
    for position, activation in enumerate(activations):
        weight, bias = arrays[2 * position : 2 * position + 2]
        wanted = input_gradient or position > 0
        y, linear_vjp = OPS["linear"](y, weight, bias, activation=activation, input_gradient=wanted)
        vjps.append(linear_vjp)

    def vjp(dy: Array) -> tuple[Any, ...]:
        gradients: tuple[Any, ...] = ()
        for linear_vjp in reversed(vjps):
            dy, dweight, dbias = linear_vjp(dy)
            gradients = (dweight, dbias, *gradients)
        return dy, *gradients

    return y, vjp


def check_chain(arrays: tuple[Array | None, ...], activations: tuple[str | None, ...]) -> None:
    """Raise ConfigError if there are not a weight and a bias for each activation, and at least one of each."""
    if not activations or len(arrays) != 2 * len(activations):
        raise ConfigError(
            f"linear_chain: got {len(arrays)} weights and biases for activations={activations!r}; give at least one "
            "activation, and for each a weight and a bias, with None for an activation or a bias that is not there"
        )
