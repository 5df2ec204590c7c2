"""Functions of one, two or three numbers, element by element, with NumPy's broadcasting and conversions.

A kernel is made of a function of numbers when it is first needed, for the dtype in which it computes. Operands may
have any dtype and strides: see `strided`. All have three axes, of the lengths `rows` x `lines` and `columns`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from xpnn_backends.native import elementary, registry
from xpnn_backends.native.intrinsics import BLOCK
from xpnn_backends.native.strided import (
    as_type_of,
    block,
    gather,
    is_direct,
    item_size,
    offset,
    pointer,
    rows_and_columns,
)

FUNCTIONS: dict[str, tuple[Callable[..., None], str]] = {}
"""Name -> (kernel, its operands); T stands for the dtype in which it computes."""


def declared(name: str, dtype: str) -> str:
    """The name of the kernel that computes the function `name` in a dtype ("f4", "f8", "i8", "b1")."""
    full = f"{name}_{dtype}"
    if full not in registry.KERNELS:
        function, specification = FUNCTIONS[name]
        declare = register_jitable(error_model="numpy")
        registry.KERNELS[full] = registry.Declared(declare(function), specification.replace("T", dtype), True)
    return full


def _add(name: str, function: Callable[..., None], specification: str) -> None:
    # Numba's cache finds a function again by its name in its module.
    function.__name__ = function.__qualname__ = f"each_{name}"
    globals()[function.__name__] = function
    FUNCTIONS[name] = (function, specification)


def _unary(name: str, function: Callable[[Any], Any], result: str = "T") -> None:
    """out = f(x)."""
    compute = register_jitable(error_model="numpy")(function)

    def run(part, parts, rows, lines, columns, x, out):
        first_row, last_row, first, last = rows_and_columns(rows * lines, columns, part, parts)
        length = last - first if is_direct(x) else BLOCK
        for row in range(first_row, last_row):
            i = row // lines
            j = row - i * lines
            start = first
            while start < last:
                count = min(length, last - start)
                a = block(x, i, j, start, count, start > first)
                target = pointer(offset(out, i, j, start), out[7])
                for k in range(count):
                    target[k] = compute(a[k])
                start += count

    _add(name, run, f"int int int T:any {result}:any")


def _binary(name: str, function: Callable[[Any, Any], Any], result: str = "T") -> None:
    """out = f(x, y)."""
    compute = register_jitable(error_model="numpy")(function)

    def run(part, parts, rows, lines, columns, x, y, out):
        first_row, last_row, first, last = rows_and_columns(rows * lines, columns, part, parts)
        length = last - first if is_direct(x) and is_direct(y) else BLOCK
        for row in range(first_row, last_row):
            i = row // lines
            j = row - i * lines
            start = first
            while start < last:
                count = min(length, last - start)
                a = block(x, i, j, start, count, start > first)
                b = block(y, i, j, start, count, start > first)
                target = pointer(offset(out, i, j, start), out[7])
                for k in range(count):
                    target[k] = compute(a[k], b[k])
                start += count

    _add(name, run, f"int int int T:any T:any {result}:any")


def _where(part, parts, rows, lines, columns, condition, x, y, out):
    """out = x where the condition holds, else y."""
    first_row, last_row, first, last = rows_and_columns(rows * lines, columns, part, parts)
    length = last - first if is_direct(condition) and is_direct(x) and is_direct(y) else BLOCK
    for row in range(first_row, last_row):
        i = row // lines
        j = row - i * lines
        start = first
        while start < last:
            count = min(length, last - start)
            chosen = block(condition, i, j, start, count, start > first)
            a = block(x, i, j, start, count, start > first)
            b = block(y, i, j, start, count, start > first)
            target = pointer(offset(out, i, j, start), out[7])
            for k in range(count):
                target[k] = a[k] if chosen[k] else b[k]
            start += count


_add("where", _where, "int int int b1:any T:any T:any T:any")


def _copy(part, parts, rows, lines, columns, x, out):
    """out = x, converted; here `out` may have any strides too."""
    first_row, last_row, first, last = rows_and_columns(rows * lines, columns, part, parts)
    size = item_size(out[7])
    step = out[5] // size
    for row in range(first_row, last_row):
        i = row // lines
        j = row - i * lines
        if step == 1 or last - first == 1:
            target = pointer(offset(out, i, j, first), out[7])
            if is_direct(x):
                source = pointer(offset(x, i, j, first), out[7])
                for k in range(last - first):
                    target[k] = source[k]
            else:
                gather(x, offset(x, i, j, first), last - first, target)
        else:
            for start in range(first, last, BLOCK):
                count = min(BLOCK, last - start)
                source = block(x, i, j, start, count, start > first)
                target = pointer(offset(out, i, j, start), out[7])
                for k in range(count):
                    target[k * step] = source[k]


_add("copy", _copy, "int int int T:any T:any")


# Each is NumPy's ufunc of that name. A Python float in them would make float32 arithmetic float64.


def maximum(x, y):
    """The larger number, or a NaN if there is one."""
    return x if (x >= y) | (x != x) else y


def minimum(x, y):
    """The smaller number, or a NaN if there is one."""
    return x if (x <= y) | (x != x) else y


def _sign(x):
    one = as_type_of(1, x)
    zero = as_type_of(0, x)
    found = one if x > zero else (-one if x < zero else zero)
    return found if x == x else x


def _isinf(x):
    return (x == x) & (x - x != x - x)


_FLOATS = ("f4", "f8")
_NUMBERS = ("f4", "f8", "i8")
_ALL = ("f4", "f8", "i8", "b1")

_FUNCTIONS: tuple[tuple[tuple[str, ...], str, dict[str, Callable[..., Any]]], ...] = (
    (
        _NUMBERS,
        "T",
        {
            "add": lambda x, y: x + y,
            "subtract": lambda x, y: x - y,
            "multiply": lambda x, y: x * y,
            "negative": lambda x: -x,
            "absolute": lambda x: abs(x),
            "square": lambda x: x * x,
            "sign": _sign,
        },
    ),
    (
        _FLOATS,
        "T",
        {
            "divide": lambda x, y: x / y,
            "power": lambda x, y: x**y,
            "reciprocal": lambda x: as_type_of(1, x) / x,
            "sqrt": lambda x: np.sqrt(x),
            "floor": lambda x: np.floor(x),
            "ceil": lambda x: np.ceil(x),
            "trunc": lambda x: np.trunc(x),
            "rint": lambda x: np.rint(x),
            **{
                name: getattr(elementary, name)
                for name in ("exp", "log", "expm1", "log1p", "tanh")
                if hasattr(elementary, name)
            },
            "sin": lambda x: np.sin(x),
            "cos": lambda x: np.cos(x),
            "tan": lambda x: np.tan(x),
            "arctan": lambda x: np.arctan(x),
            "sinh": lambda x: np.sinh(x),
            "cosh": lambda x: np.cosh(x),
            "log2": lambda x: np.log2(x),
        },
    ),
    (_ALL, "T", {"maximum": maximum, "minimum": minimum, "positive": lambda x: x}),
    (
        ("i8", "b1"),
        "T",
        {
            "bitwise_and": lambda x, y: x & y,
            "bitwise_or": lambda x, y: x | y,
            "bitwise_xor": lambda x, y: x ^ y,
        },
    ),
    (
        _ALL,
        "b1",
        {
            "equal": lambda x, y: x == y,
            "not_equal": lambda x, y: x != y,
            "less": lambda x, y: x < y,
            "less_equal": lambda x, y: x <= y,
            "greater": lambda x, y: x > y,
            "greater_equal": lambda x, y: x >= y,
            "logical_and": lambda x, y: (x != 0) & (y != 0),
            "logical_or": lambda x, y: (x != 0) | (y != 0),
            "logical_xor": lambda x, y: (x != 0) != (y != 0),
            "logical_not": lambda x: x == 0,
        },
    ),
    (
        _FLOATS,
        "b1",
        {"isfinite": lambda x: x - x == x - x, "isnan": lambda x: x != x, "isinf": _isinf},
    ),
)
"""(dtypes to compute in, dtype of the result, functions by name)."""

DTYPES: dict[str, tuple[str, ...]] = {"where": _ALL, "copy": _ALL}
"""Name -> the dtypes that it computes in."""

for _dtypes, _result, _named in _FUNCTIONS:
    for _name, _function in _named.items():
        DTYPES[_name] = _dtypes
        (_unary if _function.__code__.co_argcount == 1 else _binary)(_name, _function, _result)
