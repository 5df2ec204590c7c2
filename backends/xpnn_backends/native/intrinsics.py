"""What Numba has no words for: memory by its address, calls by address, and atomic operations."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

_TYPES = {
    "f4": types.float32,
    "f8": types.float64,
    "i8": types.int64,
    "b1": types.boolean,
}


BLOCK = 128
"""Elements of the buffer of an operand that is read block by block: 1 KiB at most, so that the buffers of a kernel take
less than a page of the stack."""


def _operand_type(token: str) -> Any:
    """The Numba type of one operand of a specification such as "f4:2"."""
    if token == "number":
        return types.float64
    if token == "int":
        return types.int64
    kind, _, axes = token.partition(":")
    if axes == "any":
        item = types.uint8 if kind == "b1" else _TYPES[kind]
        return types.Tuple([types.int64] * 7 + [types.CPointer(item)])
    return types.Array(_TYPES[kind], 2 if axes == "2" else 1, "C")


@intrinsic(prefer_literal=True)
def operands(typing_context: Any, words: Any, specification: Any) -> Any:
    """A tuple of a kernel's operands, from the words that describe them (see `machine.encode`).

    In the specification, separated by blanks: "int" is a word itself; "number" the address of a float64; "f4:1" (or
    f8, i8, b1) the address and the length of an array in C order; "f4:2" the address and both lengths.

    "f4:any" is an array of any dtype and with three axes of any strides, or a number, to be converted to float32
    (f8, i8, b1: to those): its address; 0 if it has that dtype, else 1; the code of the dtype that it has (1: float32,
    2: float64, 3: int64, 4: bool); its three strides in bytes; the address of a function that converts
    (`strided.compiled_gather`). A kernel gets these seven integers and a buffer: a pointer to BLOCK elements of the
    wanted type, on the stack. A bool is a uint8 there, 0 or 1.
    """
    kinds = [_operand_type(token) for token in specification.literal_value.split()]
    signature = types.Tuple(kinds)(types.int64, specification)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_type = ir.IntType(64)
        base = builder.inttoptr(arguments[0], word_type.as_pointer())
        position = 0

        def next_word() -> Any:
            nonlocal position
            pointer = builder.gep(base, [ir.Constant(word_type, position)])
            position += 1
            return builder.load(pointer)

        values = []
        for kind in kinds:
            if isinstance(kind, types.Array):
                item = context.get_value_type(kind.dtype)
                size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
                array = arrayobj.make_array(kind)(context, builder)
                data = builder.inttoptr(next_word(), context.get_data_type(kind.dtype).as_pointer())
                shape = [next_word() for _ in range(kind.ndim)]
                step = context.get_constant(types.intp, size)
                strides = [step]
                if kind.ndim == 2:
                    strides = [builder.mul(shape[1], step), step]
                del item
                arrayobj.populate_array(
                    array,
                    data=data,
                    shape=cgutils.pack_array(builder, shape),
                    strides=cgutils.pack_array(builder, strides),
                    itemsize=step,
                    meminfo=None,
                )
                values.append(array._getvalue())
            elif kind == types.float64:
                pointer = builder.inttoptr(next_word(), ir.DoubleType().as_pointer())
                values.append(builder.load(pointer))
            elif isinstance(kind, types.BaseTuple):
                item = context.get_data_type(kind.types[-1].dtype)
                buffer = cgutils.alloca_once(builder, item, size=ir.Constant(word_type, BLOCK))
                values.append(context.make_tuple(builder, kind, [*(next_word() for _ in range(7)), buffer]))
            else:
                values.append(next_word())
        return context.make_tuple(builder, signature.return_type, values)

    return signature, generate


@intrinsic
def call_kernel(typing_context: Any, address: Any, words: Any, part: Any, parts: Any) -> Any:
    """Call the kernel at an address: void(int64 words, int64 part, int64 parts)."""
    signature = types.void(types.int64, types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word] * 3)
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def call_integer(typing_context: Any, address: Any) -> Any:
    """Call int32 f(void)."""
    signature = types.int32(types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])

    return signature, generate


@intrinsic
def call_with_integer(typing_context: Any, address: Any, value: Any) -> Any:
    """Call void f(int32)."""
    signature = types.void(types.int64, types.int32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return signature, generate


def _product_caller(real: Any, name: str) -> Any:
    """cblas_?gemm by address, with 64-bit integers: row-major C = alpha op(A) op(B) + beta C.

    alpha and beta are of the type of the numbers.
    """

    @intrinsic
    def call(
        typing_context: Any,
        address: Any,
        transpose_a: Any,
        transpose_b: Any,
        m: Any,
        n: Any,
        k: Any,
        alpha: Any,
        a: Any,
        lda: Any,
        b: Any,
        ldb: Any,
        beta: Any,
        c: Any,
        ldc: Any,
    ) -> Any:
        integer = types.int64
        signature = types.void(*[integer] * 6, real, *[integer] * 4, real, *[integer] * 2)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = context.get_value_type(real)
            word, short = ir.IntType(64), ir.IntType(32)
            pointer = value.as_pointer()
            function = ir.FunctionType(
                ir.VoidType(),
                [short, short, short, word, word, word, value, pointer, word, pointer, word, value, pointer, word],
            )
            address, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
            builder.call(
                builder.inttoptr(address, function.as_pointer()),
                [
                    ir.Constant(short, 101),  # row-major
                    # 111: as it is, 112: transposed
                    builder.add(builder.trunc(transpose_a, short), ir.Constant(short, 111)),
                    builder.add(builder.trunc(transpose_b, short), ir.Constant(short, 111)),
                    m,
                    n,
                    k,
                    alpha,
                    builder.inttoptr(a, pointer),
                    lda,
                    builder.inttoptr(b, pointer),
                    ldb,
                    beta,
                    builder.inttoptr(c, pointer),
                    ldc,
                ],
            )
            return context.get_dummy_value()

        return signature, generate

    call.__name__ = name
    return call


sgemm = _product_caller(types.float32, "sgemm")
dgemm = _product_caller(types.float64, "dgemm")


def _word_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def atomic_add(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address; returns what was there before. Sequentially consistent, as all of these."""
    signature = types.int64(types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _word_pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return signature, generate


@intrinsic
def atomic_swap(typing_context: Any, address: Any, value: Any) -> Any:
    """Store an int64 at an address; returns what was there before."""
    signature = types.int64(types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("xchg", _word_pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return signature, generate


@intrinsic
def atomic_load(typing_context: Any, address: Any) -> Any:
    """The int64 at an address."""
    signature = types.int64(types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word_pointer(builder, arguments[0]), "seq_cst", 8)

    return signature, generate


@intrinsic
def atomic_replace(typing_context: Any, address: Any, old: Any, new: Any) -> Any:
    """Store `new` in the int64 at an address if `old` is there; returns what was there."""
    signature = types.int64(types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _word_pointer(builder, arguments[0])
        found = builder.cmpxchg(pointer, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 0)

    return signature, generate


@intrinsic
def load_word(typing_context: Any, address: Any, index: Any) -> Any:
    """Word number `index` of those at an address."""
    signature = types.int64(types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(_word_pointer(builder, arguments[0]), [arguments[1]]))

    return signature, generate


@intrinsic
def multiply_wide(typing_context: Any, a: Any, b: Any) -> Any:
    """(the lower, the upper 64 bits) of the product of two uint64: one multiplication."""
    signature = types.UniTuple(types.uint64, 2)(types.uint64, types.uint64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        halves = [builder.trunc(product, word), builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)]
        return context.make_tuple(builder, signature.return_type, halves)

    return signature, generate


def _float_layout(kind: Any) -> tuple[Any, int, int]:
    """(the integer type of a float type's width, digits of its mantissa that are stored, exponent's bias)."""
    return (ir.IntType(32), 23, 127) if kind == types.float32 else (ir.IntType(64), 52, 1023)


@intrinsic
def times_power_of_two(typing_context: Any, x: Any, shifted: Any, shift: Any) -> Any:
    """x 2^n for a whole n = shifted - shift, where shift is 1.5 2^(digits) with the digits of the mantissa.

    The last bits of such a sum are those of n. The power is multiplied in as two halves, so that every result is
    right: those below the normal numbers too, and those for which 2^n itself would overflow.
    """
    signature = x(x, shifted, shift)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, digits, bias = _float_layout(signature.return_type)
        real = context.get_value_type(signature.return_type)
        value, shifted, shift = arguments
        exponent = builder.sub(builder.bitcast(shifted, integer), builder.bitcast(shift, integer))
        half = builder.ashr(exponent, ir.Constant(integer, 1))
        for part in (half, builder.sub(exponent, half)):
            biased = builder.add(part, ir.Constant(integer, bias))
            power = builder.bitcast(builder.shl(biased, ir.Constant(integer, digits)), real)
            value = builder.fmul(value, power)
        return value

    return signature, generate


@intrinsic
def split_power_of_two(typing_context: Any, x: Any, low: Any, shift: Any) -> Any:
    """(m, k) with x = m 2^k and low <= m < 2 low, for a positive normal x; k as a float.

    `shift` is as for `times_power_of_two`.
    """
    signature = types.UniTuple(x, 2)(x, low, shift)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.return_type.dtype
        integer, digits, _ = _float_layout(kind)
        real = context.get_value_type(kind)
        bits, low, shift = (builder.bitcast(argument, integer) for argument in arguments)
        count = ir.Constant(integer, digits)
        exponent = builder.ashr(builder.sub(bits, low), count)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, count)), real)
        shifted = builder.bitcast(builder.add(exponent, shift), real)
        return context.make_tuple(builder, signature.return_type, [mantissa, builder.fsub(shifted, arguments[2])])

    return signature, generate


@intrinsic
def always_inline(typing_context: Any) -> Any:
    """Make the function in which this stands part of those that call it, however long it is.

    LLVM finds an elementary function too long for that, and a loop with a call is no vector code.
    """
    signature = types.void()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return context.get_dummy_value()

    return signature, generate


def polynomial(*coefficients: float) -> Any:
    """A function p(t): the sum of coefficients[k] t^k by Horner's rule, in the type of t, without a loop.

    The function in which it stands is inlined, as by `always_inline`.
    """

    @intrinsic
    def evaluate(typing_context: Any, t: Any) -> Any:
        signature = t(t)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (t,) = arguments
            builder.function.attributes.add("alwaysinline")
            result = context.get_constant(signature.return_type, coefficients[-1])
            for coefficient in coefficients[-2::-1]:
                constant = context.get_constant(signature.return_type, coefficient)
                result = builder.fadd(builder.fmul(result, t), constant)
            return result

        return signature, generate

    return evaluate
