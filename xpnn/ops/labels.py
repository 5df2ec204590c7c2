"""Class labels as the cross-entropies use them: what each class counts in each row."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnn.dispatch import Array, device
from xpnn.errors import ConfigError, ShapeError


class Masses(NamedTuple):
    """What labels ask of the log-probabilities: the loss of a row is -sum over classes of by_class * log p.

    Attributes:
        by_class: (batch, ..., classes).
        total: their sums, (batch, ..., 1); the number 1.0 where labels alone make it so.
        counts: (batch, ...), what a row counts in a mean; None if all count 1.
    """

    by_class: Array
    total: Any
    counts: Array | None


def label_masses(
    xp: Any,
    scores: Array,
    labels: Array,
    class_weights: tuple[float, ...] | None,
    label_smoothing: float,
    ignore_index: int | None,
) -> Masses:
    """The masses of the classes.

    For a label y they are c_k ((1 - s) [k = y] + s / K), and 0 for an ignored label; for soft labels t they are
    c_k ((1 - s) t_k + s / K), with s the label smoothing, c the class weights and K the number of classes. A row of a
    label counts c_y in a mean, a row of soft labels 1; so does PyTorch.

    Args:
        xp: the namespace.
        scores: (batch, ..., classes), whatever the loss is made of.
        labels: integers (batch, ...), or soft labels (batch, ..., classes) of the dtype of `scores`.
        class_weights: one factor per class, or None.
        label_smoothing: in [0, 1].
        ignore_index: the integer label that counts nothing, or None.

    Raises:
        ShapeError: labels and scores do not fit together.
        ConfigError: there are not as many class weights as classes.
    """
    classes = scores.shape[-1]
    if class_weights is not None and len(class_weights) != classes:
        raise ConfigError(
            f"class_weights has {len(class_weights)} numbers and there are {classes} classes; give one each"
        )
    counts = None
    if tuple(labels.shape) == tuple(scores.shape):
        by_class = xp.astype(labels, scores.dtype, copy=False)
        total: Any = None
    elif tuple(labels.shape) == tuple(scores.shape[:-1]):
        by_class = xp.astype(one_hot(xp, labels, classes), scores.dtype)
        counts = label_counts(xp, labels, scores.dtype, class_weights, ignore_index)
        total = 1.0 if counts is None else None
    else:
        raise ShapeError(
            f"labels of shape {tuple(labels.shape)} do not fit scores of shape {tuple(scores.shape)}; give integer "
            f"labels of shape {tuple(scores.shape[:-1])}, or one number per class, {tuple(scores.shape)}"
        )
    if label_smoothing != 0.0:
        by_class = by_class * (1.0 - label_smoothing) + label_smoothing / classes
    if class_weights is not None:
        by_class = by_class * xp.asarray(class_weights, dtype=scores.dtype, device=device(scores))
    if counts is not None and ignore_index is not None:
        by_class = xp.where(xp.expand_dims(labels == ignore_index, axis=-1), xp.zeros_like(by_class), by_class)
    if total is None:
        total = xp.sum(by_class, axis=-1, keepdims=True)
    return Masses(by_class, total, counts)


def label_counts(
    xp: Any, labels: Array, dtype: Any, class_weights: tuple[float, ...] | None, ignore_index: int | None
) -> Array | None:
    """What each integer label counts in a mean: its class weight, 0 if it is ignored; None if all count 1.

    Args:
        xp: the namespace.
        labels: (batch, ...).
        dtype: of the result.
        class_weights: one factor per class, or None.
        ignore_index: the label that counts nothing, or None.
    """
    counts = None
    if class_weights is not None:
        weights = xp.asarray(class_weights, dtype=dtype, device=device(labels))
        is_class = one_hot(xp, labels, len(class_weights))
        counts = xp.sum(xp.where(is_class, weights, xp.zeros_like(weights)), axis=-1)
    if ignore_index is not None:
        kept = labels != ignore_index
        counts = xp.astype(kept, dtype) if counts is None else xp.where(kept, counts, xp.zeros_like(counts))
    return counts


def one_hot(xp: Any, labels: Array, classes: int) -> Array:
    """Bools (batch, ..., classes), True where the class is the label; a row of False for a label out of range."""
    return xp.expand_dims(labels, axis=-1) == xp.arange(classes, dtype=labels.dtype, device=device(labels))


def log_likelihood(xp: Any, masses: Array, log_probabilities: Array) -> Array:
    """sum over classes of mass * log p, (batch, ...); a class of mass 0 adds 0 even where log p is -infinity."""
    zeros = xp.zeros_like(log_probabilities)
    return xp.sum(masses * xp.where(masses != 0, log_probabilities, zeros), axis=-1)
