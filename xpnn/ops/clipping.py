"""Norms, and gradients cut down to a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op

_MARGIN = 1e-6
"""Added to a norm before the limit is divided by it, as PyTorch does: the clipped norm stays just below the limit."""


@op
def clip_by_value(x: Array, limit: Any) -> tuple[Array, Vjp]:
    """Each element moved to the nearest number in [-limit, limit].

    Args:
        x: any shape.
        limit: a number, or a 0-d array; > 0.

    Returns:
        The clipped array, and vjp(dy) -> (dx,). The derivative is 1 from -limit to limit, both included, and 0 outside.
    """
    xp = namespace(x)

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(xp.abs(x) <= limit, dy, 0.0),)

    return xp.maximum(xp.minimum(x, limit), -limit), vjp


@op
def global_norm(*blocks: Array) -> tuple[Array, Vjp]:
    """The Euclidean norm of all elements of all blocks, without overflow or underflow.

    Args:
        blocks: arrays of any shapes and one dtype.

    Returns:
        sqrt(sum of squares), a 0-d array; and vjp(dnorm) -> one gradient for each block, dnorm * block / norm (0 where
        the norm is 0).
    """
    scale, length, scaled = _scaled_norm(blocks, at_least_one=False)

    def vjp(dnorm: Array) -> tuple[Array, ...]:
        return tuple(dnorm * unit for unit in _units(scaled, length))

    return scale * length, vjp


@op
def clip_by_norm(x: Array, limit: Any) -> tuple[Array, Vjp]:
    """x, made shorter so that its Euclidean norm is at most `limit`: x * min(1, limit / (norm(x) + 1e-6)).

    Args:
        x: any shape; the norm is that of all its elements.
        limit: a number, or a 0-d array; > 0.

    Returns:
        The clipped array, and vjp(dy) -> (dx,).
    """
    clipped, vjp = _clip((x,), limit)

    def vjp_of_one(dy: Array) -> tuple[Array, ...]:
        return vjp((dy,))

    return clipped[0], vjp_of_one


@op
def clip_by_global_norm(*blocks: Array, limit: Any) -> tuple[tuple[Array, ...], Vjp]:
    """All blocks, made shorter by one factor so that their common norm is at most `limit` (Pascanu et al., ICML 2013).

    The factor is min(1, limit / (norm + 1e-6)).

    Args:
        blocks: arrays of any shapes and one dtype.
        limit: a number, or a 0-d array; > 0.

    Returns:
        A tuple with one clipped array for each block, and vjp(cotangents of these) -> one gradient for each block.
    """
    return _clip(blocks, limit)


def _scaled_norm(blocks: Sequence[Array], at_least_one: bool) -> tuple[Array, Array, tuple[Array, ...]]:
    """(scale, norm of all blocks / scale, blocks / scale); the scale is the largest element, or 1 if that is larger.

    Everything is divided by the scale before it is squared, so that no square overflows.
    """
    xp = namespace(blocks[0])
    filled = [block for block in blocks if math.prod(block.shape)]
    # The sum of an empty array is a 0-d zero of its dtype.
    largest = xp.max(xp.abs(filled[0])) if filled else xp.sum(blocks[0])
    for block in filled[1:]:
        largest = xp.maximum(largest, xp.max(xp.abs(block)))
    # Where nothing is there to scale, or not finite, the norm is 0, infinite or NaN by itself.
    usable = xp.logical_and(largest > (1.0 if at_least_one else 0.0), xp.isfinite(largest))
    scale = xp.where(usable, largest, 1.0)
    scaled = tuple(block / scale for block in blocks)
    squares = xp.zeros_like(largest)
    for block in scaled:
        squares = squares + xp.sum(block * block)
    return scale, xp.sqrt(squares), scaled


def _units(scaled: tuple[Array, ...], length: Array) -> tuple[Array, ...]:
    """The scaled blocks divided by their norm, or by 1 if that is 0."""
    safe = namespace(length).where(length > 0, length, 1.0)
    return tuple(block / safe for block in scaled)


def _clip(blocks: Sequence[Array], limit: Any) -> tuple[tuple[Array, ...], Vjp]:
    """The blocks times min(1, limit / (norm + margin)), all of it in units of the scale."""
    xp = namespace(blocks[0])
    scale, length, scaled = _scaled_norm(blocks, at_least_one=True)
    longer = length + _MARGIN / scale
    # Written so that a NaN in the norm counts as too long and spreads.
    too_long = xp.logical_not(longer <= limit / scale)
    factor = limit / longer
    clipped = tuple(xp.where(too_long, part * factor, block) for part, block in zip(scaled, blocks, strict=True))

    def vjp(cotangents: tuple[Array, ...]) -> tuple[Array, ...]:
        units = _units(scaled, length)
        along = xp.zeros_like(length)
        for dy, unit in zip(cotangents, units, strict=True):
            along = along + xp.sum(dy * unit)
        total_factor = xp.where(too_long, factor / scale, 1.0)
        # The derivative of limit / (norm + margin) by the norm is minus itself divided by norm + margin.
        slope = xp.where(too_long, total_factor * (length / longer) * along, 0.0)
        return tuple(total_factor * dy - slope * unit for dy, unit in zip(cotangents, units, strict=True))

    return clipped, vjp
