"""How the losses of single elements become one number."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array
from xpnn.errors import ConfigError

REDUCTIONS = ("mean", "sum", "half_sum", "batch_mean", "half_batch_mean")


def reduce_loss(xp: Any, losses: Array, weight: Array | None, reduction: str) -> tuple[Array, Any]:
    """The reduced loss, and its derivative with respect to `losses` (a number, or an array that broadcasts).

    With l_ij the losses of sample i, w_i its weight (1 if None) and k the number of elements of a sample:
    "mean" = sum w_i l_ij / (k sum w_i); "sum" = sum w_i l_ij; "half_sum" = 1/2 of it;
    "batch_mean" = sum w_i l_ij / (sum w_i); "half_batch_mean" = 1/2 of it.
    With no sample, or with weights that are all 0, the loss is 0.

    Args:
        xp: the namespace.
        losses: (batch, ...).
        weight: (batch,) or None.
        reduction: one of the five names above.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction={reduction!r} is unknown; known: {', '.join(REDUCTIONS)}")
    scale = 0.5 if reduction.startswith("half") else 1.0
    elements = 1
    if reduction == "mean":
        for length in losses.shape[1:]:
            elements *= length
        elements = max(elements, 1)
    if weight is None:
        if reduction.endswith("mean"):
            scale = scale / (max(losses.shape[0], 1) * elements)
        return xp.sum(losses) * scale, scale
    factor = xp.reshape(weight, (weight.shape[0],) + (1,) * (losses.ndim - 1)) * scale
    if reduction.endswith("mean"):
        total = xp.sum(weight)
        factor = factor / (xp.where(total > 0, total, xp.ones_like(total)) * float(elements))
    return xp.sum(losses * factor), factor
