"""Loops over windows whose places are short rows: the channels, a few numbers.

A compiler makes vector code of a loop for whole vectors and goes on one number at a time: of six channels, nothing is
left for the vectors. Here what is left is one vector of its own length. Sums and maxima of a window stay in registers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LANES = 8
"""Numbers in a vector: eight float32 fill 256 bits, eight float64 512; narrower machines split them."""
_WORD = ir.IntType(64)


class _Chunk:
    """Some channels of a window: loads and stores vectors of `lanes` numbers at addresses."""

    def __init__(self, builder: Any, real: Any, size: int, lanes: int) -> None:
        self.builder, self.size = builder, size
        self.vector = ir.VectorType(real, lanes)
        self.zero = ir.Constant(self.vector, None)

    def load(self, address: Any) -> Any:
        """The vector at an address."""
        return self.builder.load(self.builder.inttoptr(address, self.vector.as_pointer()), align=self.size)

    def store(self, value: Any, address: Any) -> None:
        """Write a vector to an address."""
        self.builder.store(value, self.builder.inttoptr(address, self.vector.as_pointer()), align=self.size)

    @contextlib.contextmanager
    def over(self, rows: Any, columns: Any, row_step: Any, column_step: Any) -> Iterator[Any]:
        """Loops over the positions of a window; gives how many bytes each lies beyond the first one."""
        builder, zero, one = self.builder, ir.Constant(_WORD, 0), ir.Constant(_WORD, 1)
        with (
            cgutils.for_range_slice(builder, zero, rows, one, intp=_WORD) as (row, _),
            cgutils.for_range_slice(builder, zero, columns, one, intp=_WORD) as (column, _),
        ):
            yield builder.add(builder.mul(row, row_step), builder.mul(column, column_step))


def _over_channels(name: str, arity: int, body: Callable[..., None]) -> Any:
    """An intrinsic (like, channels, *addresses and lengths): body(chunk, *the same, moved on) for each chunk."""

    @intrinsic
    def run(typing_context: Any, like: Any, channels: Any, words: Any) -> Any:
        signature = types.void(like, types.int64, words)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            real = context.get_value_type(signature.args[0].dtype)
            size = context.get_abi_sizeof(real)
            channels = arguments[1]
            words = [builder.extract_value(arguments[2], index) for index in range(len(signature.args[2]))]
            lanes = ir.Constant(_WORD, _LANES)
            whole = builder.mul(builder.sdiv(channels, lanes), lanes)

            def chunk(first: Any, count: int) -> None:
                offset = builder.mul(first, ir.Constant(_WORD, size))
                moved = [builder.add(word, offset) for word in words[:arity]]
                body(_Chunk(builder, real, size, count), *moved, *words[arity:])

            with cgutils.for_range_slice(builder, ir.Constant(_WORD, 0), whole, lanes, intp=_WORD) as (first, _):
                chunk(first, _LANES)
            end = builder.append_basic_block("end")
            switch = builder.switch(builder.sub(channels, whole), end)
            for count in range(1, _LANES):
                block = builder.append_basic_block(f"last_{count}")
                switch.add_case(ir.Constant(_WORD, count), block)
                builder.position_at_end(block)
                chunk(whole, count)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    run.__name__ = name
    return run


def _largest(chunk: _Chunk, x: Any, y: Any, rows: Any, columns: Any, row_step: Any, column_step: Any) -> None:
    builder = chunk.builder
    best = cgutils.alloca_once_value(builder, chunk.load(x))
    builder.store(chunk.load(x), best)
    with chunk.over(rows, columns, row_step, column_step) as offset:
        given, known = chunk.load(builder.add(x, offset)), builder.load(best)
        # A NaN that comes takes the place, and one that is there keeps it.
        wins = builder.or_(builder.fcmp_ordered(">", given, known), builder.fcmp_unordered("uno", given, given))
        builder.store(builder.select(wins, given, known), best)
    chunk.store(builder.load(best), y)


def _share_out(
    chunk: _Chunk, x: Any, y: Any, dy: Any, dx: Any, rows: Any, columns: Any, row_step: Any, column_step: Any
) -> None:
    builder = chunk.builder
    largest = chunk.load(y)
    rest = cgutils.alloca_once_value(builder, chunk.zero)
    builder.store(chunk.load(dy), rest)
    with chunk.over(rows, columns, row_step, column_step) as offset:
        given, left = chunk.load(builder.add(x, offset)), builder.load(rest)
        found = builder.or_(builder.fcmp_ordered("==", given, largest), builder.fcmp_unordered("uno", given, given))
        place = builder.add(dx, offset)
        chunk.store(builder.fadd(chunk.load(place), builder.select(found, left, chunk.zero)), place)
        builder.store(builder.select(found, chunk.zero, left), rest)


largest_of_window = _over_channels("largest_of_window", 2, _largest)
"""largest_of_window(like, channels, (x, y, rows, columns, row_step, column_step)).

Writes the largest value of each channel under a window, whose first position is at the address x, to the address y; a
NaN is larger than all. Steps are in bytes.
"""
share_out = _over_channels("share_out", 4, _share_out)
"""share_out(like, channels, (x, y, dy, dx, rows, columns, row_step, column_step)).

Adds dy to dx at the first position under a window where x is y, its largest value, or a NaN.
"""
