"""The linear map y = x W + b."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import OPS, Array, Vjp, namespace, op

FUSABLE = ("gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh")
"""Ops of one array that `linear` takes as its `activation`, with their default settings."""


@op
def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    input_gradient: bool = True,
) -> tuple[Array, Vjp]:
    """y = f(x W + b), with an optional bias and an optional activation f.

    Derivatives, with g = f'(z) dy and z = x W + b: dx = g W^T, dW = x^T g, db = sum of g over the batch
    (Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 6.5.6).

    Args:
        x: (..., in).
        weight: (in, out).
        bias: (out,), or None.
        activation: a name in FUSABLE, or None.
        input_gradient: False if dx is not needed: the vjp then returns None in its place.

    Returns:
        y of shape (..., out), and vjp(dy) -> (dx, dW, db), with None for what is not there.
    """
    xp = namespace(x)
    y = xp.matmul(x, weight)
    if bias is not None:
        y = y + bias
    if activation is not None:
        y, activation_vjp = OPS[activation](y)

    def vjp(dy: Array) -> tuple[Any, ...]:
        if activation is not None:
            (dy,) = activation_vjp(dy)
        dx = xp.matmul(dy, weight.T) if input_gradient else None
        rows, dy_rows = x, dy
        if x.ndim != 2:
            rows = xp.reshape(x, (_rows(x), x.shape[-1]))
            dy_rows = xp.reshape(dy, (_rows(dy), dy.shape[-1]))
        dweight = xp.matmul(rows.T, dy_rows)
        dbias = None if bias is None else xp.sum(dy_rows, axis=0)
        return dx, dweight, dbias

    return y, vjp


def _rows(x: Array) -> int:
    count = 1
    for length in x.shape[:-1]:
        count *= length
    return count
