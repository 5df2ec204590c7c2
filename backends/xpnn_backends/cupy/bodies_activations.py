"""Activations on the GPU, one kernel each way; and what a linear map does behind its product: bias and activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import OPS, Body
from xpnn.half_precision import handles_half
from xpnn_backends.cupy.kernels import THREADS, blocks_for, generic, in_order, launch

PACKS = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}
"""dtype -> how many elements a kernel moves at a time, where their addresses allow it."""

_WIDE = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}
"""dtype -> in what the kernels compute with it."""

_ROWS_EACH = 16
"""So many rows a thread of `column_sums` adds up before the work is spread over more blocks."""

_MOST_BLOCKS = 1024
"""Blocks of a pass over a matrix: more would not keep the GPU busier."""

_FUNCTIONS = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "selu": "Selu",
    "celu": "Celu",
    "smelu": "Smelu",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "sigmoid": "Sigmoid",
    "log_sigmoid": "LogSigmoid",
    "hard_sigmoid": "HardSigmoid",
    "tanh": "Tanh",
    "gelu_tanh": "GeluTanh",
    "silu": "Silu",
    "mish": "Mish",
    "hard_swish": "HardSwish",
    "erf": "Erf",
    "normal_cdf": "NormalCdf",
}
"""Op -> its function in activations.cu; those of gelu depend on its form."""

_GELU = {"none": "Gelu", "tanh": "GeluTanh"}

_BEHIND_LINEAR = {
    "gelu": "Gelu",
    "gelu_tanh": "GeluTanh",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "silu": "Silu",
    "tanh": "Tanh",
}

_KEEPS_SUM = ("gelu", "gelu_tanh", "silu")
"""Activations of a linear map whose derivative is computed from what they are applied to."""

_GRADIENTS = {
    None: "Identity",
    "gelu": "Gelu",
    "gelu_tanh": "GeluTanh",
    "relu": "Relu",
    "sigmoid": "SigmoidFromResult",
    "silu": "Silu",
    "tanh": "TanhFromResult",
}
"""Activation of a linear map -> the function that has its derivative with respect to what was kept: the result for
relu, sigmoid and tanh."""


def _kernels() -> list[tuple[str, str, tuple[Any, ...]]]:
    found: list[tuple[str, str, tuple[Any, ...]]] = []
    for dtype, pack in PACKS.items():
        functions = [*_FUNCTIONS.values(), "Gelu"]
        found += [("activations", "activation", (function, dtype)) for function in functions]
        functions += ["SigmoidFromResult", "TanhFromResult"]
        found += [("activations", "activation_gradient", (function, dtype)) for function in functions]
        sums = dict.fromkeys((dtype, _WIDE[dtype]))
        for width in (pack, 1):
            found.append(("activations", "bias_activation", ("Identity", dtype, width, False)))
            for activation, function in _BEHIND_LINEAR.items():
                keeps_sum = activation in _KEEPS_SUM
                found.append(("activations", "bias_activation", (function, dtype, width, keeps_sum)))
            for function in _GRADIENTS.values():
                found += [("activations", "column_sums", (function, dtype, kind, width)) for kind in sums]
        if _WIDE[dtype] != dtype:
            # The sums of blocks of rows are added up in float32.
            widths = (PACKS[_WIDE[dtype]], 1)
            found += [("activations", "column_sums", ("Identity", _WIDE[dtype], dtype, width)) for width in widths]
    return found


KERNELS: list[tuple[str, str, tuple[Any, ...]]] = _kernels()


def ceil_divide(count: int, each: int) -> int:
    """count / each, rounded up."""
    return -(-count // each)


def _apply(function: str, x: Any, setting: float) -> Any:
    """y = f(x), in a new array in C order."""
    y = cupy.empty(x.shape, dtype=x.dtype)
    dtype = x.dtype.name
    blocks = blocks_for(ceil_divide(x.size, PACKS[dtype]))
    launch("activations", "activation", (function, dtype), blocks, THREADS, (x, y, x.size, setting))
    return y


def _gradient(function: str, x: Any, dy: Any, setting: float) -> Any:
    """dx = f'(x) dy, in a new array in C order."""
    dy = in_order(dy if dy.dtype == x.dtype else dy.astype(x.dtype))
    dx = cupy.empty(x.shape, dtype=x.dtype)
    dtype = x.dtype.name
    blocks = blocks_for(ceil_divide(x.size, PACKS[dtype]))
    launch("activations", "activation_gradient", (function, dtype), blocks, THREADS, (x, dy, dx, x.size, setting))
    return dx


def _value_and_vjp(function: str, x: Any, setting: float = 0.0) -> tuple[Any, Callable[..., Any]]:
    x = in_order(x)

    def vjp(dy: Any) -> tuple[Any]:
        return (_gradient(function, x, dy, setting),)

    return _apply(function, x, setting), vjp


def _body(name: str) -> Body:
    """The body of an activation without an option, or with one number for its option."""
    function = _FUNCTIONS[name]
    parameters = list(OPS[name].signature.parameters.values())[1:]
    default = parameters[0].default if parameters else 0.0

    @handles_half
    def body(x: Any, setting: Any = default) -> tuple[Any, Any]:
        if x.dtype.name not in PACKS or not x.size or not isinstance(setting, (int, float)):
            return generic(name)(x, setting) if parameters else generic(name)(x)
        return _value_and_vjp(function, x, float(setting))

    return body


@handles_half
def gelu(x: Any, approximate: str = "none") -> tuple[Any, Any]:
    """Both forms in one kernel each way."""
    if x.dtype.name not in PACKS or not x.size or approximate not in _GELU:
        return generic("gelu")(x, approximate)
    return _value_and_vjp(_GELU[approximate], x)


