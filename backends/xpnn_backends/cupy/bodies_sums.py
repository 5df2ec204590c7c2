"""Vectors out of pieces, and the sums over an epoch: what every step does besides its layers."""

from __future__ import annotations

import math
from typing import Any

import cupy

from xpnn.dispatch import Body
from xpnn.half_precision import handles_half
from xpnn_backends.cupy import placement
from xpnn_backends.cupy.kernels import generic, launch
from xpnn_backends.cupy.memory import note_donation

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("sums", "add_to_sums", (total, value)) for total in ("float64", "float32") for value in ("float32", "float64")
]


@handles_half
def pack(*arrays: Any, starts: tuple[int, ...], size: int) -> tuple[Any, Any]:
    """Pieces that a graph had made in their places are not copied; see `placement`."""
    dtype = arrays[0].dtype
    if any(x.dtype != dtype for x in arrays):
        return generic("pack")(*arrays, starts=starts, size=size)
    known = placement.current()
    packed = cupy.zeros(size, dtype=dtype) if known is None else known.vector(arrays, starts, size)
    for x, start in zip(arrays, starts, strict=True):
        part = packed[start : start + x.size]
        if x.size and x.data.ptr != part.data.ptr:
            cupy.copyto(part.reshape(x.shape), x)

    def vjp(dy: Any) -> tuple[Any, ...]:
        return tuple(
            dy[start : start + math.prod(x.shape)].reshape(x.shape) for x, start in zip(arrays, starts, strict=True)
        )

    return packed, vjp


@handles_half
def add_to_sums(total: Any, weights: Any, value: Any, share: Any, *, donate: bool = False) -> tuple[Any, Any]:
    """One kernel; in place, where the sums are given away."""
    names = (total.dtype.name, value.dtype.name)
    plain = isinstance(share, (int, float))
    if total.shape or value.shape or weights.dtype != total.dtype or ("sums", "add_to_sums", names) not in KERNELS:
        return generic("add_to_sums")(total, weights, value, share, donate=donate)
    if not plain and (share.shape or share.dtype != value.dtype):
        return generic("add_to_sums")(total, weights, value, share, donate=donate)
    new = (total, weights)
    if donate:
        note_donation()
    else:
        new = (cupy.empty_like(total), cupy.empty_like(weights))
    factor = float(share) if plain else 0.0
    launch("sums", "add_to_sums", names, 1, 1, (total, weights, value, None if plain else share, factor, *new))

    def vjp(cotangents: Any) -> tuple[Any, ...]:
        return generic("add_to_sums")(total, weights, value, share)[1](cotangents)

    return new, None if donate else vjp


BODIES: dict[str, Body] = {"add_to_sums": add_to_sums, "pack": pack}
