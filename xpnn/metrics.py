"""Metrics: numbers that are watched and not trained on.

A metric adds up sums batch by batch on the device; only the sums are read, once an epoch.
"""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn.config import Configurable
from xpnn.dispatch import Array, namespace


class Metric(Configurable):
    """Base: a subclass gives `add` and `result`.

    Attributes:
        name: the key in histories and in what `evaluate` returns.
    """

    name: ClassVar[str]

    def zero(self) -> tuple[Any, ...]:
        """The sums before the first batch."""
        return (0.0, 0.0)

    def add(self, sums: tuple[Any, ...], prediction: Array, target: Array, weight: Array | None) -> tuple[Any, ...]:
        """The sums after one more batch: arrays on the device, nothing is read."""
        raise NotImplementedError

    def result(self, sums: tuple[Any, ...]) -> Any:
        """The metric from the sums, which are on the host now."""
        raise NotImplementedError


class Accuracy(Metric):
    """The share of samples whose class is right.

    The class is the largest output (the first of equal ones) against an integer label or the largest target; with one
    output, whether output and target are on the same side of the threshold.

    Args:
        threshold: for networks with one output: 0.5 for a probability, 0 for a logit.
    """

    name = "accuracy"

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def add(self, sums: tuple[Any, ...], prediction: Array, target: Array, weight: Array | None) -> tuple[Any, ...]:
        xp = namespace(prediction)
        if prediction.shape[-1] == 1:
            right = (prediction > self.threshold) == (target > 0.5)
        else:
            label = target if target.ndim < prediction.ndim else xp.argmax(target, axis=-1)
            right = xp.argmax(prediction, axis=-1) == xp.astype(label, xp.int64)
        right = xp.astype(right, prediction.dtype)
        return sums[0] + xp.sum(right), sums[1] + float(prediction.shape[0])

    def result(self, sums: tuple[Any, ...]) -> Any:
        return float(sums[0]) / max(float(sums[1]), 1.0)


METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in (Accuracy,)}
