"""The linear map on the GPU: products by cublasLt, with the bias and the activation in the same pass where it can."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn.ops.linear import FUSABLE
from xpnn.ops.linear_chain import check_chain
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

    - Forward: the bias is added by the product, which also applies relu or gelu_tanh. Any other activation is one
      kernel behind it, and where cublasLt declines, the bias comes with that kernel.
    - Backward: with an activation, one kernel gives dz = f'(z) dy and db, the sums of its columns. Without one, dz is
      dy, and db comes with the product dW = x^T dz.
    - In half precision, dW is float32: the sum keeps its digits, and the optimizer wants it so.
    """
    if not _is_handled(x, [(weight, bias)], (activation,)):
        return generic("linear")(x, weight, bias, activation=activation, input_gradient=input_gradient)
    return _chain(x, [(weight, bias)], (activation,), input_gradient)


@handles_half
def linear_chain(
    x: Any, *arrays: Any, activations: tuple[str | None, ...], input_gradient: bool = True
) -> tuple[Any, Any]:
    """Each map as in `linear`; and where one has a bias and relu or gelu_tanh, no kernel runs between the products.

    - Forward: its product writes besides what the derivative needs: which results are positive, as bits, or z.
    - Backward: the product dx of the map behind it reads that: it gives dz and db of the map before.
    - Where cublasLt declines, the map is run as `linear` runs it.
    """
    check_chain(arrays, activations)
    maps = list(zip(arrays[::2], arrays[1::2], strict=True))
    if not _is_handled(x, maps, activations):
        return generic("linear_chain")(x, *arrays, activations=activations, input_gradient=input_gradient)
    return _chain(x, maps, activations, input_gradient)


class _Map(NamedTuple):
    """One linear map after its forward pass."""

    rows: Any  # its input, as a matrix
    weight: Any
    bias: Any
    activation: str | None
    saved: Any  # what the activation's derivative is computed from
    kept: Any  # what its product has kept for a product of the map behind it, which takes the gradient through; or None


def _chain(
    x: Any, maps: list[tuple[Any, Any]], activations: tuple[str | None, ...], input_gradient: bool
) -> tuple[Any, Any]:
    """Linear maps one behind the other: the value, and vjp(dy) -> (dx, dW_1, db_1, dW_2, ...)."""
    done: list[_Map] = []
    y = _rows(x)
    for position, ((weight, bias), activation) in enumerate(zip(maps, activations, strict=True)):
        rows = y
        y, saved, kept = _forward(rows, weight, bias, activation, is_last=position == len(maps) - 1)
        done.append(_Map(rows, weight, bias, activation, saved, kept))

    def vjp(dy: Any) -> tuple[Any, ...]:
        dz, dbias = _through_activation(done[-1], in_order(_rows(dy.astype(x.dtype, copy=False))))
        gradients: tuple[Any, ...] = ()
        for position in range(len(done) - 1, -1, -1):
            gradients = (*_parameter_gradients(done[position], dz, dbias), *gradients)
            if position:
                dz, dbias = _through_map(done[position], dz, done[position - 1])
        dx = products.matmul(dz, done[0].weight.T).reshape(x.shape) if input_gradient else None
        return dx, *gradients

    return y.reshape(*x.shape[:-1], y.shape[1]), vjp


def _forward(rows: Any, weight: Any, bias: Any, activation: str | None, is_last: bool) -> tuple[Any, Any, Any]:
    """y = f(x W + b), what the derivative of f is computed from, and what the product has kept, where it helps."""
    # Behind the last map there is no product to read a mask; z is needed there too.
    if bias is not None and (activation == "gelu_tanh" or (activation == "relu" and not is_last)):
        both = products.with_activation(rows, weight, bias, activation)
        if both is not None:
            y, kept = both
            return y, (y if activation == "relu" else kept[:, : y.shape[1]]), kept
    z = None if bias is None else products.with_bias(rows, weight, bias, relu=activation == "relu")
    if z is not None and activation in (None, "relu"):
        return z, z, None
    if z is not None:
        return *bias_activation(z, None, activation), None
    return *bias_activation(products.matmul(rows, weight), bias, activation), None


def _through_activation(here: _Map, dy: Any) -> tuple[Any, Any]:
    """dz = f'(z) dy; and db where it comes with that, else None."""
    if here.activation is None:
        return dy, None
    saved = in_order(here.saved)  # the rows of z may have been longer
    if here.bias is None:
        return bias_activation_backward(dy, saved, here.activation), None
    return bias_activation_gradients(dy, saved, here.activation)


def _through_map(here: _Map, dz: Any, before: _Map) -> tuple[Any, Any]:
    """From dz of one map to that of the map before it; and its db where it comes with that, else None."""
    if before.activation is not None and before.kept is not None:
        both = products.through_activation(dz, here.weight.T, before.kept, before.activation)
        if both is not None:
            return both
    return _through_activation(before, products.matmul(dz, here.weight.T))


def _parameter_gradients(here: _Map, dz: Any, dbias: Any) -> tuple[Any, Any]:
    """dW = x^T dz, and db: the one that is known already, or else the sums of dz's columns."""
    wide = _WIDE if dz.dtype.char in "eE" else None
    if here.bias is not None and dbias is None:
        both = None if wide else products.with_column_sums(here.rows.T, dz)
        if both is not None:
            return both
        dbias = column_sums(dz)
    return products.matmul(here.rows.T, dz, out_dtype=wide), dbias


def _is_handled(x: Any, maps: list[tuple[Any, Any]], activations: tuple[str | None, ...]) -> bool:
    """Whether these are matrices of one dtype that fit, and not empty; for all else there is the generic body."""
    if x.dtype.name not in _DTYPES or not x.ndim or not x.size:
        return False
    features = x.shape[-1]
    for (weight, bias), activation in zip(maps, activations, strict=True):
        if weight.dtype != x.dtype or weight.ndim != 2 or weight.shape[0] != features or not weight.size:
            return False
        features = weight.shape[1]
        if bias is not None and (bias.dtype != x.dtype or bias.shape != (features,)):
            return False
        if activation is not None and activation not in FUSABLE:
            return False
    return True


def _rows(x: Any) -> Any:
    """x (..., features) as a matrix."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


BODIES: dict[str, Body] = {"linear": linear, "linear_chain": linear_chain}
