"""The native forms of NumPy's functions, as a recorded step calls them one by one.

A `Kernel` of such a call holds NumPy's function, and one of the functions here: from the operands of the call it finds
(name of a native kernel, its operands), or None, whereupon NumPy's function is called in each step. Native kernels
compute in one dtype, that of NumPy's promotion, and convert their operands to it (`native.strided`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpnn_backends import recording

Translation = tuple[str, tuple[Any, ...]] | None
"""(name of a native kernel, its operands), or None."""

_NAMES = {"float32": "f4", "float64": "f8", "int64": "i8", "bool": "b1"}
_AXES = 3
_POWERS = {2: "square", 1: "positive", 0.5: "sqrt", -1: "reciprocal"}
"""Exponents for which NumPy calls another function too."""


def ufunc(function: Any) -> Callable[..., Translation]:
    """The native form of function(*operands, out), for a ufunc of NumPy's."""

    def native(*operands: Any) -> Translation:
        return _translate_ufunc(function, operands)

    return native


def _translate_ufunc(function: Any, operands: tuple[Any, ...]) -> Translation:
    if function is np.matmul:
        return _product(*operands)
    *given, out = operands
    resolved = function.resolve_dtypes((*map(_type_of, given), None))
    loop, name = resolved[0], function.__name__
    if any(dtype != loop for dtype in resolved[:-1]) or resolved[-1] != out.dtype:
        return None
    if loop == np.bool_:
        name = {"add": "logical_or", "multiply": "logical_and", "invert": "logical_not"}.get(name, name)
    if name == "power" and type(given[1]) in (int, float) and given[1] in _POWERS:
        name, given = _POWERS[given[1]], given[:1]
    return elementwise(name, loop, given, out)


def _type_of(operand: Any) -> Any:
    """What NumPy's promotion asks of an operand: its dtype, or the type of a Python number."""
    if isinstance(operand, recording.RecordedNumber):
        operand = operand.ghost
    return type(operand) if type(operand) in (int, float) else np.dtype(getattr(operand, "dtype", bool))


def elementwise(name: str, loop: Any, given: Sequence[Any], out: Any) -> Translation:
    """The kernel of a function, computed in the dtype `loop`."""
    from xpnn_backends.native import elementwise as kernels

    short = _NAMES.get(loop.name, "")
    if short not in kernels.DTYPES.get(name, ()):
        return None
    found = common_axes(out.shape, [*given, out])
    if found is None:
        return None
    shape, arrays = found
    return kernels.declared(name, short), (*shape, *arrays)


def copy(x: Any, out: Any) -> Translation:
    """copy(x, out): x, converted to the dtype of `out`."""
    return elementwise("copy", out.dtype, [x], out)


def where(condition: Any, x: Any, y: Any, out: Any) -> Translation:
    """where(condition, x, y, out)."""
    if getattr(condition, "dtype", None) != np.bool_:
        return None
    return elementwise("where", out.dtype, [condition, x, y], out)


def common_axes(shape: tuple[int, ...], operands: Sequence[Any]) -> Any:
    """(lengths, operands) with three axes each: operands broadcast to `shape`, axes put together where all allow it.

    None if there are more. Numbers stay as they are.
    """
    arrays = [_recorded(operand) for operand in operands]
    if 0 in shape:
        return (1, 1, 0), [strided(x, (1, 1, 0), (0, 0, 0)) if _is_array(x) else x for x in arrays]
    strides = [np.broadcast_to(x.ghost, shape).strides if _is_array(x) else (0,) * len(shape) for x in arrays]
    lengths, steps = merged(shape, strides)
    missing = _AXES - len(lengths)
    if missing < 0:
        return None
    full = (1,) * missing + tuple(lengths)
    return full, [
        strided(x, full, (0,) * missing + tuple(step)) if _is_array(x) else x
        for x, step in zip(arrays, steps, strict=True)
    ]


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """(lengths, strides of each array) without axes of length 1, and neighbours put together where all allow it."""
    lengths: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        if lengths and all(mine[-1] == each[axis] * length for mine, each in zip(steps, strides, strict=True)):
            lengths[-1] *= length
            for mine, each in zip(steps, strides, strict=True):
                mine[-1] = each[axis]
        else:
            lengths.append(length)
            for mine, each in zip(steps, strides, strict=True):
                mine.append(each[axis])
    return lengths, steps


