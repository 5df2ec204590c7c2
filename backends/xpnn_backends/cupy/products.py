"""Matrix products through cublasLt, NVIDIA's library of matrix products, as `nvmath.bindings` offers it.

CuPy refuses its own products while a CUDA graph is captured, and has none for batches of half-precision matrices. Here
each kind of product (shapes, layouts, dtypes, alignment) is planned once, with the algorithm that cublasLt's heuristic
puts first, and then started with what it needs alone: pointers, a stream and a workspace. The same plan, the same bits.

What is asked of cublasLt, all with sums in float32 (float64 for float64), and what is done where its heuristic has no
answer (an old version, an odd alignment):

    product                     float32             float64   float16, bfloat16   else
    a b                         COMPUTE_32F         64F       32F                 cupy.matmul; an error in a capture
                                or 32F_FAST_TF32
    a b + bias                  epilogue BIAS, in all dtypes                      None: the caller adds the bias
    relu(a b + bias)            epilogue RELU_BIAS, in all dtypes                 None: the caller adds and rectifies
    a b and b's column sums     epilogue BGRADA, in all dtypes                    None: the caller sums
    relu(z) with z = a b +      epilogue RELU_AUX_BIAS, in all dtypes             None: the caller keeps the result
    bias, and a mask: z > 0
    a b where a mask has ones,  epilogue DRELU_BGRAD, in all dtypes               None: the caller does it with the
    and its column sums                                                           result that it has kept
    gelu_tanh(z) with z = a b   epilogue GELU_AUX_BIAS, in all dtypes             None: the caller applies it to z
    + bias, and z
    gelu_tanh'(z) a b, and its  epilogue DGELU_BGRAD, in all dtypes               None: the caller does it with z
    column sums

Epilogues are asked for only where other libraries use them too, and with a margin: no batches, the inner length and
the columns of the result greater than 1, operands in one piece, pointers on 16 bytes. Those with an activation are used
only after a trial on the device has shown, in this dtype, that a NaN stays one, that values and derivatives are right,
and that the backward one reads what the forward one wrote. cublasLt's GELU is 0.5 z (1 + tanh(u)), the form that xpnn
calls "gelu_tanh"; the exact "gelu" is not asked of it. Its error is small beside z; that of the op `gelu_tanh` is small
beside the result too, which makes a difference for z far below 0. An op does not know whether its vjp will be called,
and that needs z: so GELU_AUX_BIAS is used for predictions too, not GELU_BIAS, which does not hand z out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import cupy
import numpy as np

from xpnn.errors import BackendError
from xpnn_backends.cupy.product_plans import (
    ACTIVATIONS,
    TYPES,
    empty_auxiliary,
    layout_of,
    library,
    products_here,
    readable,
)
from xpnn_backends.cupy.product_trials import activates_rightly, rectifies_rightly

_computing: ContextVar[str] = ContextVar("xpnn_cupy_computing", default="float32")
_cupy_settings = threading.Lock()


def precision() -> str:
    """How float32 matrices are multiplied here and now: see `computing`."""
    return _computing.get()


@contextlib.contextmanager
def computing(precision: str) -> Iterator[None]:
    """A block in which float32 products may round their factors to TF32 ("tf32"), or may not (any other name).

    It holds for this thread alone.
    """
    token = _computing.set(precision)
    try:
        yield
    finally:
        _computing.reset(token)


def _may_round() -> bool:
    return _computing.get() == "tf32"


def why_not() -> str | None:
    """None if products run through cublasLt here, else the reason and what mends it. Imports nvmath."""
    found = library()
    return found if isinstance(found, str) else None


def matmul(a: Any, b: Any, out: Any = None, *, out_dtype: Any = None) -> Any:
    """a b, as the array API has it: vectors, matrices, and batches of matrices that are broadcast.

    Arrays of one dtype (float32, float64, float16 or bfloat16) go through cublasLt and can be captured in a graph.
    Views are read where they lie if the elements of their rows or of their columns are neighbours. Half precision is
    summed in float32. All else is cupy.matmul.

    Args:
        a: (..., m, k), or (k,).
        b: (..., k, n), or (k,).
        out: where the product goes, of its shape and dtype. It must not share memory with a or b.
        out_dtype: float32, where the product of half-precision arrays is to keep its digits; else their own dtype.

    Raises:
        ValueError: the shapes do not fit.
        BackendError: the product can only be had from CuPy, and a graph is being captured.
    """
    char = a.dtype.char
    if char not in TYPES or b.dtype.char != char or not a.ndim or not b.ndim:
        return _other(a, b, out, out_dtype)
    shape = _result_shape(a, b)
    dtype = a.dtype if out_dtype is None else np.dtype(out_dtype)
    if dtype is not a.dtype and dtype != a.dtype and (char not in "eE" or dtype.char != "f"):
        raise BackendError(f"a product of {a.dtype} arrays is {a.dtype} (or float32, of half precision), not {dtype}")
    if out is not None and (out.shape != shape or out.dtype != dtype):
        raise ValueError(f"matmul: out is {out.dtype} of shape {out.shape}; the product is {dtype} of shape {shape}")
    with _on_device_of(a):
        if not a.size or not b.size:
            return _into(out, cupy.zeros(shape, dtype))
        if why_not() is None:
            y = out if out is not None and out.flags.c_contiguous else cupy.empty(shape, dtype)
            # Vectors become matrices of one row, or of one column.
            left = a if a.ndim > 1 else a[None, :]
            right = b if b.ndim > 1 else b[:, None]
            batch = shape[: len(shape) - (a.ndim > 1) - (b.ndim > 1)]
            if _multiply(left, right, y.reshape(*batch, left.shape[-2], right.shape[-1])):
                return y if y is out else _into(out, y)
        if dtype != a.dtype:
            a, b = a.astype(dtype), b.astype(dtype)
        return _into(out, _by_cupy(a, b))


def with_bias(a: Any, b: Any, bias: Any, relu: bool = False) -> Any | None:
    """a b + bias, or its rectified part, in one pass; None if cublasLt cannot do that for these arrays.

    Args:
        a: (m, k).
        b: (k, n).
        bias: (n,), of the same dtype.
        relu: whether negative results become 0. NaN stays NaN.
    """
    if not _may_fuse(a, b) or bias.dtype.char != b.dtype.char or not bias.flags.c_contiguous or bias.data.ptr % 16:
        return None
    with _on_device_of(a):
        device = products_here()
        tf32 = _may_round()
        if relu and not rectifies_rightly(device, a.dtype.char, tf32):
            return None
        y = cupy.empty((a.shape[0], b.shape[1]), a.dtype)
        done = device.run(a, b, y, "RELU_BIAS" if relu else "BIAS", bias.data.ptr, tf32=tf32)
        return y if done else None


def with_column_sums(a: Any, b: Any) -> tuple[Any, Any] | None:
    """(a b, the sums of b's columns) in one pass; None if cublasLt cannot do that for these arrays.

    With a = x^T and b = dy these are the gradients of a linear map's weight and bias.

    Args:
        a: (m, k).
        b: (k, n), in C order.
    """
    # cublasLt sums its A only where it is not transposed: here, where the rows of b are in one piece.
    if not _may_fuse(a, b) or not b.flags.c_contiguous:
        return None
    with _on_device_of(a):
        y = cupy.empty((a.shape[0], b.shape[1]), a.dtype)
        sums = cupy.empty(b.shape[1], a.dtype)
        return (y, sums) if products_here().run(a, b, y, "BGRADA", sums.data.ptr, tf32=_may_round()) else None


def with_activation(a: Any, b: Any, bias: Any, activation: str) -> tuple[Any, Any] | None:
    """(f(z), what `through_activation` needs) with z = a b + bias, in one pass; None if cublasLt cannot do that here.

    The second one is made by cublasLt: for relu a mask, a bit for each number, in rows of whole 16 bytes; for
    gelu_tanh z itself, in the first columns of a matrix whose rows may be longer.

    Args:
        a, b, bias: as for `with_bias`.
        activation: f, a name in `product_plans.ACTIVATIONS`.
    """
    if not _may_fuse(a, b) or bias.dtype.char != b.dtype.char or not bias.flags.c_contiguous or bias.data.ptr % 16:
        return None
    with _on_device_of(a):
        device = products_here()
        tf32 = _may_round()
        if not activates_rightly(device, activation, a.dtype.char, tf32):
            return None
        y = cupy.empty((a.shape[0], b.shape[1]), a.dtype)
        kept = empty_auxiliary(activation, y)
        epilogue = ACTIVATIONS[activation].forward
        done = device.run(a, b, y, epilogue, bias.data.ptr, auxiliary=kept.data.ptr, tf32=tf32)
        return (y, kept) if done else None


def through_activation(a: Any, b: Any, kept: Any, activation: str) -> tuple[Any, Any] | None:
    """(f'(z) a b, the sums of its columns) in one pass; None if cublasLt cannot do that for these arrays.

    With a = dz and b = W^T of one linear map, these are dz and the bias's gradient of the map before, whose activation
    is f.

    Args:
        a: (m, k).
        b: (k, n).
        kept: what `with_activation` gave for a result of m rows and n columns, in the dtype of a and b.
        activation: f, as it was then.
    """
    if not _may_fuse(a, b):
        return None
    with _on_device_of(a):
        y = cupy.empty((a.shape[0], b.shape[1]), a.dtype)
        sums = cupy.empty(b.shape[1], a.dtype)
        epilogue, place = ACTIVATIONS[activation].backward, kept.data.ptr
        done = products_here().run(a, b, y, epilogue, sums.data.ptr, auxiliary=place, tf32=_may_round())
        return (y, sums) if done else None


def prepare() -> None:
    """Make what products on the current device and stream need, before a capture begins."""
    if why_not() is None:
        products_here().workspace(cupy.cuda.get_current_stream().ptr)


def share_workspace(runs_on: Any, captures: Any) -> Any:
    """Before a capture begins: let it use the workspace of the stream that its graph will run on.

    What runs on that stream, graph or not, follows each other, so that one workspace is enough for all of it. The graph
    holds what this gives.
    """
    return products_here().share_workspace(runs_on.ptr, captures.ptr) if why_not() is None else None


def _may_fuse(a: Any, b: Any) -> bool:
    """Whether an epilogue may be asked for: where others use it, and with a margin."""
    if a.dtype.char not in TYPES or a.dtype.char != b.dtype.char or a.ndim != 2 or b.ndim != 2:
        return False
    _result_shape(a, b)
    if not (_in_one_piece(a) and _in_one_piece(b)):
        return False
    return min(a.shape[1], b.shape[1]) > 1 and a.shape[0] > 0 and why_not() is None


def _in_one_piece(x: Any) -> bool:
    return bool(x.flags.c_contiguous or x.flags.f_contiguous)


def _result_shape(a: Any, b: Any) -> tuple[int, ...]:
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: {a.shape[-1]} columns, {inner} rows")
    if a.ndim <= 2 and b.ndim <= 2:
        batch: tuple[int, ...] = ()
    else:
        try:
            batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ValueError(f"matmul: the batch axes of shapes {a.shape} and {b.shape} do not fit") from None
    return batch + (a.shape[-2:-1] if a.ndim > 1 else ()) + (b.shape[-1:] if b.ndim > 1 else ())


def _into(out: Any, y: Any) -> Any:
    if out is None:
        return y
    out[...] = y.reshape(out.shape)
    return out


_HERE = contextlib.nullcontext()


def _on_device_of(x: Any) -> contextlib.AbstractContextManager[Any]:
    number = x.data.device_id
    if number == cupy.cuda.runtime.getDevice():
        return _HERE
    block: contextlib.AbstractContextManager[Any] = cupy.cuda.Device(number)
    return block


# Layouts


def _batch_stride(x: Any, batch: tuple[int, ...]) -> int | None:
    """Elements from one matrix to the next where x is broadcast to the batch axes; None if that is no fixed number."""
    missing = len(batch) + 2 - x.ndim
    stride = span = None
    for axis in range(len(batch) - 1, -1, -1):
        length = batch[axis]
        if length == 1:
            continue
        broadcast = axis < missing or x.shape[axis - missing] == 1
        step = 0 if broadcast else x.strides[axis - missing]
        if stride is None:
            stride = step
        elif step != span:
            return None
        span = step * length
    size = x.dtype.itemsize
    if stride is None:
        return 0
    return None if stride < 0 or stride % size else stride // size


def _multiply(a: Any, b: Any, y: Any) -> bool:
    """y = a b for matrices or batches of them, y in C order. False if cublasLt has no algorithm for it."""
    device = products_here()
    batch = y.shape[:-2]
    if not batch:
        return device.run(a, b, y, tf32=_may_round())
    if b.size == b.shape[-2] * b.shape[-1]:
        # One b for all: the matrices of a, one below the other, are a single one, if they lie like that.
        rows = _stacked(a, y)
        if rows is not None:
            return device.run(rows, b.reshape(b.shape[-2:]), y.reshape(-1, y.shape[-1]), tf32=_may_round())
    a, a_stride = _evenly(a, batch)
    b, b_stride = _evenly(b, batch)
    y_stride = y.shape[-2] * y.shape[-1]
    strides = a_stride, b_stride, y_stride
    return device.run(a, b, y, batch=y.size // y_stride, strides=strides, tf32=_may_round())


def _stacked(a: Any, y: Any) -> Any | None:
    """a as one matrix with the rows of y, without a copy; None if it cannot be seen as one."""
    if a.shape[:-1] != y.shape[:-1]:
        return None
    if a.flags.c_contiguous:
        return a.reshape(-1, a.shape[-1])
    found = layout_of(a)
    if found is None or found[0] or not readable(found[1], a.shape[-1], a.dtype.itemsize):
        return None
    stride = _batch_stride(a, a.shape[:-2])
    if stride is None or stride != a.shape[-2] * found[1]:
        return None
    strides = (found[1] * a.dtype.itemsize, a.dtype.itemsize)
    shape = (a.size // a.shape[-1], a.shape[-1])
    return cupy.ndarray(shape, a.dtype, memptr=a.data, strides=strides)


def _evenly(x: Any, batch: tuple[int, ...]) -> tuple[Any, int]:
    """x, or a copy, whose matrices follow each other evenly along the batch axes; and how far apart they lie."""
    stride = _batch_stride(x, batch)
    if stride is not None and layout_of(x) is not None:
        return x, stride
    if x.size == x.shape[-2] * x.shape[-1]:
        return cupy.ascontiguousarray(x), 0
    x = cupy.ascontiguousarray(cupy.broadcast_to(x, batch + x.shape[-2:]))
    return x, x.shape[-2] * x.shape[-1]


# CuPy's own products


def _other(a: Any, b: Any, out: Any, out_dtype: Any) -> Any:
    """Products of integers, complex numbers, or arrays of two dtypes."""
    if a.ndim and b.ndim and a.dtype != b.dtype:
        common = cupy.result_type(a.dtype, b.dtype)
        if common.char in TYPES:
            return matmul(a.astype(common, copy=False), b.astype(common, copy=False), out, out_dtype=out_dtype)
    y = cupy.matmul(a, b)
    return _into(out, y if out_dtype is None else y.astype(out_dtype, copy=False))


def _by_cupy(a: Any, b: Any) -> Any:
    """cupy.matmul, with what it does badly done around it: batches, and inner products, of half-precision numbers."""
    if cupy.cuda.get_current_stream().is_capturing():
        reason = why_not() or "cublasLt has no algorithm for it"
        raise BackendError(
            f"the product of {a.dtype} arrays of shapes {a.shape} and {b.shape} cannot be captured in a graph: CuPy "
            f"refuses it there, and {reason}"
        )
    shape = _result_shape(a, b)
    if a.dtype.char in "eE" and (max(a.ndim, b.ndim) > 2 or set(shape) <= {1}):
        return _by_cupy(a.astype(cupy.float32), b.astype(cupy.float32)).astype(a.dtype)
    left = a if a.ndim > 1 else a[None, :]
    right = b if b.ndim > 1 else b[:, None]
    if a.dtype.char != "f" or not _may_round():
        return cupy.matmul(left, right).reshape(shape)
    with _cupy_settings:  # CuPy's setting is the process's
        settings = cupy._core._routines_linalg
        before = settings.get_compute_type(np.float32)
        settings.set_compute_type(np.float32, settings.COMPUTE_TYPE_TF32)
        try:
            return cupy.matmul(left, right).reshape(shape)
        finally:
            settings.set_compute_type(np.float32, before)
