"""Ops on float16 and bfloat16 arrays: they compute in float32 and round their results.

A body of an op knows float32 and float64. On a backend with half-precision arrays, dispatch puts `in_float32` in
front of it: what comes in half precision is widened (exactly), the body computes, and each result is rounded once.
What a vjp closes over stays float32. So an op loses no more than one rounding, wherever it sums or subtracts inside.

A body that takes half-precision arrays itself (a CUDA kernel that widens in registers, an op that only moves numbers
about) says so with `@handles_half` and is called as it is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from xpnn.dispatch import HALF_DTYPES, Body, Vjp, namespace

Function = TypeVar("Function", bound=Callable[..., Any])


def handles_half(body: Function) -> Function:
    """Mark a body of an op: it takes half-precision arrays itself, also mixed with float32 ones. Returns the body."""
    setattr(body, "handles_half", True)  # noqa: B010 (a function's type has no such attribute)
    return body


def in_float32(body: Body) -> Body:
    """`body` for half-precision arrays too: it computes in float32, and each result is rounded once.

    - If any argument is a half-precision array, all of them are widened to float32, and every float32 result is
      rounded to that half precision; bool and integer results stay as they are.
    - Each gradient is rounded to the dtype of its argument; cotangents may come in either dtype.
    - Without a half-precision argument, the body is called as it is.

    A body that is marked by `handles_half` is given back itself.
    """
    if getattr(body, "handles_half", False):
        return body

    known = HALF_DTYPES

    @functools.wraps(body)
    def in_either(*arguments: Any, **options: Any) -> tuple[Any, Vjp]:
        for x in arguments:  # every call of an op on float32 arrays comes by here
            half = known[type(x)]
            if half and x.dtype in half:
                return widening(x.dtype, arguments, options)
        return body(*arguments, **options)

    def widening(half: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Vjp]:
        value, wide_vjp = body(*[widened(x) for x in arguments], **options)
        # The arguments for which the vjp has an entry; their dtypes are kept, they themselves need not be.
        dtypes = [getattr(x, "dtype", None) for x in arguments if x is None or hasattr(x, "shape")]

        def vjp(cotangents: Any) -> tuple[Any, ...]:
            several = isinstance(cotangents, tuple)
            gradients = wide_vjp(tuple(map(widened, cotangents)) if several else widened(cotangents))
            # Optional arrays that were left out have an entry, None, behind all others.
            return tuple(map(rounded, gradients, itertools.chain(dtypes, itertools.repeat(None))))

        if isinstance(value, tuple):
            return tuple(rounded(part, half) for part in value), vjp
        return rounded(value, half), vjp

    return in_either


def widened(x: Any) -> Any:
    """A half-precision array as float32; anything else as it is."""
    half = HALF_DTYPES[type(x)]
    if not half or x.dtype not in half:
        return x
    xp = namespace(x)
    return xp.astype(x, xp.float32)


def rounded(x: Any, dtype: Any) -> Any:
    """A float32 array in `dtype`, if that is one of half precision; anything else as it is."""
    if dtype not in HALF_DTYPES[type(x)] or x.dtype == dtype:
        return x
    xp = namespace(x)
    return xp.astype(x, dtype) if x.dtype == xp.float32 else x
