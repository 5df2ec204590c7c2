"""Operands of any dtype and strides, block by block.

A kernel that declares an operand "f4:any" (see `intrinsics.operands`) computes with float32, whatever the array holds:
`block` gives the address of some elements that lie side by side and are of that dtype. If the array has them so, they
are read where they are; otherwise they are copied and converted into a buffer, which lies on the stack and so in the
first-level cache. So every kernel has one loop, over contiguous elements, that a compiler turns into vector code. NumPy
does the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

from xpnn_backends.native import registry
from xpnn_backends.native.registry import share


@intrinsic
def pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """The elements at an address, of the type of those that `like` points to."""
    signature = like(types.int64, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


def _pointer_to(kind: Any) -> Any:
    """pointer for one type."""

    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        signature = types.CPointer(kind)(types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


_float32_at = _pointer_to(types.float32)
_float64_at = _pointer_to(types.float64)
_int64_at = _pointer_to(types.int64)
_bool_at = _pointer_to(types.uint8)


@intrinsic
def convert(typing_context: Any, value: Any, like: Any) -> Any:
    """A number, converted to the type of what `like` points to; a uint8 is a bool there: 1 for all but 0."""
    kind = like.dtype
    signature = kind(value, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = signature.args[0]
        if kind == types.uint8 and isinstance(given, types.Float):
            zero = context.get_constant(given, 0.0)
            return builder.zext(builder.fcmp_unordered("!=", arguments[0], zero), ir.IntType(8))
        if kind == types.uint8 and isinstance(given, types.Integer):
            zero = context.get_constant(given, 0)
            return builder.zext(builder.icmp_signed("!=", arguments[0], zero), ir.IntType(8))
        return context.cast(builder, arguments[0], given, kind)

    return signature, generate


@intrinsic
def as_type_of(typing_context: Any, value: Any, x: Any) -> Any:
    """A number, converted to the type of the number x."""
    signature = x(value, x)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return signature, generate


@intrinsic
def missing(typing_context: Any, like: Any) -> Any:
    """Stands for a value that is not there, of the type of what `like` points to: NaN, the least integer, or False."""
    signature = like.dtype(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.return_type
        if isinstance(kind, types.Float):
            return context.get_constant(kind, float("nan"))
        return context.get_constant(kind, -(2**63) if kind == types.int64 else 0)

    return signature, generate


@intrinsic
def item_size(typing_context: Any, like: Any) -> Any:
    """Bytes of an element that `like` points to; known when compiling."""
    signature = types.int64(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0].dtype
        return ir.Constant(ir.IntType(64), context.get_abi_sizeof(context.get_data_type(kind)))

    return signature, generate


@register_jitable
def _gather(source, step, count, buffer):
    """buffer = source[::step], converted."""
    if step == 1:
        for i in range(count):
            buffer[i] = convert(source[i], buffer)
    elif step == 0:
        value = convert(source[0], buffer)
        for i in range(count):
            buffer[i] = value
    else:
        for i in range(count):
            buffer[i] = convert(source[i * step], buffer)


@register_jitable
def _float32_buffer(address):
    return _float32_at(address)


@register_jitable
def _float64_buffer(address):
    return _float64_at(address)


@register_jitable
def _int64_buffer(address):
    return _int64_at(address)


@register_jitable
def _bool_buffer(address):
    return _bool_at(address)


# Plain functions: an intrinsic is another one in each process, and what holds one is never found again on disk.
_BUFFERS = {"f4": _float32_buffer, "f8": _float64_buffer, "i8": _int64_buffer, "b1": _bool_buffer}


def _gather_for(pointer_to: Any, dtype: str, version: str) -> Any:
    def gather(address, code, stride, count, buffer):
        version  # noqa: B018 (a free variable: part of the cache's key)
        target = pointer_to(buffer)
        if code == 1:
            _gather(_float32_at(address), stride >> 2, count, target)
        elif code == 2:
            _gather(_float64_at(address), stride >> 3, count, target)
        elif code == 3:
            _gather(_int64_at(address), stride >> 3, count, target)
        else:
            _gather(_bool_at(address), stride, count, target)

    registry.name_for_cache(gather, dtype, version)
    return cfunc(types.void(*[types.int64] * 5), cache=registry.can_keep())(gather)


@cache
def compiled_gather(dtype: str) -> Any:
    """gather(address, code, stride, count, buffer) for a dtype; its `.address` can be called.

    buffer = `count` elements of the dtype with that code (see `intrinsics.operands`), `stride` bytes apart. It is
    compiled by itself, and called, because there are many kernels.
    """
    return _gather_for(_BUFFERS[dtype], dtype, registry.version())


@intrinsic
def _call_gather(
    typing_context: Any, function: Any, address: Any, code: Any, stride: Any, count: Any, buffer: Any
) -> Any:
    signature = types.void(*[types.int64] * 5, buffer)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 5)
        function, *rest, buffer = arguments
        builder.call(builder.inttoptr(function, kind.as_pointer()), [*rest, builder.ptrtoint(buffer, word)])
        return context.get_dummy_value()

    return signature, generate


@register_jitable
def gather(operand, address, count, target):
    """target = `count` elements of a row of the operand, from that address on, converted."""
    _call_gather(operand[6], address, operand[2], operand[5], count, target)


@register_jitable
def is_direct(operand):
    """True if the elements of a row lie side by side and need no conversion."""
    return operand[1] == 0 and operand[5] == item_size(operand[7])


@register_jitable
def offset(operand, i, j, k):
    """The address of element (i, j, k)."""
    return operand[0] + i * operand[3] + j * operand[4] + k * operand[5]


@register_jitable
def block(operand, i, j, k, count, again):
    """A pointer to elements k to k + count - 1 of row (i, j), converted; at most BLOCK of them if not `is_direct`.

    `again`: True if the same row was asked for just before, and not fewer elements of it; then a number that is
    repeated along it need not be written again.
    """
    address = offset(operand, i, j, k)
    buffer = operand[7]
    if operand[1] == 0 and (count == 1 or operand[5] == item_size(buffer)):
        return pointer(address, buffer)
    if not (again and operand[5] == 0):
        gather(operand, address, count, buffer)
    return buffer


@register_jitable
def rows_and_columns(rows, columns, part, parts):
    """(first row, last + 1, first column, last + 1) that part number `part` of `parts` works on."""
    if rows > 1:
        first, last = share(rows, part, parts)
        return first, last, 0, columns
    first, last = share(columns, part, parts, 1024)
    return 0, rows, first, last
