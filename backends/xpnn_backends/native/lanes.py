"""Sums along a row in vector registers, in float64.

A loop that adds up one row is no vector code by itself: the order of the additions would have to change. Here it is
fixed: number i goes to sum i mod 32, and the 32 sums are added in pairs, on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LANES = 8
_VECTORS = 4
_CHUNK = _LANES * _VECTORS


def _reduction(name: str, term: Callable[[Any, Any, Any, Any, Any], Any]) -> Any:
    """An intrinsic (x, y, middle, factor) -> the sum of term(x[i], y[i]) over two 1-D arrays in C order.

    `term` gets a builder, and x, y, middle and factor in float64: as vectors, and as numbers for what is left over.
    """

    @intrinsic
    def total(typing_context: Any, x: Any, y: Any, middle: Any, factor: Any) -> Any:
        signature = types.float64(x, y, types.float64, types.float64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = signature.args[0]
            real = context.get_value_type(kind.dtype)
            double, word = ir.DoubleType(), ir.IntType(64)
            vector = ir.VectorType(double, _LANES)
            first, second = (context.make_array(kind)(context, builder, value=value) for value in arguments[:2])
            count = builder.extract_value(first.shape, 0)
            middles, factors = (_spread(builder, number, vector) for number in arguments[2:])

            def load(array: Any, index: Any, shape: Any) -> Any:
                pointer = builder.gep(array.data, [index])
                if shape is double:
                    number = builder.load(pointer)
                    return number if real == double else builder.fpext(number, double)
                found = builder.load(builder.bitcast(pointer, ir.VectorType(real, _LANES).as_pointer()))
                found.align = context.get_abi_sizeof(real)
                return found if real == double else builder.fpext(found, vector)

            zero = ir.Constant(vector, None)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(_VECTORS)]
            whole = builder.mul(builder.sdiv(count, ir.Constant(word, _CHUNK)), ir.Constant(word, _CHUNK))
            step = ir.Constant(word, _CHUNK)
            with cgutils.for_range_slice(builder, ir.Constant(word, 0), whole, step, intp=word) as (index, _):
                for position, cell in enumerate(sums):
                    here = builder.add(index, ir.Constant(word, position * _LANES))
                    value = term(builder, load(first, here, vector), load(second, here, vector), middles, factors)
                    builder.store(builder.fadd(builder.load(cell), value), cell)
            a, b, c, d = (builder.load(cell) for cell in sums)
            lanes = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
            parts = [builder.extract_element(lanes, ir.Constant(ir.IntType(32), lane)) for lane in range(_LANES)]
            while len(parts) > 1:
                parts = [builder.fadd(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
            rest = cgutils.alloca_once_value(builder, parts[0])
            one = ir.Constant(word, 1)
            with cgutils.for_range_slice(builder, whole, count, one, intp=word) as (index, _):
                value = term(
                    builder, load(first, index, double), load(second, index, double), arguments[2], arguments[3]
                )
                builder.store(builder.fadd(builder.load(rest), value), rest)
            return builder.load(rest)

        return signature, generate

    total.__name__ = name
    return total


def _spread(builder: Any, number: Any, vector: Any) -> Any:
    """A vector with that number in each lane."""
    found = ir.Constant(vector, ir.Undefined)
    for lane in range(_LANES):
        found = builder.insert_element(found, number, ir.Constant(ir.IntType(32), lane))
    return found


def _scaled_square(builder: Any, x: Any, y: Any, middle: Any, factor: Any) -> Any:
    scaled = builder.fmul(builder.fsub(x, middle), factor)
    return builder.fmul(scaled, scaled)


def _centred_product(builder: Any, x: Any, y: Any, middle: Any, factor: Any) -> Any:
    return builder.fmul(builder.fmul(builder.fsub(x, middle), factor), y)


row_sum = _reduction("row_sum", lambda builder, x, y, middle, factor: builder.fmul(x, factor))
"""row_sum(x, x, 0.0, factor): the sum of x factor."""
row_squares = _reduction("row_squares", _scaled_square)
"""row_squares(x, x, middle, factor): the sum of ((x - middle) factor)^2."""
row_products = _reduction("row_products", _centred_product)
"""row_products(x, y, middle, factor): the sum of (x - middle) factor y."""
