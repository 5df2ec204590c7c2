"""What the bodies of recorded ops are made of: kernels, each as NumPy runs it and by the name of its native form.

A kernel writes its results into arrays that it is given. The NumPy function is the contract: a native kernel
(`xpnn_backends.native`) gives the same results but for rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnn_backends.recording import Kernel, RecordedArray


def _stored(x: RecordedArray) -> tuple[int, RecordedArray] | None:
    """(1, its transpose) for a matrix that is the transpose of one in C order, (0, x) for one in C order; else None."""
    if x.ndim != 2:
        return None
    if x.ghost.flags.c_contiguous:
        return 0, x
    return (1, x.T) if x.ghost.T.flags.c_contiguous else None


def multiplies(dtype: Any) -> int:
    """The address of OpenBLAS's product for a dtype; 0 if there is none."""
    from xpnn_backends.native.machine import blas

    return blas().product(dtype)


def _native_product(a: RecordedArray, b: RecordedArray, out: RecordedArray) -> Any:
    left, right = _stored(a), _stored(b)
    address = multiplies(out.dtype)
    if left is None or right is None or not address:
        return None
    return "product", (address, left[0], right[0], left[1], right[1], out)


PRODUCT = Kernel("product", np.matmul, _native_product)
"""product(a, b, out): the matrix product; a and b may be transposed views."""


def native_linear(name: str) -> Any:
    """native(x, weight, bias, *results) for a linear map: the kernel of that name, if there is a product for it."""

    def native(x: RecordedArray, *operands: RecordedArray) -> Any:
        address = multiplies(x.dtype)
        return (name, (address, x, *operands)) if address else None

    return native
