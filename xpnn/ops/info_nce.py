"""The contrastive loss InfoNCE: each vector shall find its partner among those of the whole batch."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.cosine_distance import vector_length
from xpnn.ops.reduction import check_same_shape, reduce_loss

_SMALLEST_LENGTH = 1e-8
"""A vector that is shorter is divided by this instead of its length."""


@op
def info_nce(
    first: Array,
    second: Array,
    weight: Array | None = None,
    *,
    temperature: float = 0.1,
    symmetric: bool = True,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """Cross-entropy of "which of the second vectors is the partner of first vector i?": l_i = -log softmax(s_i)_i.

    The scores are cosines over the temperature, s_ij = cos(first_i, second_j) / t. With `symmetric`, the mean of this
    and of the same with first and second exchanged. With P the softmax of the rows, the derivative with respect to
    the scores is P - 1. Sources: van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive
    Coding", arXiv:1807.03748, 2018; with cosines, a temperature and both directions: Radford et al., "Learning
    Transferable Visual Models From Natural Language Supervision", ICML 2021.

    A vector shorter than 1e-8 is divided by that instead of its length. The loss of a sample depends on the others in
    its batch: the larger the batch, the harder the question.

    Args:
        first: (batch, features).
        second: the same shape; row i is the partner of row i.
        weight: (batch,), one factor per pair, or None; "mean" divides by the sum of the weights.
        temperature: t, positive.
        symmetric: False asks in one direction only.
        reduction: as for `mse`, with pairs for elements.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dfirst, dsecond, None).

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: the temperature is not positive.
    """
    check_same_shape("info_nce", first, second)
    if first.ndim != 2:
        raise ShapeError(f"info_nce: got vectors of shape {tuple(first.shape)}; give (batch, features)")
    if not temperature > 0.0:
        raise ConfigError(f"info_nce: temperature={temperature!r}; give a positive number")
    xp = namespace(first)
    if first.shape[0] == 0:
        value, _ = reduce_loss(xp, xp.sum(first, axis=-1), weight, reduction)
        return value, lambda dy: (xp.zeros_like(first), xp.zeros_like(second), None)
    u, u_vjp = _normalized(xp, first)
    v, v_vjp = _normalized(xp, second)
    scores = xp.matmul(u, v.T) / temperature
    numbers = xp.arange(first.shape[0], dtype=xp.int32, device=device(first))
    partners = numbers[:, None] == numbers[None, :]
    losses, probabilities = _losses(xp, scores, partners, 1)
    backwards = None
    if symmetric:
        other_losses, backwards = _losses(xp, scores, partners, 0)
        losses = 0.5 * (losses + other_losses)
    value, factor = reduce_loss(xp, losses, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        by_pair = factor * dy + xp.zeros_like(losses)
        truth = xp.astype(partners, first.dtype)
        dscores = (probabilities - truth) * by_pair[:, None]
        if backwards is not None:
            dscores = 0.5 * (dscores + (backwards - truth) * by_pair[None, :])
        dscores = dscores / temperature
        return u_vjp(xp.matmul(dscores, v)), v_vjp(xp.matmul(dscores.T, u)), None

    return value, vjp


@op
def info_nce_of_views(
    views: Array,
    weight: Array | None = None,
    *,
    temperature: float = 0.1,
    symmetric: bool = True,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """`info_nce` of two views of each sample, which lie beside each other in one array.

    Args:
        views: (batch, 2, features).
        weight: as for `info_nce`.
        temperature: as for `info_nce`.
        symmetric: as for `info_nce`.
        reduction: as for `info_nce`.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dviews, None).

    Raises:
        ShapeError: there are not two views.
        ConfigError: the temperature is not positive.
    """
    if views.ndim != 3 or views.shape[1] != 2:
        raise ShapeError(f"info_nce_of_views: got views of shape {tuple(views.shape)}; give (batch, 2, features)")
    xp = namespace(views)
    value, pair_vjp = info_nce(
        views[:, 0, ...],
        views[:, 1, ...],
        weight,
        temperature=temperature,
        symmetric=symmetric,
        reduction=reduction,
    )

    def vjp(dy: Any) -> tuple[Any, ...]:
        dfirst, dsecond, _ = pair_vjp(dy)
        return xp.stack([dfirst, dsecond], axis=1), None

    return value, vjp


def _normalized(xp: Any, x: Array) -> tuple[Array, Any]:
    """Rows of length 1, and a function from their gradient to that of x: (du - u (u . du)) / |x|."""
    length = vector_length(xp, x)
    divisor = xp.maximum(length, _SMALLEST_LENGTH)
    u = x / divisor

    def vjp(du: Array) -> Array:
        along = xp.where(length > _SMALLEST_LENGTH, xp.sum(u * du, axis=-1, keepdims=True), xp.zeros_like(length))
        return (du - u * along) / divisor

    return u, vjp


def _losses(xp: Any, scores: Array, partners: Array, axis: int) -> tuple[Array, Array]:
    """-log softmax along `axis` at the partners, one for each pair; and the softmax."""
    shifted = scores - xp.max(scores, axis=axis, keepdims=True)
    powers = xp.exp(shifted)
    totals = xp.sum(powers, axis=axis, keepdims=True)
    of_partners = xp.sum(xp.where(partners, shifted, xp.zeros_like(shifted)), axis=axis)
    return xp.log(xp.squeeze(totals, axis=axis)) - of_partners, powers / totals
