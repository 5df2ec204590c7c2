"""How the losses of single elements become one number."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError

REDUCTIONS = ("mean", "sum", "half_sum", "batch_mean", "half_batch_mean")


def reduce_loss(
    xp: Any, losses: Array, weight: Array | None, reduction: str, counts: Array | None = None
) -> tuple[Array, Any]:
    """The reduced loss, and its derivative with respect to `losses` (a number, or an array that broadcasts).

    With l_ij the losses of sample i, w_i its weight (1 if None) and k the number of elements of a sample:
    "mean" = sum w_i l_ij / (k sum w_i); "sum" = sum w_i l_ij; "half_sum" = 1/2 of it;
    "batch_mean" = sum w_i l_ij / (sum w_i); "half_batch_mean" = 1/2 of it.
    Where elements count differently (c_ij, `counts`), "mean" = sum w_i l_ij / (sum w_i c_ij).
    With no sample, or with weights or counts that are all 0, the loss is 0.

    Args:
        xp: the namespace.
        losses: (batch, ...).
        weight: (batch,) or None.
        reduction: one of the five names above.
        counts: of the shape of `losses`, or None; `losses` are taken as multiplied by it already.

    Raises:
        ConfigError: the reduction is unknown.
        ShapeError: there is not one weight for each sample.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction={reduction!r} is unknown; known: {', '.join(REDUCTIONS)}")
    scale = 0.5 if reduction.startswith("half") else 1.0
    elements = 1
    if reduction == "mean":
        for length in losses.shape[1:]:
            elements *= length
        elements = max(elements, 1)
    else:
        counts = None
    if weight is None and counts is None:
        if reduction.endswith("mean"):
            scale = scale / (max(losses.shape[0], 1) * elements)
        return xp.sum(losses) * scale, scale
    if weight is None:
        factor = 1.0 / _nonzero(xp, xp.sum(counts))
        return xp.sum(losses) * factor, factor
    if tuple(weight.shape) != tuple(losses.shape[:1]):
        raise ShapeError(
            f"weight has shape {tuple(weight.shape)}; give one number for each of the {losses.shape[0]} samples"
        )
    weight = xp.astype(weight, losses.dtype, copy=False)
    by_sample = xp.reshape(weight, (weight.shape[0],) + (1,) * (losses.ndim - 1))
    factor = by_sample * scale
    if counts is not None:
        factor = factor / _nonzero(xp, xp.sum(counts * by_sample))
    elif reduction.endswith("mean"):
        factor = factor / (_nonzero(xp, xp.sum(weight)) * float(elements))
    return xp.sum(losses * factor), factor


def check_same_shape(name: str, prediction: Array, target: Array) -> None:
    """Raise ShapeError if the shapes differ: (n, 1) and (n,) would give n^2 residuals, and no error."""
    if prediction.shape != target.shape:
        raise ShapeError(
            f"{name}: the prediction has shape {tuple(prediction.shape)}, the target {tuple(target.shape)}; reshape "
            "one of them, they are compared element by element"
        )


def across_classes(xp: Any, factor: Any) -> Any:
    """The derivative that `reduce_loss` gave for losses (batch, ...), made to broadcast to (batch, ..., classes)."""
    return xp.expand_dims(factor, axis=-1) if getattr(factor, "ndim", 0) > 0 else factor


def _nonzero(xp: Any, total: Array) -> Array:
    """`total` where it is positive, else 1: a sum of losses that are all 0 is then divided by 1, not by 0."""
    return xp.where(total > 0, total, xp.ones_like(total))