def _is_array(operand: Any) -> bool:
    return isinstance(operand, recording.RecordedArray)


def _flat(out: Any) -> Any:
    """A result in C order, as one axis after two of length 1."""
    return strided(out, (1, 1, out.size), (0, 0, out.ghost.itemsize))


def call(name: str, options: dict[str, Any]) -> Callable[..., Translation] | None:
    """The native form of NumPy's function of that name with these options, which is no ufunc; None if there is none.

    It takes the arguments of the function and the array for the result.
    """
    if name in _REDUCTIONS and options.keys() <= {"axis", "keepdims", "dtype"}:
        return lambda *operands: _reduction(name, options.get("axis"), *operands)
    if name == "take" and options == {"axis": 0}:
        return take
    if name == "take_along_axis" and options.keys() <= {"axis"}:
        return lambda *operands: _take_along_axis(options.get("axis", -1), *operands)
    if name == "round" and not options:
        return lambda *operands: elementwise("rint", operands[0].dtype, operands[:1], operands[-1])
    return None


_REDUCTIONS = ("sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin")


def _reduction(name: str, axis: Any, *operands: Any) -> Translation:
    """x, out: out = the reduction of x over some axes, with or without these axes of length 1."""
    if len(operands) != 2 or not _is_array(operands[0]):
        return None
    x, out = operands
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = [each % x.ndim for each in axes]
    gone, kept = (
        merged([x.shape[each] for each in some], [[x.ghost.strides[each] for each in some]])
        for some in (sorted(axes), [each for each in range(x.ndim) if each not in axes])
    )
    if name not in ("argmax", "argmin") and len(gone[0]) > 1:
        # In the order in which they lie in memory they may be one axis.
        order = sorted(axes, key=lambda each: -abs(x.ghost.strides[each]))
        gone = merged([x.shape[each] for each in order], [[x.ghost.strides[each] for each in order]])
    return _reduce(name, x, out, (kept[0], kept[1][0]), (gone[0], gone[1][0]))


