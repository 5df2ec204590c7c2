"""The linear map on the GPU: products by cublasLt, with the bias and the activation in the same pass where it can."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn.ops.linear import FUSABLE
from xpnn_backends.cupy import products
from xpnn_backends.cupy.bodies_activations import (
    bias_activation,
    bias_activation_backward,
    bias_activation_gradients,
    column_sums,
)
from xpnn_backends.cupy.kernels import generic, in_order

_WIDE = "float32"
_DTYPES = ("float32", "float64", "float16", "bfloat16")

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = []
"""None of its own."""


@handles_half
def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = None,
    input_gradient: bool = True,
) -> tuple[Any, Any]:
    """One product forward and two backward, or one where dx is not needed.

    - Forward: the bias is added by the product, which also rectifies. Any other activation is one kernel behind it,
      and where cublasLt declines, the bias comes with that kernel.
    - Backward: with an activation, one kernel gives dz = f'(z) dy and db, the sums of its columns. Without one, dz is
      dy, and db comes with the product dW = x^T dz.
    - In half precision, dW is float32: the sum keeps its digits, and the optimizer wants it so.
    """
    if not _is_handled(x, weight, bias, activation):
        return generic("linear")(x, weight, bias, activation=activation, input_gradient=input_gradient)
    rows = _rows(x)
    z = None if bias is None else products.with_bias(rows, weight, bias, relu=activation == "relu")
    if z is not None and activation in (None, "relu"):
        y = saved = z
    elif z is not None:
        y, saved = bias_activation(z, None, activation)
    else:
        y, saved = bias_activation(products.matmul(rows, weight), bias, activation)

    def vjp(dy: Any) -> tuple[Any, ...]:
        dz = in_order(_rows(dy))
        if dz.dtype != x.dtype:
            dz = dz.astype(x.dtype)
        wide = _WIDE if x.dtype.char in "eE" else None
        if bias is None:
            dz = bias_activation_backward(dz, saved, activation)
            dweight, dbias = products.matmul(rows.T, dz, out_dtype=wide), None
        elif activation is not None:
            dz, dbias = bias_activation_gradients(dz, saved, activation)
            dweight = products.matmul(rows.T, dz, out_dtype=wide)
        else:
            both = None if wide else products.with_column_sums(rows.T, dz)
            dweight, dbias = (products.matmul(rows.T, dz, out_dtype=wide), column_sums(dz)) if both is None else both
        dx = products.matmul(dz, weight.T).reshape(x.shape) if input_gradient else None
        return dx, dweight, dbias

    return y.reshape(*x.shape[:-1], weight.shape[1]), vjp


def _is_handled(x: Any, weight: Any, bias: Any, activation: str | None) -> bool:
    """Whether these are matrices of one dtype that fit, and not empty; for all else there is the generic body."""
    if x.dtype.name not in _DTYPES or weight.dtype != x.dtype or not x.ndim or weight.ndim != 2:
        return False
    if bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[1:]):
        return False
    fits = x.shape[-1] == weight.shape[0] and (activation is None or activation in FUSABLE)
    return fits and x.size > 0 and weight.size > 0


def _rows(x: Any) -> Any:
    """x (..., features) as a matrix."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


BODIES: dict[str, Body] = {"linear": linear}
