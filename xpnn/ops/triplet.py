"""The triplet loss: what belongs together shall lie closer together than what does not."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.cosine_distance import vector_length
from xpnn.ops.embedding import embedding
from xpnn.ops.reduction import across_classes, check_same_shape, reduce_loss

MININGS = ("hard", "semihard")


@op
def triplet(
    anchor: Array,
    positive: Array,
    negative: Array,
    weight: Array | None = None,
    *,
    margin: float = 1.0,
    squared: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """max(0, d(a, p) - d(a, n) + margin) for each row, with the Euclidean distance d.

    Source: Schroff, Kalenichenko and Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering",
    CVPR 2015, where d is the squared distance. The derivative of |a - p| with respect to a is (a - p) / |a - p|, and 0
    where a = p; that of the square is 2 (a - p). At the kink the slope is that of the positive side.

    Args:
        anchor: (batch, ..., features).
        positive: the same shape: what shall be near.
        negative: the same shape: what shall be farther away.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        margin: by how much.
        squared: True for squared distances.
        reduction: as for `mse`, with rows for elements.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (danchor, dpositive, dnegative, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_same_shape("triplet", positive, anchor)
    check_same_shape("triplet", negative, anchor)
    xp = namespace(anchor)
    losses, losses_vjp = _row_losses(xp, anchor, positive, negative, margin, squared)
    value, factor = reduce_loss(xp, losses, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        return *losses_vjp(factor * dy), None

    return value, vjp


@op
def triplet_mining(
    embeddings: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    margin: float = 1.0,
    mining: str = "hard",
    squared: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """`triplet` of each row of a batch with the row of its own label, and the one of another label, that are hardest.

    The positive is the farthest row of the same label. The negative, for "hard", is the nearest row of another label
    (Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv:1703.07737, 2017,
    their "batch hard"); for "semihard", the nearest of those that are farther away than the positive, and the farthest
    one where there is none (after Schroff, Kalenichenko and Philbin, "FaceNet", CVPR 2015). The first of equal ones
    wins. Which rows they are is a constant for the derivative.

    A row that has no other row of its label in the batch, or none of another label, loses nothing and does not count.

    Args:
        embeddings: (batch, features).
        labels: integers (batch,).
        weight: (batch,), one factor for each row as an anchor, or None.
        margin: as for `triplet`.
        mining: "hard" or "semihard".
        squared: as for `triplet`.
        reduction: as for `mse`; "mean" is over the rows that count.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dembeddings, None, None).

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: the mining is unknown.
    """
    if embeddings.ndim != 2 or tuple(labels.shape) != tuple(embeddings.shape[:1]):
        raise ShapeError(
            f"triplet_mining: embeddings {tuple(embeddings.shape)}, labels {tuple(labels.shape)}; give embeddings of "
            "shape (batch, features) and one label for each"
        )
    if mining not in MININGS:
        raise ConfigError(f"mining={mining!r} is unknown; choose {' or '.join(map(repr, MININGS))}")
    xp = namespace(embeddings)
    if embeddings.shape[0] == 0:
        value, _ = reduce_loss(xp, xp.sum(embeddings, axis=-1), weight, reduction)
        return value, lambda dy: (xp.zeros_like(embeddings), None, None)
    positives, negatives, counts = _mined(xp, embeddings, labels, mining)
    positive, positive_vjp = embedding(embeddings, positives)
    negative, negative_vjp = embedding(embeddings, negatives)
    losses, losses_vjp = _row_losses(xp, embeddings, positive, negative, margin, squared)
    losses = xp.where(counts, losses, xp.zeros_like(losses))
    value, factor = reduce_loss(xp, losses, weight, reduction, xp.astype(counts, embeddings.dtype))

    def vjp(dy: Any) -> tuple[Any, ...]:
        scale = xp.where(counts, factor * dy, xp.zeros_like(losses))
        danchor, dpositive, dnegative = losses_vjp(scale)
        return danchor + positive_vjp(dpositive)[0] + negative_vjp(dnegative)[0], None, None

    return value, vjp


def _row_losses(
    xp: Any, anchor: Array, positive: Array, negative: Array, margin: float, squared: bool
) -> tuple[Array, Vjp]:
    """The losses of the rows, and their vjp, with a cotangent for each row or one number for all."""
    to_positive, to_negative = anchor - positive, anchor - negative
    near, near_slope = _distance(xp, to_positive, squared)
    far, far_slope = _distance(xp, to_negative, squared)
    margins = near - far + margin

    def vjp(dlosses: Any) -> tuple[Any, ...]:
        dlosses = xp.where(margins >= 0, dlosses + xp.zeros_like(margins), xp.zeros_like(margins))
        by_row = across_classes(xp, dlosses)
        dnear, dfar = by_row * near_slope, by_row * far_slope
        return dnear - dfar, -dnear, dfar

    return xp.maximum(margins, 0.0), vjp


def _distance(xp: Any, difference: Array, squared: bool) -> tuple[Array, Array]:
    """The length of each row of `difference`, or its square, and the derivative with respect to the row."""
    if squared:
        return xp.sum(difference * difference, axis=-1), 2.0 * difference
    length = vector_length(xp, difference)
    slope = difference / xp.where(length > 0, length, xp.ones_like(length))
    return xp.squeeze(length, axis=-1), slope


def _mined(xp: Any, embeddings: Array, labels: Array, mining: str) -> tuple[Array, Array, Array]:
    """For each row, the numbers of its positive and of its negative, and whether it has both."""
    moved = embeddings - embeddings[:1, ...]  # what all rows have in common would cost digits in the difference below
    squares = xp.sum(moved * moved, axis=-1)
    # |a - b|^2, up to rounding: good enough to choose by, and made of one product
    distances = squares[:, None] + squares[None, :] - 2.0 * xp.matmul(moved, moved.T)
    same = labels[:, None] == labels[None, :]
    numbers = xp.arange(labels.shape[0], dtype=xp.int32, device=device(labels))
    itself = numbers[:, None] == numbers[None, :]
    to_positives = xp.where(same & ~itself, distances, float("-inf"))
    to_negatives = xp.where(same, float("inf"), distances)
    positives = xp.argmax(to_positives, axis=1)
    negatives = xp.argmin(to_negatives, axis=1)
    if mining == "semihard":
        farther = distances > xp.max(to_positives, axis=1, keepdims=True)
        semihard = xp.where(farther, to_negatives, float("inf"))
        any_semihard = xp.any(farther & ~same, axis=1)
        farthest = xp.argmax(xp.where(same, float("-inf"), distances), axis=1)
        negatives = xp.where(any_semihard, xp.argmin(semihard, axis=1), farthest)
    return positives, negatives, xp.any(same & ~itself, axis=1) & xp.any(~same, axis=1)
