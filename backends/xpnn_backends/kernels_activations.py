"""Kernels of the activations, of linear maps with an activation, and of dropout. See `kernels` for what a kernel is.

Most activations compute their derivative together with their value, and keep it: the backward pass then has only to
multiply. relu and tanh find theirs from their value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from xpnn.dispatch import OPS
from xpnn_backends import numpy_gelu, philox
from xpnn_backends.kernels import native_linear
from xpnn_backends.recording import Kernel, RecordedArray

_CHUNK = 1 << 15
"""Numbers whose value and slope are computed together."""
_SMALL = 1 << 11
"""Numbers for which one call is worth more than a fast one."""


def _value_and_slope(name: str) -> Callable[..., None]:
    """function(x, setting, y, slope) by the generic body of an op: its derivative is its vjp of ones."""

    def run(x: Any, setting: Any, y: Any, slope: Any) -> None:
        given = (setting,) if name in SETTINGS else ()
        numbers, values, slopes = x.reshape(-1), y.reshape(-1), slope.reshape(-1)
        # Some numbers at a time, which stay in the cache while a dozen functions go over them.
        for start in range(0, numbers.size, _CHUNK):
            here = slice(start, start + _CHUNK)
            value, vjp = OPS[name].generic(numbers[here], *given)
            (found,) = vjp(np.ones_like(value))
            # Only now, because y may be x.
            values[here] = value
            slopes[here] = found

    return run


SETTINGS = {"leaky_relu": 0.01, "elu": 1.0, "celu": 1.0, "smelu": 1.0, "softplus": 1.0}
"""Activations with a number as their option -> its default."""

_PLAIN = (
    "selu",
    "softsign",
    "sigmoid",
    "log_sigmoid",
    "hard_sigmoid",
    "gelu",
    "gelu_tanh",
    "silu",
    "mish",
    "hard_swish",
    "normal_cdf",
)

WITH_SLOPE = {name: Kernel(name, _value_and_slope(name), name, (2, 3)) for name in (*SETTINGS, *_PLAIN)}
"""activation -> kernel(x, setting, y, slope): y = f(x) and slope = f'(x); `setting` is 0 where f has none."""

WITH_SLOPE["gelu"] = Kernel("gelu", numpy_gelu.gelu_and_slope, "gelu", (2, 3))


@cache
def _zeros(dtype: Any) -> Any:
    return np.zeros(_CHUNK, dtype)


def relu(x: Any, y: Any) -> None:
    """y = max(x, 0), for arrays in C order; y may be x.

    With an array of zeros: NumPy's `maximum` takes four times as long with a number.
    """
    if x.size < _SMALL:
        np.maximum(x, 0.0, out=y)
        return
    numbers, values, zeros = x.reshape(-1), y.reshape(-1), _zeros(x.dtype)
    for start in range(0, numbers.size, _CHUNK):
        given = numbers[start : start + _CHUNK]
        np.maximum(given, zeros[: given.size], out=values[start : start + _CHUNK])


def _tanh(x: Any, y: Any) -> None:
    np.tanh(x, out=y)


BY_VALUE = {"relu": Kernel("relu", relu, "relu"), "tanh": Kernel("tanh", _tanh, "tanh")}
"""activation -> kernel(x, y): y = f(x), from which the derivative is found."""


def _linear(x: Any, weight: Any, bias: Any, y: Any) -> None:
    np.matmul(x, weight, out=y)
    if bias.size:
        np.add(y, bias, out=y)


def _linear_by_value(name: str) -> Kernel:
    def run(x: Any, weight: Any, bias: Any, y: Any) -> None:
        _linear(x, weight, bias, y)
        BY_VALUE[name].function(y, y)

    return Kernel(f"linear_{name}", run, native_linear(f"linear_{name}"))


def _linear_with_slope(name: str) -> Kernel:
    def run(x: Any, weight: Any, bias: Any, y: Any, slope: Any) -> None:
        _linear(x, weight, bias, y)
        WITH_SLOPE[name].function(y, 0.0, y, slope)

    return Kernel(f"linear_{name}", run, native_linear(f"linear_{name}"), (3, 4))