BODIES: dict[str, Body] = {**{name: _body(name) for name in _FUNCTIONS}, "gelu": gelu}


def _width(features: int, *arrays: Any) -> int:
    """How many elements of a row the kernels move at a time: 16 bytes, or one element where addresses forbid it."""
    pack = PACKS[arrays[0].dtype.name]
    fits = features % pack == 0 and all(array.data.ptr % 16 == 0 for array in arrays)
    return pack if fits else 1


def bias_activation(z: Any, bias: Any, activation: str | None) -> tuple[Any, Any]:
    """y = f(z + bias), in one kernel, and what `bias_activation_backward` needs to know of it.

    Args:
        z: (rows, features) in C order, float32, float64, float16 or bfloat16; it may be overwritten.
        bias: (features,), or None.
        activation: a name in `xpnn.ops.linear.FUSABLE`, or None.

    Returns:
        y, in the memory of z where that is free, and what to keep: y for relu, sigmoid and tanh, z + bias for both
        forms of gelu and silu, None without an activation.
    """
    if activation is None and bias is None:
        return z, None
    keeps_sum = activation in _KEEPS_SUM
    y = cupy.empty(z.shape, dtype=z.dtype) if keeps_sum else z
    saved = z if keeps_sum else None if activation is None else y
    if not z.size:
        return y, saved
    dtype = z.dtype.name
    function = "Identity" if activation is None else _BEHIND_LINEAR[activation]
    if bias is None:
        blocks = blocks_for(ceil_divide(z.size, PACKS[dtype]))
        launch("activations", "activation", (function, dtype), blocks, THREADS, (z, y, z.size, 0.0))
        return y, saved
    bias = in_order(bias if bias.dtype == z.dtype else bias.astype(z.dtype))
    rows, features = z.shape
    width = _width(features, z, y, bias)
    columns = features // width
    across = min(columns, THREADS)
    if columns > THREADS:
        # As many for each block, in whole warps, so that each row of a block begins where a line of memory does.
        across = ceil_divide(ceil_divide(columns, ceil_divide(columns, THREADS)), 32) * 32
    down = THREADS // across
    wide = ceil_divide(columns, across)
    high = max(1, min(ceil_divide(rows, down), blocks_for(z.size // width) // wide, 65535))
    parameters = (function, dtype, width, keeps_sum)
    arguments = (z, bias, y, rows, features, np.int32(across))
    launch("activations", "bias_activation", parameters, (wide, high), across * down, arguments)
    return y, saved


def bias_activation_backward(dy: Any, saved: Any, activation: str | None) -> Any:
    """dz = f'(z) dy, in one kernel, with what `bias_activation` said to keep; dy itself without an activation."""
    if activation is None or not dy.size:
        return dy
    return _gradient(_GRADIENTS[activation], saved, dy, 0.0)


def column_sums(dz: Any) -> Any:
    """The sums of the columns of dz (rows, features), always added up in the same order: a bias's gradient."""
    return _column_sums("Identity", None, dz, None)


def bias_activation_gradients(dy: Any, saved: Any, activation: str | None) -> tuple[Any, Any]:
    """dz = f'(z) dy and the sums of its columns, in one pass over the memory.

    The same as `bias_activation_backward` and `column_sums` after it, but that the sums are those of dz before it is
    rounded to half precision.

    Returns:
        dz (rows, features) and its sums (features,).
    """
    if activation is None:
        return dy, column_sums(dy)
    dy = in_order(dy if dy.dtype == saved.dtype else dy.astype(saved.dtype))
    dz = cupy.empty(dy.shape, dtype=dy.dtype)
    return dz, _column_sums(_GRADIENTS[activation], saved, dy, dz)


def _column_sums(function: str, saved: Any, dy: Any, dz: Any) -> Any:
    """The sums of the columns of f'(saved) dy; this goes to dz besides, where there is one."""
    dy = in_order(dy)
    rows, features = dy.shape
    sums = cupy.empty(features, dtype=dy.dtype)
    if not dy.size:
        sums.fill(0)
        return sums
    dtype = dy.dtype.name
    width = _width(features, *[array for array in (dy, saved, dz) if array is not None])
    columns = features // width
    # A block is one line of memory (128 bytes) wide and as high as can be: the higher, the fewer sums to add up again.
    across = min(columns, 128 // (width * dy.dtype.itemsize))
    down = THREADS // across
    wide = ceil_divide(columns, across)
    high = max(1, min(ceil_divide(rows, down * _ROWS_EACH), _MOST_BLOCKS // wide))
    parts = sums if high == 1 else cupy.empty((high, features), dtype=_WIDE[dtype])
    parameters = (function, dtype, parts.dtype.name, width)
    arguments = (saved, dy, dz, parts, rows, features, np.int32(across))
    launch("activations", "column_sums", parameters, (wide, high), across * down, arguments)
    if high > 1:
        _add_parts(parts, sums)
    return sums


def _add_parts(parts: Any, sums: Any) -> None:
    """sums = those of the columns of parts, which are few rows."""
    rows, features = parts.shape
    width = _width(features, parts)
    columns = features // width
    across = min(columns, 128 // (width * parts.dtype.itemsize))
    down = min(THREADS // across, 1 << math.ceil(math.log2(rows)))
    wide = ceil_divide(columns, across)
    parameters = ("Identity", parts.dtype.name, sums.dtype.name, width)
    arguments = (None, parts, None, sums, rows, features, np.int32(across))
    launch("activations", "column_sums", parameters, (wide, 1), across * down, arguments)
