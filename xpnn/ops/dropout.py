"""Dropout."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.ops.random_mask import random_mask
from xpnn.random import RandomKey, mask_threshold


@op
def dropout(x: Array, key: RandomKey, rate: float) -> tuple[Array, Vjp]:
    """y = x / (1 - p) where the mask keeps x, 0 elsewhere: the mean of y is x (inverted dropout).

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", JMLR 15 (2014). p is `rate`
    rounded to a multiple of 1/65536, so that the scale fits the mask exactly.

    Args:
        x: any shape.
        key: which random bits to use; the same key gives the same mask on every backend.
        rate: probability of 0, in [0, 1).

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).
    """
    xp = namespace(x)
    mask, _ = random_mask(x, key, rate)
    scale = 65536.0 / (65536 - mask_threshold(rate))
    zero = xp.zeros_like(x)
    y = xp.where(mask, x, zero) * scale

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(mask, dy, zero) * scale,)

    return y, vjp