LINEAR: dict[str | None, Kernel] = {
    None: Kernel("linear", _linear, native_linear("linear")),
    "relu": _linear_by_value("relu"),
    "tanh": _linear_by_value("tanh"),
}
"""activation -> kernel(x, weight, bias, y): y = f(x W + b); an empty bias stands for none."""

LINEAR_WITH_SLOPE: dict[str | None, Kernel] = {
    name: _linear_with_slope(name) for name in ("gelu", "gelu_tanh", "sigmoid", "silu")
}
"""activation -> kernel(x, weight, bias, y, slope): y = f(x W + b), slope = f'(x W + b)."""


def _bias_gradient(dy: Any, dbias: Any) -> None:
    np.add.reduce(dy, 0, out=dbias)


def _and_sum(derivative: Callable[[Any, Any, Any], None]) -> Callable[..., None]:
    """derivative(kept, dy, dz) writes dz; then the sum of its rows."""

    def run(kept: Any, dy: Any, dz: Any, dbias: Any) -> None:
        derivative(kept, dy, dz)
        if dbias.size:
            np.add.reduce(dz, 0, out=dbias)

    return run


BITS = {4: np.int32, 8: np.int64}
"""Bytes of a float -> the integers with as many."""


def relu_gradient(y: Any, dy: Any, dz: Any, bound: Any = 0.0) -> None:
    """dz = dy where y > bound, else 0; dz may be y.

    The bits of dy are kept or cleared: NumPy's `where` takes ten times as long, and a product would make 0 x NaN of a
    NaN or an infinity that is switched off.
    """
    bits = BITS[dz.itemsize]
    passes = np.greater(y, bound).view(np.int8)
    np.negative(passes, out=passes)  # -1 has all bits set, in any length
    np.bitwise_and(dy.view(bits), passes.astype(bits), out=dz.view(bits))


def _tanh_gradient(y: Any, dy: Any, dz: Any) -> None:
    np.multiply(y, y, out=dz)
    np.subtract(1.0, dz, out=dz)
    np.multiply(dz, dy, out=dz)


def _slope_gradient(slope: Any, dy: Any, dz: Any) -> None:
    np.multiply(slope, dy, out=dz)


def _stepped_gradient(slope: Any, dy: Any, dz: Any) -> None:
    np.copyto(dz, 0.0)
    np.multiply(slope, dy, out=dz, where=slope != 0)


BIAS_GRADIENT = Kernel("bias_gradient", _bias_gradient, "bias_gradient")
"""bias_gradient(dy, dbias): the sum over the rows."""

SLOPE_GRADIENT = Kernel("slope_gradient", _and_sum(_slope_gradient), "slope_gradient", (2, 3))
"""slope_gradient(slope, dy, dz, dbias): dz = slope dy, and its sum over the rows; an empty dbias wants none."""

STEPPED_GRADIENT = Kernel("stepped_gradient", _and_sum(_stepped_gradient), "stepped_gradient", (2, 3))
"""As SLOPE_GRADIENT, but 0 where the slope is 0, even for an infinite dy."""

VALUE_GRADIENT: dict[str | None, Kernel] = {
    "relu": Kernel("relu_gradient", _and_sum(relu_gradient), "relu_gradient", (2, 3)),
    "tanh": Kernel("tanh_gradient", _and_sum(_tanh_gradient), "tanh_gradient", (2, 3)),
}
"""activation -> kernel(y, dy, dz, dbias): as SLOPE_GRADIENT, from the activation's value y."""

LINEAR_GRADIENT: dict[str | None, Kernel | None] = {
    None: None,
    **VALUE_GRADIENT,
    **dict.fromkeys(LINEAR_WITH_SLOPE, SLOPE_GRADIENT),
}
"""activation of a linear map -> the kernel that takes a gradient through it."""


def _prelu(x: Any, slope: Any, y: Any) -> None:
    np.multiply(slope, x, out=y)
    np.copyto(y, x, where=x > 0)


