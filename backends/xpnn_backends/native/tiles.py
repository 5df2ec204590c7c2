# mypy: disable-error-code="no-untyped-def"
"""The inner loop of convolutions and of products with packed weights: a tile of the result, held in registers.

A processor with 512-bit vectors makes two fused multiply-adds of 16 numbers in a cycle, and reads two vectors from the
first-level cache. So a loop that reads two numbers for each multiplication waits for memory most of the time. The way
out is as old as the processors: a block of the result, some rows by some vectors, stays in registers; each number that
is read is then used for a whole row or a whole column of the block. With 14 rows of 2 vectors, 16 reads serve 28
multiply-adds (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008; Van Zee and van de
Geijn, "BLIS", 2015). No compiler finds this by itself: here the block is spelled out, in the code that LLVM reads.

A tile computes, for its rows i and columns j,

    c[i, j] = start + sum over s < steps and k < depth of a[s, i, k] b[s, k, j].

The sum runs over `steps` pieces, whose places are listed in a table, before the block is written once. For a
convolution, a piece is a tap of the kernel, or a row of taps that lie side by side: so no columns of patches are
written to memory, the image itself is read (Georganas et al., "High-Performance Deep Learning via a Single Building
Block", 2019).

There are three kinds of tile, which differ in how `a` is read:

    "rows"     numbers whose rows are `a_row` apart, k one after the other (forward, gradient of the input)
    "columns"  numbers whose rows lie side by side, k `a_k` apart: a transposed matrix (gradient of the weights)
    "lanes"    vectors: each column has an `a` of its own; rows are `a_row`, k are `a_k` apart (depthwise)

Weights are packed: the columns of a matrix are cut into blocks of a few vectors, and each block is stored row after
row, its last vector filled up with zeros. `Tiling` says how.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

from xpnn_backends.native import registry

ACCUMULATE = 1
"""Flag: c is what the sum starts with; otherwise it is the bias, or 0."""
RELU = 2
"""Flag: c = max(sum, 0); a NaN stays."""

_ARGUMENTS = 13
_WORD = ir.IntType(64)
_INDEX = ir.IntType(32)
_REALS = {"f4": (ir.FloatType(), 4), "f8": (ir.DoubleType(), 8)}


class Tiling(NamedTuple):
    """The sizes of tiles on this processor, for one dtype.

    Attributes:
        lanes: numbers in a vector.
        registers: vectors that fit into the registers beside those of a row of b and of one number of a.
    """

    lanes: int
    registers: int

    def most_rows(self, vectors: int) -> int:
        """The rows of the largest tile with so many vectors in a row."""
        most = min(14, self.registers // vectors)
        return most if most <= 8 else most // 2 * 2

    def rows(self, vectors: int) -> list[int]:
        """The numbers of rows for which there is a tile: all up to 8, then the even ones."""
        most = self.most_rows(vectors)
        return [rows for rows in range(1, most + 1) if rows <= 8 or rows % 2 == 0]

    def vectors(self, rows: int, columns: int) -> int:
        """How many vectors a block of packed weights has, for products with so many rows at a time.

        Two, with many rows; where there are few rows, four keep the multipliers as busy (of whole vectors only: each
        tile takes time to compile).
        """
        wide = rows <= self.most_rows(4) and columns > 2 * self.lanes and columns % self.lanes == 0
        return 4 if wide else 2

    def packed_columns(self, columns: int) -> int:
        """The columns that packed weights take, with those that fill the last vector."""
        return -(-columns // self.lanes) * self.lanes


@cache
def tiling(dtype: str) -> Tiling:
    """The tiling for "f4" or "f8"."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know how to ask this system
        features = {}
    if features.get("avx512f"):
        size, registers = 64, 28
    elif features.get("avx"):
        size, registers = 32, 12
    else:
        size, registers = 16, 12 if "sse2" in features else 28
    return Tiling(size // _REALS[dtype][1], registers)


class _Builder:
    """Writes the code of one tile: `rows` rows of `vectors` vectors."""

    def __init__(self, module: Any, kind: str, dtype: str, rows: int, vectors: int, masked: bool) -> None:
        self.real, self.size = _REALS[dtype]
        self.lanes = tiling(dtype).lanes
        self.kind, self.rows, self.vectors, self.masked = kind, rows, vectors, masked
        self.vector = ir.VectorType(self.real, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.module = module
        name = f"xpnn_tile_{kind}_{dtype}_{rows}_{vectors}_{int(masked)}"
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_WORD] * _ARGUMENTS), name)
        self.function.linkage = "internal"
        self.function.attributes.add("noinline")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.tiles = [(i, j) for i in range(rows) for j in range(vectors)]

    def word(self, value: int) -> Any:
        return ir.Constant(_WORD, value)

    def library(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """A function of LLVM's own."""
        name = f"llvm.{name}.v{self.lanes}f{8 * self.size}"
        return self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def repeated(self, value: Any, kind: Any) -> Any:
        """A vector with one value in all lanes."""
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INDEX, 0))
        places = ir.Constant(ir.VectorType(_INDEX, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), places)

    def masks(self, columns: Any) -> list[Any]:
        """For each vector of a row: which of its lanes are columns."""
        kind = ir.VectorType(_INDEX, self.lanes)
        count = self.repeated(self.builder.trunc(columns, _INDEX), kind)
        numbers = [list(range(j * self.lanes, (j + 1) * self.lanes)) for j in range(self.vectors)]
        return [self.builder.icmp_signed("<", ir.Constant(kind, each), count) for each in numbers]

    def load(self, address: Any, mask: Any) -> Any:
        """The vector at an address."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(pointer, align=self.size)
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        function = self.library("masked.load", self.vector, [pointer.type, _INDEX, bits, self.vector])
        return self.builder.call(function, [pointer, ir.Constant(_INDEX, self.size), mask, self.zero])

    def store(self, value: Any, address: Any, mask: Any) -> None:
        """Write the vector to an address."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, pointer, align=self.size)
            return
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        function = self.library("masked.store", ir.VoidType(), [self.vector, pointer.type, _INDEX, bits])
        self.builder.call(function, [value, pointer, ir.Constant(_INDEX, self.size), mask])

    def distances(self, stride: Any) -> Any:
        """A function i -> i times the stride, for the rows of a.

        The odd multiples stay in registers, and a processor can address 2, 4 and 8 times a register. LLVM would
        rather keep a pointer for each row, and has not as many registers; behind an empty piece of assembler it does
        not see where the multiples come from.
        """
        if self.kind == "columns":
            return lambda i: self.word(i * self.size)
        kind = ir.FunctionType(_WORD, [_WORD])
        odd = {
            i: self.builder.asm(kind, "", "=r,0", [self.builder.mul(stride, self.word(i))], side_effect=False)
            for i in range(1, self.rows, 2)
        }

        def distance(i: int) -> Any:
            if i == 0:
                return self.word(0)
            power = (i & -i).bit_length() - 1
            return self.builder.shl(odd[i >> power], self.word(power))

        return distance

    def build(self) -> Any:
        """The function of this tile; its arguments are those of `tile_call`, but for the rows."""
        builder, size = self.builder, self.word(self.size)
        a, a_row, a_k, b, b_step, c, c_row, table, steps, depth, columns, bias, flags = self.function.args
        masks = self.masks(columns) if self.masked else [None] * self.vectors
        b_masks = [None] * self.vectors if self.kind == "rows" else masks  # packed weights are whole vectors
        a_row, a_k, b_bytes, c_row = (builder.mul(each, size) for each in (a_row, a_k, b_step, c_row))
        distance = self.distances(a_row)
        across = [self.word(j * self.lanes * self.size) for j in range(self.vectors)]

        def place(i: int, j: int) -> Any:
            return builder.add(builder.add(c, builder.mul(c_row, self.word(i))), across[j])

        # What the sums start with: c, the bias, or 0.
        names = ("from_c", "not_from_c", "from_bias", "from_zero", "step", "multiply", "next_step", "finish")
        blocks = {name: self.function.append_basic_block(name) for name in names}
        accumulates = builder.icmp_unsigned("!=", builder.and_(flags, self.word(ACCUMULATE)), self.word(0))
        builder.cbranch(accumulates, blocks["from_c"], blocks["not_from_c"])
        builder.position_at_end(blocks["from_c"])
        of_c = {(i, j): self.load(place(i, j), masks[j]) for i, j in self.tiles}
        builder.branch(blocks["step"])
        builder.position_at_end(blocks["not_from_c"])
        builder.cbranch(builder.icmp_unsigned("!=", bias, self.word(0)), blocks["from_bias"], blocks["from_zero"])
        builder.position_at_end(blocks["from_bias"])
        of_bias = [self.load(builder.add(bias, across[j]), masks[j]) for j in range(self.vectors)]
        builder.branch(blocks["step"])
        builder.position_at_end(blocks["from_zero"])
        builder.branch(blocks["step"])

        # For each step: its place in a and in b, from the table.
        builder.position_at_end(blocks["step"])
        step = builder.phi(_WORD)
        before = {tile: builder.phi(self.vector) for tile in self.tiles}
        for name in ("from_c", "from_bias", "from_zero"):
            step.add_incoming(self.word(0), blocks[name])
        for tile in self.tiles:
            before[tile].add_incoming(of_c[tile], blocks["from_c"])
            before[tile].add_incoming(of_bias[tile[1]], blocks["from_bias"])
            before[tile].add_incoming(self.zero, blocks["from_zero"])
        pair = builder.gep(builder.inttoptr(table, _WORD.as_pointer()), [builder.mul(step, self.word(2))])
        in_a, in_b = builder.load(pair), builder.load(builder.gep(pair, [self.word(1)]))
        a_first = builder.add(a, builder.mul(in_a, size))
        b_first = builder.add(b, builder.mul(in_b, b_bytes))
        builder.branch(blocks["multiply"])

        # For each k: a row of b, and one number (or vector) of a for each row of the tile.
        builder.position_at_end(blocks["multiply"])
        a_here, b_here, left = builder.phi(_WORD), builder.phi(_WORD), builder.phi(_WORD)
        sums = {tile: builder.phi(self.vector) for tile in self.tiles}
        for phi, first in ((a_here, a_first), (b_here, b_first), (left, depth)):
            phi.add_incoming(first, blocks["step"])
        for tile in self.tiles:
            sums[tile].add_incoming(before[tile], blocks["step"])
        row = [self.load(builder.add(b_here, across[j]), b_masks[j]) for j in range(self.vectors)]
        multiply_add = self.library("fma", self.vector, [self.vector] * 3)
        after = {}
        for i in range(self.rows):
            address = builder.add(a_here, distance(i))
            if self.kind != "lanes":
                number = builder.load(builder.inttoptr(address, self.real.as_pointer()))
                factors = [self.repeated(number, self.vector)] * self.vectors
            else:
                factors = [self.load(builder.add(address, across[j]), masks[j]) for j in range(self.vectors)]
            for j in range(self.vectors):
                after[i, j] = builder.call(multiply_add, [factors[j], row[j], sums[i, j]])
        fewer = builder.sub(left, self.word(1))
        a_here.add_incoming(builder.add(a_here, size if self.kind == "rows" else a_k), blocks["multiply"])
        b_here.add_incoming(builder.add(b_here, b_bytes), blocks["multiply"])
        left.add_incoming(fewer, blocks["multiply"])
        for tile in self.tiles:
            sums[tile].add_incoming(after[tile], blocks["multiply"])
        builder.cbranch(builder.icmp_signed(">", fewer, self.word(0)), blocks["multiply"], blocks["next_step"])

        builder.position_at_end(blocks["next_step"])
        following = builder.add(step, self.word(1))
        step.add_incoming(following, blocks["next_step"])
        for tile in self.tiles:
            before[tile].add_incoming(after[tile], blocks["next_step"])
        builder.cbranch(builder.icmp_signed("<", following, steps), blocks["step"], blocks["finish"])

        builder.position_at_end(blocks["finish"])
        relu = builder.icmp_unsigned("!=", builder.and_(flags, self.word(RELU)), self.word(0))
        lowest = ir.Constant(self.vector, [-np.inf] * self.lanes)
        floor = builder.select(relu, self.zero, lowest)
        for i, j in self.tiles:
            value = after[i, j]
            value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)
            self.store(value, place(i, j), masks[j])
        builder.ret_void()
        return self.function


