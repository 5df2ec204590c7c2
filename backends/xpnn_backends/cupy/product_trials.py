"""Trials of cublasLt's epilogues on the device: none with an activation is used before it was seen to be right there.

Each trial is made once for each device, dtype and precision, and remembered with the device's plans. It reads its
results: while a graph is captured, which cannot be, the answer is no, and is not remembered.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import OPS
from xpnn_backends.cupy.product_plans import ACTIVATIONS, DeviceProducts, empty_auxiliary

_EPS = {"d": 2.0**-52, "f": 2.0**-23, "e": 2.0**-10, "E": 2.0**-7}
_EPS_OF_TF32 = 2.0**-10


def rectifies_rightly(device: DeviceProducts, char: str, tf32: bool) -> bool:
    """Whether the epilogue RELU_BIAS keeps NaN, in this dtype and precision."""
    return _once(device, ("RELU_BIAS", char, tf32), lambda: _keeps_nan(device, _dtype(char), tf32))


def activates_rightly(device: DeviceProducts, activation: str, char: str, tf32: bool) -> bool:
    """Whether the two epilogues of an activation keep NaN, give right numbers and go together."""
    tf32 = tf32 and char == "f"  # it is a precision of float32 alone
    return _once(device, (activation, char, tf32), lambda: _is_right(device, activation, char, tf32))


def _once(device: DeviceProducts, key: tuple[str, str, bool], trial: Callable[[], bool]) -> bool:
    known = device.trials.get(key)
    if known is None:
        if cupy.cuda.get_current_stream().is_capturing():
            return False
        known = device.trials[key] = trial()
    return known


def _keeps_nan(device: DeviceProducts, dtype: Any, tf32: bool) -> bool:
    y = cupy.zeros((64, 64), dtype)
    x = cupy.full((64, 64), float("nan"), dtype)
    bias = cupy.zeros(64, dtype)
    done = device.run(x, cupy.eye(64, dtype=dtype), y, "RELU_BIAS", bias.data.ptr, tf32=tf32)
    return done and bool(cupy.isnan(y.astype(cupy.float32)).all())


def _is_right(device: DeviceProducts, activation: str, char: str, tf32: bool) -> bool:
    """Both epilogues against the op itself in float64, for 64 x 64 numbers times the identity."""
    dtype, epilogues = _dtype(char), ACTIVATIONS[activation]
    # Numbers that each dtype, and TF32, holds exactly; all rows differ. Most lie where the slope of GELU changes, some
    # so far away that x^3 must not spoil what is 0 or 1 there, and one column of results is NaN.
    x = (np.arange(64)[:, None] * np.arange(64) // 7 % 61 - 30) / 8.0
    x[::16, 3] = 8192.0
    x[1::16, 3] = -8192.0
    bias = np.arange(64) % 3 / 4.0
    bias[9] = np.nan
    z = x + bias
    value, vjp = OPS[activation].generic(z)

    one = cupy.eye(64, dtype=dtype)
    y, dz, sums = (cupy.empty(shape, dtype) for shape in ((64, 64), (64, 64), (64,)))
    kept = empty_auxiliary(activation, y)
    place = kept.data.ptr
    x_here, bias_here = cupy.asarray(x.astype(dtype)), cupy.asarray(bias.astype(dtype))
    if not device.run(x_here, one, y, epilogues.forward, bias_here.data.ptr, auxiliary=place, tf32=tf32):
        return False
    eps = _EPS_OF_TF32 if tf32 else _EPS[char]
    right = _is_close(y, value, 2 * eps * abs(z))
    if activation == "gelu_tanh":
        right = right and _is_close(kept, z, eps * abs(z))

    # The identity spreads a NaN of dy over its row, and so over all sums: they are looked at without it.
    for with_nan in (False, True):
        dy = np.full((64, 64), 2.0)
        dy[5] = np.nan if with_nan else 1.0
        (wanted,) = vjp(dy)
        dy_here = cupy.asarray(dy.astype(dtype))
        if not device.run(dy_here, one.T, dz, epilogues.backward, sums.data.ptr, auxiliary=place, tf32=tf32):
            return False
        # Where GELU bends, one rounding of tanh becomes three of the slope.
        right = right and _is_close(dz, wanted, 8 * eps * abs(dy))
        if not with_nan:
            right = right and _is_close(sums, wanted.sum(axis=0), 8 * eps * abs(dy).sum(axis=0))
    return right


def _is_close(got: Any, wanted: Any, tolerance: Any) -> bool:
    """Whether NaN is where it should be, and all else as close as it should be."""
    numbers = got.get().astype(np.float64)
    far = abs(numbers - wanted) > tolerance
    return bool(np.array_equal(np.isnan(numbers), np.isnan(wanted)) and not far.any())


def _dtype(char: str) -> Any:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if char == "E" else char)