def _prelu_gradient(x: Any, slope: Any, dy: Any, dx: Any, sums: Any) -> None:
    np.multiply(slope, dy, out=dx)
    np.copyto(dx, dy, where=x > 0)
    np.add.reduce(np.minimum(x, 0.0) * dy, 0, out=sums)


PRELU = Kernel("prelu", _prelu, "prelu")
"""prelu(x, slope, y) for a matrix x, and one slope or one for each column."""

PRELU_GRADIENT = Kernel("prelu_gradient", _prelu_gradient, "prelu_gradient", (3, 4))
"""prelu_gradient(x, slope, dy, dx, sums): dx, and the sums of min(x, 0) dy over the rows."""


def _softmax(x: Any, columns: int, y: Any) -> None:
    np.copyto(y, OPS["softmax"].generic(x)[0])


def _softmax_gradient(y: Any, dy: Any, columns: int, dx: Any) -> None:
    np.multiply(dy, y, out=dx)
    np.subtract(dy, np.add.reduce(dx, -1, keepdims=True), out=dx)
    np.multiply(dx, y, out=dx)


def _log_softmax(x: Any, columns: int, y: Any, p: Any) -> None:
    np.copyto(y, OPS["log_softmax"].generic(x)[0])
    np.exp(y, out=p)


def _log_softmax_gradient(p: Any, dy: Any, columns: int, dx: Any) -> None:
    np.multiply(p, np.add.reduce(dy, -1, keepdims=True), out=dx)
    np.subtract(dy, dx, out=dx)


SOFTMAX = Kernel("softmax", _softmax, "softmax")
"""softmax(x, columns, y) along the last axis, which is `columns` long."""

SOFTMAX_GRADIENT = Kernel("softmax_gradient", _softmax_gradient, "softmax_gradient")
"""softmax_gradient(y, dy, columns, dx)."""

LOG_SOFTMAX = Kernel("log_softmax", _log_softmax, "log_softmax", (2, 3))
"""log_softmax(x, columns, y, p): y, and p = exp(y)."""

LOG_SOFTMAX_GRADIENT = Kernel("log_softmax_gradient", _log_softmax_gradient, "log_softmax_gradient")
"""log_softmax_gradient(p, dy, columns, dx)."""


def _signed(word: int) -> int:
    """The int64 with the bits of a uint64."""
    return word - 2**64 if word >= 2**63 else word


def _native_mask(seed: int, stream: int, step: Any, threshold: int, mask: RecordedArray) -> Any:
    return "keep_mask", (_signed(seed), _signed(stream), step, threshold, mask)


def _keep_mask(seed: int, stream: int, step: int, threshold: int, mask: Any) -> None:
    np.copyto(mask, philox.keep_mask(seed, stream, step, mask.shape, threshold))


KEEP_MASK = Kernel("keep_mask", _keep_mask, _native_mask)
"""keep_mask(seed, stream, step, threshold, mask), as `philox.keep_mask`."""


def _native_dropout(seed: int, stream: int, *operands: Any) -> Any:
    return "dropout", (_signed(seed), _signed(stream), *operands)


def _dropout(seed: int, stream: int, step: int, threshold: int, scale: float, x: Any, mask: Any, y: Any) -> None:
    _keep_mask(seed, stream, step, threshold, mask)
    _masked(x, mask, scale, y)


def _masked(x: Any, mask: Any, scale: float, out: Any) -> None:
    """By bits, as in `relu_gradient`: with `where=mask`, it takes ten times as long."""
    bits = BITS[out.itemsize]
    keeps = np.negative(mask.view(np.int8)).astype(bits)
    np.bitwise_and(x.view(bits), keeps, out=out.view(bits))
    np.multiply(out, scale, out=out)


DROPOUT = Kernel("dropout", _dropout, _native_dropout, (6, 7))
"""dropout(seed, stream, step, threshold, scale, x, mask, y): the mask, and y = scale x where it is True, else 0."""

MASKED = Kernel("masked", _masked, "masked")
"""masked(x, mask, scale, out): scale x where the mask is True, else 0."""