def _reduce(name: str, x: Any, out: Any, kept: Any, gone: Any) -> Translation:
    """The kernel for axes, each as (lengths, strides), that stay and that are gone."""
    from xpnn_backends.native import reductions

    if 0 in x.shape:
        kept = ([out.size], [0])
        gone = ([0 if out.size else 1], [0])
        if out.size and name in ("max", "min", "argmax", "argmin"):
            return None
    places = name in ("argmax", "argmin")
    loop = (
        x.dtype if places else np.dtype(np.float64) if name in ("sum", "mean") and out.dtype.kind == "f" else out.dtype
    )
    source, loop_name, result = (_NAMES.get(dtype.name) for dtype in (x.dtype, loop, out.dtype))
    if source is None or loop_name is None or result is None:
        return None
    numbers: tuple[int, ...] = ()
    if name in ("sum", "mean"):
        numbers = (x.size // max(out.size, 1) if name == "mean" else 1,)
        if loop.kind != "f":
            name, numbers = "integer_sum", ()
        elif name == "mean" and out.dtype.kind != "f":
            return None
        else:
            name = "sum"
    (lengths, strides), (lost, steps) = kept, gone
    by_lines = len(lengths) and len(lost) == 1 and abs(strides[-1]) < abs(steps[0]) and not places
    if by_lines and len(lengths) <= 2:
        # Whole lines that lie side by side are put together.
        lengths, strides = [1] * (2 - len(lengths)) + lengths, [0] * (2 - len(strides)) + strides
        shape = (lengths[0], lost[0], lengths[1])
        view = strided(x, shape, (strides[0], steps[0], strides[1]))
        result_view = strided(out, (1, shape[0], shape[2]), (0, shape[2] * out.ghost.itemsize, out.ghost.itemsize))
        sums: tuple[Any, ...] = (0.0,) if name == "sum" else ()
        return reductions.declared(f"{name}_columns", loop_name, result), (*shape, *numbers, view, *sums, result_view)
    both = len(lost) == 2
    if len(lost) > 2 or len(lengths) + len(lost) > _AXES or (both and places):
        return None
    if not lost:
        lost, steps = [1], [0]
    missing = _AXES - len(lengths) - len(lost)
    shape = (*lengths, *[1] * missing, *lost)
    view = strided(x, shape, (*strides, *[0] * missing, *steps))
    flags = () if places else (int(both),)
    return reductions.declared(name, loop_name, result), (*shape, *flags, *numbers, view, _flat(out))


def take(table: Any, rows: Any, out: Any) -> Translation:
    """take(table, rows, out): rows of a table by number, along its first axis."""
    from xpnn_backends.native import reductions

    table, rows = _recorded(table), _recorded(rows)
    name = _NAMES.get(table.dtype.name)
    columns = int(np.prod(table.shape[1:]))
    if name is None or rows.dtype != np.int64 or rows.ndim != 1 or not table.ghost.flags.c_contiguous:
        return None
    if not out.size:
        rows, count = strided(rows, (1, 1, 0), (0, 0, 0)), 0
    else:
        count = rows.size
        rows = strided(rows, (1, 1, count), (0, 0, rows.ghost.strides[0]))
    size = table.ghost.itemsize
    length = table.shape[0]
    table = strided(table, (1, length, columns), (0, columns * size, size))
    result = strided(out, (1, count, columns), (0, columns * size, size))
    return reductions.declared("take", name, name), (length, columns, table, rows, count, result)


def _take_along_axis(axis: int, *operands: Any) -> Translation:
    from xpnn_backends.native import reductions

    x, indices, out = map(_recorded, operands)
    axis %= x.ndim
    name = _NAMES.get(x.dtype.name)
    if name is None or indices.dtype != np.int64 or not out.size or not x.size:
        return None
    if x.shape[:axis] != indices.shape[:axis] or x.shape[axis + 1 :] != indices.shape[axis + 1 :]:
        return None
    if not (x.ghost.flags.c_contiguous and indices.ghost.flags.c_contiguous):
        return None
    rows, columns = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
    length, count = x.shape[axis], indices.shape[axis]

    def with_axes(array: Any, middle: int) -> Any:
        size = array.ghost.itemsize
        return strided(array, (rows, middle, columns), (middle * columns * size, columns * size, size))

    views = with_axes(x, length), with_axes(indices, count), with_axes(out, count)
    return reductions.declared("take_along_axis", name, name), (rows, length, columns, *views[:2], count, views[2])


def strided(x: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of a recorded array, with the same first element."""
    return x.view(np.lib.stride_tricks.as_strided(x.ghost, shape, strides))


def _recorded(operand: Any) -> Any:
    """An array of NumPy's becomes a recorded constant."""
    return recording.constant(operand) if isinstance(operand, (np.ndarray, np.generic)) else operand


def _scatter_add(values: Any, rows: Any, out: Any) -> None:
    out[...] = 0
    # Number by number: NumPy's function is several times as fast on one axis as on rows.
    features = out.shape[1]
    places = rows.reshape(-1, 1) * features + np.arange(features)
    np.add.at(out.reshape(-1), places.reshape(-1), values.reshape(-1))


def _native_scatter_add(values: Any, rows: Any, out: Any) -> Translation:
    from xpnn_backends.native import reductions

    values, rows = _recorded(values), _recorded(rows)
    if out.dtype.name not in ("float32", "float64") or values.dtype != out.dtype or rows.dtype != np.int64:
        return None
    if 0 in values.shape or rows.ndim != 1 or values.ndim != 2:
        return None
    length, columns = out.shape
    size, count = out.ghost.itemsize, rows.size
    given = (
        strided(values, (1, count, columns), (0, *values.ghost.strides)),
        strided(rows, (1, 1, count), (0, 0, *rows.ghost.strides)),
    )
    result = strided(out, (1, length, columns), (0, columns * size, size))
    name = _NAMES[out.dtype.name]
    return reductions.declared("scatter_add", name, name), (length, columns, *given, count, result)


SCATTER_ADD = recording.Kernel("scatter_add", _scatter_add, _native_scatter_add)
"""scatter_add(values, rows, out): out[k] = the sum of values[i] over all i with rows[i] = k, in the order of i."""


def _product(a: Any, b: Any, out: Any) -> Translation:
    from xpnn_backends import kernels

    if not a.dtype == b.dtype == out.dtype or out.ndim != 2:
        return None
    found: Translation = kernels.PRODUCT.native(_recorded(a), _recorded(b), out)
    return found
