"""Sums, extremes and their places, rows by number: what makes fewer numbers of many, or picks some.

As in `elementwise`, a kernel is made when it is first needed, for the dtype in which it computes, and operands may have
any dtype and strides. Floats are added up in float64, with eight accumulators for each BLOCK of numbers that lie side
by side and a compensated sum of these (Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher
Summen", 1974), so that the error is no larger than that of a pairwise sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from xpnn_backends.native import registry
from xpnn_backends.native.elementwise import maximum, minimum
from xpnn_backends.native.intrinsics import BLOCK
from xpnn_backends.native.registry import share
from xpnn_backends.native.strided import as_type_of, block, convert, gather, is_direct, missing, offset, pointer

FUNCTIONS: dict[str, tuple[Callable[..., None], str]] = {}
"""Name -> (kernel, its operands); T stands for the dtype in which it computes, R for that of the result."""


def declared(name: str, dtype: str, result: str) -> str:
    """The name of the kernel that computes the function `name` in a dtype ("f4", "f8", "i8", "b1")."""
    full = f"{name}_{dtype}_{result}"
    if full not in registry.KERNELS:
        function, specification = FUNCTIONS[name]
        specification = specification.replace("T", dtype).replace("R", result)
        # A table says nothing of the work: rows are taken from it, and the result is what is written.
        work = len(specification.split()) - 1 if name.startswith("take") else None
        compiled = register_jitable(error_model="numpy")(function)
        registry.KERNELS[full] = registry.Declared(compiled, specification, True, work)
    return full


def _add(name: str, function: Callable[..., None], specification: str) -> None:
    # Numba's cache finds a function again by its name in its module.
    function.__name__ = function.__qualname__ = f"reduce_{name}"
    globals()[function.__name__] = function
    FUNCTIONS[name] = (function, specification)


@register_jitable
def _groups(rows, lines, both, part, parts):
    """(first group of lines, last + 1, lines of a group) that part number `part` of `parts` works on."""
    first, last = share(rows if both else rows * lines, part, parts)
    return first, last, lines if both else 1


def _fold(combine: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """fold(p, count, found): `combine` of `found` and all p[0], ..., p[count - 1], in eight interleaved series."""

    @register_jitable
    def fold(p, count, found):
        if count >= 16:
            a, b, c, d, e, f, g, h = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
            for i in range(8, count - 7, 8):
                a = combine(a, p[i])
                b = combine(b, p[i + 1])
                c = combine(c, p[i + 2])
                d = combine(d, p[i + 3])
                e = combine(e, p[i + 4])
                f = combine(f, p[i + 5])
                g = combine(g, p[i + 6])
                h = combine(h, p[i + 7])
            found = combine(
                found, combine(combine(combine(a, b), combine(c, d)), combine(combine(e, f), combine(g, h)))
            )
            for i in range(count // 8 * 8, count):
                found = combine(found, p[i])
        else:
            for i in range(count):
                found = combine(found, p[i])
        return found

    made: Callable[..., Any] = fold
    return made


@register_jitable
def _plus(x, y):
    return x + y


_fold_sum = _fold(_plus)


def _sum(part, parts, rows, lines, columns, both, count, x, out):
    """The sums over the last axis, or over the last two (`both`), divided by `count`; in float64."""
    first, last, group = _groups(rows, lines, both, part, parts)
    for index in range(first, last):
        total, rest = 0.0, 0.0
        for line in range(index * group, index * group + group):
            i = line // lines
            j = line - i * lines
            for start in range(0, columns, BLOCK):
                length = min(BLOCK, columns - start)
                term = _fold_sum(block(x, i, j, start, length, start > 0), length, 0.0)
                larger = total + term
                if abs(total) >= abs(term):
                    rest += (total - larger) + term
                else:
                    rest += (term - larger) + total
                total = larger
        # Where a sum is infinite, the rest is no number.
        if total - total == 0.0:
            total += rest
        target = pointer(offset(out, 0, 0, index), out[7])
        target[0] = convert(total / count, target)


_add("sum", _sum, "int int int int int T:any R:any")


def _sum_columns(part, parts, rows, lines, columns, count, x, sums, out):
    """The sums over the middle axis, line after line, divided by `count`; in float64."""
    first, last = share(columns, part, parts, BLOCK)
    total = sums[7]
    for i in range(rows):
        for start in range(first, last, BLOCK):
            length = min(BLOCK, last - start)
            for k in range(length):
                total[k] = 0.0
            for j in range(lines):
                p = block(x, i, j, start, length, False)
                for k in range(length):
                    total[k] += p[k]
            target = pointer(offset(out, 0, i, start), out[7])
            for k in range(length):
                target[k] = convert(total[k] / count, target)


_add("sum_columns", _sum_columns, "int int int int T:any T:any R:any")


def _reduction(name: str, combine: Callable[[Any, Any], Any], identity: int, eight: bool, begins: bool = False) -> None:
    """Declare `name` (over the last axis, or the last two) and `name`_columns (over the middle axis).

    `eight`: the order does not matter. `begins`: it begins with the first number, and not with the identity.
    """
    combine = register_jitable(combine)
    fold = _fold(combine)

    def run(part, parts, rows, lines, columns, both, x, out):
        first, last, group = _groups(rows, lines, both, part, parts)
        for index in range(first, last):
            target = pointer(offset(out, 0, 0, index), out[7])
            if begins:
                i = index * group // lines
                found = block(x, i, index * group - i * lines, 0, 1, False)[0]
            else:
                found = convert(identity, target)
            for line in range(index * group, index * group + group):
                i = line // lines
                j = line - i * lines
                for start in range(0, columns, BLOCK):
                    length = min(BLOCK, columns - start)
                    p = block(x, i, j, start, length, start > 0)
                    if eight:
                        found = fold(p, length, found)
                    else:
                        for k in range(length):
                            found = combine(found, p[k])
            target[0] = found

    def run_columns(part, parts, rows, lines, columns, x, out):
        first, last = share(columns, part, parts, BLOCK)
        for i in range(rows):
            for start in range(first, last, BLOCK):
                length = min(BLOCK, last - start)
                target = pointer(offset(out, 0, i, start), out[7])
                if begins:
                    p = block(x, i, 0, start, length, False)
                    for k in range(length):
                        target[k] = p[k]
                else:
                    for k in range(length):
                        target[k] = convert(identity, target)
                for j in range(lines):
                    p = block(x, i, j, start, length, False)
                    for k in range(length):
                        target[k] = combine(target[k], p[k])

    _add(name, run, "int int int int T:any T:any")
    _add(f"{name}_columns", run_columns, "int int int T:any T:any")


_reduction("max", maximum, 0, True, True)
_reduction("min", minimum, 0, True, True)
_reduction("prod", lambda x, y: x * y, 1, False)
_reduction("integer_sum", lambda x, y: x + y, 0, False)
_reduction("any", lambda x, y: x | y, 0, False)
_reduction("all", lambda x, y: x & y, 1, False)


def _place(name: str, extreme: Callable[[Any, Any], Any], better: Callable[[Any, Any], Any]) -> None:
    """Declare `name`: where in the last axis the first of the best numbers lies; or the first NaN, if there is one."""
    fold, better = _fold(extreme), register_jitable(better)

    def run(part, parts, rows, lines, columns, x, out):
        first, last = share(rows * lines, part, parts)
        for index in range(first, last):
            i = index // lines
            j = index - i * lines
            best = block(x, i, j, 0, 1, False)[0]
            place = 0
            for start in range(0, columns, BLOCK):
                length = min(BLOCK, columns - start)
                p = block(x, i, j, start, length, start > 0)
                found = fold(p, length, p[0])
                # A search for the best number takes fewer mispredicted branches than a comparison of each.
                if start == 0 or better(found, best) | ((found != found) & (best == best)):
                    best = found
                    k = 0
                    while p[k] != found and p[k] == p[k]:
                        k += 1
                    place = start + k
            pointer(offset(out, 0, 0, index), out[7])[0] = place

    _add(name, run, "int int int T:any i8:any")


_place("argmax", maximum, lambda x, y: x > y)
_place("argmin", minimum, lambda x, y: x < y)


def _take(part, parts, length, columns, table, rows, count, out):
    """out = table[rows]; a negative number counts from the end. A row that is not there is all NaN.

    The table has the axes (1, length, columns), `rows` (1, 1, count), and `out` (1, count, columns).
    """
    first, last = share(count, part, parts)
    for start in range(first, last, BLOCK):
        several = min(BLOCK, last - start)
        numbers = block(rows, 0, 0, start, several, False)
        for k in range(several):
            row = numbers[k]
            if row < 0:
                row += length
            target = pointer(offset(out, 0, start + k, 0), out[7])
            if row < 0 or row >= length:
                for column in range(columns):
                    target[column] = missing(target)
            elif is_direct(table) or columns == 1:
                source = pointer(offset(table, 0, row, 0), target)
                for column in range(columns):
                    target[column] = source[column]
            else:
                gather(table, offset(table, 0, row, 0), columns, target)


_add("take", _take, "int int T:any i8:any int T:any")


def _take_along_axis(part, parts, rows, length, columns, x, indices, count, out):
    """out[i, j, k] = x[i, indices[i, j, k], k]; a negative index counts from the end; NaN for one that is not there.

    x has the axes (rows, length, columns), the others (rows, count, columns).
    """
    first, last = share(rows, part, parts)
    for i in range(first, last):
        for j in range(count):
            for k in range(columns):
                place = pointer(offset(indices, i, j, k), indices[7])[0]
                if place < 0:
                    place += length
                target = pointer(offset(out, i, j, k), out[7])
                if place < 0 or place >= length:
                    target[0] = missing(target)
                else:
                    target[0] = pointer(offset(x, i, place, k), target)[0]


_add("take_along_axis", _take_along_axis, "int int int T:any i8:any int T:any")


def _scatter_add(part, parts, length, columns, values, rows, count, out):
    """out[k] = the sum of values[i] over all i with rows[i] = k, in the order of i; each part has columns of its own.

    A negative number counts from the end; a row that is not there is left out.
    """
    first, last = share(columns, part, parts, 16)
    for i in range(length):
        target = pointer(offset(out, 0, i, 0), out[7])
        for column in range(first, last):
            target[column] = as_type_of(0, target[column])
    for start in range(0, count, BLOCK):
        several = min(BLOCK, count - start)
        numbers = block(rows, 0, 0, start, several, False)
        for k in range(several):
            row = numbers[k]
            if row < 0:
                row += length
            if row < 0 or row >= length:
                continue
            target = pointer(offset(out, 0, row, 0), out[7])
            for begin in range(first, last, BLOCK):
                width = min(BLOCK, last - begin)
                p = block(values, 0, start + k, begin, width, False)
                for column in range(width):
                    target[begin + column] += p[column]


_add("scatter_add", _scatter_add, "int int T:any i8:any int T:any")
