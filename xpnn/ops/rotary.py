"""Rotary positions: queries and keys are turned by angles that grow with their position."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError


@op
def rotary(x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> tuple[Array, Vjp]:
    """Pairs of features (a, b) become (a cos - b sin, b cos + a sin): each is turned by the angle of its position.

    The product of a query and a key that were turned so depends on the difference of their positions alone.
    Source: Su, Lu, Pan, Murtadha, Wen and Liu, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
    Neurocomputing 568, 2024 (arXiv:2104.09864, 2021). The gradient is dy turned back. `xpnn.ops.positions` has the
    tables of the angles.

    Args:
        x: (batch, time, heads, size).
        cos: of the angle of each pair, (time, pairs) or (batch, time, pairs) with 2 pairs <= size; features behind the
            first 2 pairs stay as they are.
        sin: of the same shape.
        interleaved: which features make pair number i: 2i and 2i + 1 if True, as in the paper; else i and pairs + i.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, None, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    xp = namespace(x)
    _check_tables(x, cos, sin)
    cos_by_head = xp.expand_dims(cos, axis=-2)
    sin_by_head = xp.expand_dims(sin, axis=-2)

    def vjp(dy: Array) -> tuple[Any, ...]:
        return _turned(xp, dy, cos_by_head, -sin_by_head, interleaved), None, None

    return _turned(xp, x, cos_by_head, sin_by_head, interleaved), vjp


def _turned(xp: Any, x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """x with its pairs turned; tables (..., time, 1, pairs)."""
    pairs = cos.shape[-1]
    turned = 2 * pairs
    if interleaved:
        a, b = x[..., 0:turned:2], x[..., 1:turned:2]
        both = xp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        y = xp.reshape(both, (*x.shape[:-1], turned))
        return y if turned == x.shape[-1] else xp.concat([y, x[..., turned:]], axis=-1)
    a, b = x[..., :pairs], x[..., pairs:turned]
    parts = [a * cos - b * sin, b * cos + a * sin]
    if turned < x.shape[-1]:
        parts.append(x[..., turned:])
    return xp.concat(parts, axis=-1)


def _check_tables(x: Array, cos: Array, sin: Array) -> None:
    given = f"x {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}"
    if x.ndim != 4:
        raise ShapeError(f"rotary: {given}; x must be (batch, time, heads, size)")
    if cos.shape != sin.shape:
        raise ShapeError(f"rotary: {given}; cos and sin must have one shape")
    if cos.ndim not in (2, 3) or tuple(cos.shape[:-1]) not in ((x.shape[1],), tuple(x.shape[:2])):
        raise ShapeError(f"rotary: {given}; the tables must be (time, pairs) or (batch, time, pairs)")
    if 2 * cos.shape[-1] > x.shape[-1]:
        raise ShapeError(f"rotary: {given}; {cos.shape[-1]} pairs need {2 * cos.shape[-1]} features")