@intrinsic(prefer_literal=True)
def _tile(typing_context: Any, specification: Any, rows: Any, vectors: Any, arguments: Any) -> Any:
    """Call the tile with so many rows and vectors. The specification is "rows f4 0": kind, dtype, masked or not."""
    kind, dtype, masked = specification.literal_value.split()
    signature = types.void(specification, types.int64, types.int64, arguments)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _, rows, vectors, packed = given
        values = [builder.extract_value(packed, position) for position in range(_ARGUMENTS)]
        number = builder.add(builder.mul(vectors, ir.Constant(_WORD, 16)), rows)
        end = builder.append_basic_block("end")
        switch = builder.switch(number, end)
        for vector_count in (1, 2, 3, 4) if kind == "rows" and masked == "0" else (1, 2):
            for row_count in tiling(dtype).rows(vector_count):
                function = _Builder(builder.module, kind, dtype, row_count, vector_count, masked == "1").build()
                case = builder.append_basic_block("case")
                switch.add_case(ir.Constant(_WORD, 16 * vector_count + row_count), case)
                builder.position_at_end(case)
                builder.call(function, values)
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, generate


def _block_for(specification: str, registers: int, lanes: int, size: int, version: str) -> Any:
    """The compiled function behind `multiply_block`."""

    def block(a, a_row, a_k, b, b_step, c, c_row, table, steps, depth, rows, columns, bias, flags):
        version  # noqa: B018 (a free variable: part of the cache's key)
        vectors = (columns + lanes - 1) // lanes
        most = min(14, registers // vectors)
        most -= most & 1 if most > 8 else 0
        done = 0
        while done < rows:
            # As many rows for each tile, where there is one of that size: 28 = 14 + 14, 32 = 12 + 10 + 10, 9 = 5 + 4.
            left = rows - done
            tiles = (left + most - 1) // most
            height = (left + tiles - 1) // tiles
            if height > 8 and height & 1:
                height = height + 1 if height < left else (height + 1) // 2
            _tile(
                specification,
                height,
                vectors,
                (
                    a + done * a_row * size,
                    a_row,
                    a_k,
                    b,
                    b_step,
                    c + done * c_row * size,
                    c_row,
                    table,
                    steps,
                    depth,
                    columns,
                    bias,
                    flags,
                ),
            )
            done += height

    registry.name_for_cache(block, specification.replace(" ", "_"), version)
    return cfunc(types.void(*[types.int64] * 14), cache=registry.can_keep())(block)


@cache
def compiled_block(kind: str, dtype: str, columns: int) -> Any:
    """The function that `multiply_block` calls, for blocks of `columns` columns in all; it has an `.address`.

    It is compiled by itself, because it is long, and called by many kernels. Whole vectors need no masks.
    """
    sizes = tiling(dtype)
    masked = int(columns % sizes.lanes != 0)
    size = _REALS[dtype][1]
    return registry.counted(
        lambda: _block_for(f"{kind} {dtype} {masked}", sizes.registers, sizes.lanes, size, registry.version()),
        lambda made: int(made.cache_hits),
    )


@intrinsic
def multiply_block(typing_context: Any, function: Any, arguments: Any) -> Any:
    """Call what `compiled_block` gives, by its address, on (a, a_row, a_k, b, b_step, c, c_row, table, steps, depth,
    rows, columns, bias, flags), all int64.

    a, b and c are addresses; a_row, a_k, b_step and c_row are how many numbers lie between rows, or between k. The
    table holds, for each step, how many numbers it lies beyond a, and how many rows beyond b; there is at least one
    step, of a depth of 1 at least. `columns` is at most those of four vectors. `bias` is an address, or 0; `flags` are
    ACCUMULATE and RELU.
    """
    signature = types.void(types.int64, arguments)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        address, packed = given
        values = [builder.extract_value(packed, position) for position in range(_ARGUMENTS + 1)]
        kind = ir.FunctionType(ir.VoidType(), [_WORD] * (_ARGUMENTS + 1))
        builder.call(builder.inttoptr(address, kind.as_pointer()), values)
        return context.get_dummy_value()

    return signature, generate


@register_jitable
def pack_rows(weight, first, row, column, rows, columns, lanes, width, packed, start, all_rows):
    """Pack a matrix, or some rows of one that has `all_rows`: those from row number `start` on.

    Number (i, j) of these rows is weight[first + i * row + j * column]. Blocks have `width` columns, the last one as
    many vectors as it needs; they lie in `packed` one after the other.
    """
    zero = packed.dtype.type(0)
    for left in range(0, columns, width):
        right = min(left + width, columns)
        step = (right - left + lanes - 1) // lanes * lanes
        target = packed[left * all_rows + start * step : left * all_rows + (start + rows) * step]
        for i in range(rows):
            made = target[i * step : (i + 1) * step]
            place = first + i * row + left * column
            if column == 1:
                given = weight[place : place + right - left]
                for j in range(given.size):
                    made[j] = given[j]
            for j in range(right - left, step):
                made[j] = zero
        if column != 1:
            # A transposed matrix: squares of it, so that whole cache lines are read and written.
            for top in range(0, rows, 16):
                bottom = min(top + 16, rows)
                for near in range(0, right - left, 8):
                    far = min(near + 8, right - left)
                    for i in range(top, bottom):
                        made = target[i * step + near : i * step + far]
                        given = weight[first + i * row + (left + near) * column :]
                        for j in range(made.size):
                            made[j] = given[j * column]


@register_jitable
def product_of_packed(function, a, a_row, packed, c, c_row, rows, columns, depth, lanes, width, size, zeros, flags):
    """c (+)= a B for packed weights B: c has `rows` rows of `columns`, a has rows of `depth`.

    a, packed and c are addresses, `size` the bytes of a number, `zeros` the address of two words that are 0 (the table
    of one step); `function` is the address of `compiled_block("rows", ...)`. The weights were packed by `pack_rows`
    with the same lanes and width, which `Tiling` gives.
    """
    for left in range(0, columns, width):
        wide = min(width, columns - left)
        step = (wide + lanes - 1) // lanes * lanes
        block = packed + left * depth * size
        multiply_block(
            function,
            (a, a_row, 1, block, step, c + left * size, c_row, zeros, 1, depth, rows, wide, 0, flags),
        )
