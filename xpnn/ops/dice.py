"""The Dice loss: how much two regions overlap."""

from __future__ import annotations

import math
from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.labels import one_hot
from xpnn.ops.reduction import reduce_loss


@op
def dice(
    probabilities: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    smooth: float = 1.0,
    squared: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Vjp]:
    """1 - (2 sum of p y + s) / (sum of p + sum of y + s), for each sample and class: one minus the Dice coefficient.

    The sums go over all positions, the axes between batch and classes, so that a small region counts as much as a large
    one. With N and D for numerator and denominator, the derivative is (N / D - 2 y) / D. With `squared` the sums of D
    are of p^2 and y^2, and the derivative is (2 p N / D - 2 y) / D (Milletari, Navab and Ahmadi, "V-Net: Fully
    Convolutional Neural Networks for Volumetric Medical Image Segmentation", 3DV 2016).

    Args:
        probabilities: (batch, ..., classes), numbers in [0, 1]. That is not checked.
        labels: 0, 1 or numbers between, of the same shape; or integers (batch, ...), the class of each position.
        weight: (batch,), one factor per sample, or None; "mean" divides by the sum of the weights.
        smooth: s, positive: the loss of a class that is neither there nor found is 0.
        squared: True for the sums of squares.
        reduction: as for `mse`, with pairs of sample and class for elements.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dprobabilities, None, None).

    Raises:
        ShapeError: the shapes do not fit.
        ConfigError: smooth is not positive.
    """
    if not smooth > 0.0:
        raise ConfigError(f"dice: smooth={smooth!r}; give a positive number, which keeps 0 / 0 away")
    if probabilities.ndim < 2:
        raise ShapeError(f"dice: probabilities of shape {tuple(probabilities.shape)}; give (batch, ..., classes)")
    xp = namespace(probabilities)
    if tuple(labels.shape) == tuple(probabilities.shape[:-1]):
        labels = one_hot(xp, labels, probabilities.shape[-1])
    elif labels.shape != probabilities.shape:
        raise ShapeError(
            f"dice: labels of shape {tuple(labels.shape)} do not fit probabilities of shape "
            f"{tuple(probabilities.shape)}; give one number for each, or one integer for each position"
        )
    batch, classes = probabilities.shape[0], probabilities.shape[-1]
    by_position = (batch, math.prod(probabilities.shape[1:-1]), classes)
    p = xp.reshape(probabilities, by_position)
    y = xp.reshape(xp.astype(labels, probabilities.dtype, copy=False), by_position)
    numerator = 2.0 * xp.sum(p * y, axis=1) + smooth
    denominator = xp.sum(p * p + y * y if squared else p + y, axis=1) + smooth
    coefficients = numerator / denominator
    value, factor = reduce_loss(xp, 1.0 - coefficients, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, ...]:
        scale = xp.expand_dims(factor * dy / denominator, axis=1)
        growth = xp.expand_dims(coefficients, axis=1)
        if squared:
            growth = 2.0 * p * growth
        return xp.reshape((growth - 2.0 * y) * scale, probabilities.shape), None, None

    return value, vjp
