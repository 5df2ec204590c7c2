"""Metrics: numbers that are watched and not trained on.

A metric adds up sums batch by batch on the device; only the sums are read, once an epoch.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any, ClassVar

from xpnn.config import Configurable
from xpnn.dispatch import Array, device, namespace
from xpnn.errors import ConfigError
from xpnn.losses.loss import Loss

Sums = tuple[Any, ...]


class Metric(Configurable):
    """Base: a subclass gives `add` and `result`, and `sum_shapes` if its sums are not two numbers.

    The sums are arrays on the device, in float64 where that exists. They are zero before the first batch.

    Attributes:
        name: the key in histories and in what `evaluate` returns.
        higher_is_better: which way is up, for early stopping.
    """

    name: str
    higher_is_better: ClassVar[bool] = False

    def resolve(self, loss: Loss, output_shape: tuple[int, ...]) -> Metric:
        """The metric, made ready for the loss that it stands beside; self if it depends on neither argument.

        Raises ConfigError if it makes no sense there.
        """
        return self

    def sum_shapes(self, output_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shape of each sum; two numbers by default."""
        return ((), ())

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        """The sums after one more batch: arrays on the device, nothing is read.

        Args:
            sums: the sums so far.
            prediction: (batch, *output_shape).
            target: as the loss's `prepare` returned it: of that shape, or integer labels (batch, ...).
            weight: (batch,) sample weights, or None.
        """
        raise NotImplementedError

    def result(self, sums: Sums) -> Any:
        """The metric from the sums, which are on the host now (floats and host arrays)."""
        raise NotImplementedError


class _ClassMetric(Metric):
    """Base of the metrics that compare classes.

    The class of a sample is its largest output (the first of equal ones). With one output, or with a binary loss, each
    output is a question of its own: yes if it is above the threshold.
    """

    _binary: bool = False
    _threshold: float = 0.5
    _ignore_index: int | None = None

    def resolve(self, loss: Loss, output_shape: tuple[int, ...]) -> Metric:
        if not output_shape:
            raise ConfigError(
                f"metric {self.name!r} needs a network whose samples have outputs; they are single numbers"
            )
        if not loss.compares_classes:
            raise ConfigError(
                f"metric {self.name!r} compares the largest output with a class, and loss {type(loss).__name__} has no "
                "such targets; leave the metric out"
            )
        resolved = copy.copy(self)
        resolved._binary = output_shape[-1] == 1 or loss.name == "hinge" or loss.name.startswith("binary")
        given = getattr(self, "threshold", None)
        resolved._threshold = _yes_above(loss) if given is None else float(given)
        resolved._ignore_index = getattr(loss, "ignore_index", None)
        return resolved

    def _labels(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """(predicted, true) classes of one shape: bools where each output is a question, else integers."""
        xp = namespace(prediction)
        if self._binary:
            return prediction > self._threshold, xp.reshape(target, prediction.shape) > 0.5
        label = xp.argmax(target, axis=-1) if target.ndim == prediction.ndim else target
        return xp.argmax(prediction, axis=-1), label

    def _weights(self, label: Array, prediction: Array, weight: Array | None) -> Array:
        """How much each label counts, in the prediction's dtype: 0 where it is to be ignored."""
        xp = namespace(prediction)
        ones = xp.ones(label.shape, dtype=prediction.dtype, device=device(prediction))
        if weight is not None:
            ones = ones * xp.reshape(weight, (weight.shape[0],) + (1,) * (label.ndim - 1))
        if self._ignore_index is not None and not self._binary:
            ones = xp.where(label == self._ignore_index, xp.zeros_like(ones), ones)
        return ones


def _yes_above(loss: Loss) -> float:
    """The output of one unit from which on the answer is yes."""
    if loss.expects == "logits":
        return 0.0
    return math.log(0.5) if loss.expects == "log_probabilities" else 0.5


class Accuracy(_ClassMetric):
    """The share of samples whose class is right.

    The class is the largest output (the first of equal ones) against an integer label or the largest target. With one
    output: whether output and target are on the same side of the threshold. Labels that the loss ignores do not count.

    Args:
        threshold: for one output; without it 0 if the loss takes logits, else 0.5.
    """

    name = "accuracy"
    higher_is_better = True

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        xp = namespace(prediction)
        predicted, label = self._labels(prediction, target)
        if weight is None and self._ignore_index is None:
            right = xp.sum(xp.astype(predicted == label, prediction.dtype))
            return sums[0] + right, sums[1] + float(math.prod(label.shape))
        counts = self._weights(label, prediction, weight)
        right = xp.where(predicted == label, counts, xp.zeros_like(counts))
        return sums[0] + xp.sum(right), sums[1] + xp.sum(counts)

    def result(self, sums: Sums) -> float:
        return _ratio(sums[0], sums[1])


class TopK(_ClassMetric):
    """The share of samples whose true class is among the k largest outputs.

    Of equal outputs the first ones come first, so that the answer is the same everywhere.

    Args:
        k: how many guesses a sample has; its name is "top_k" with the number put in, "top_5".

    Raises:
        ConfigError: k is no positive integer, or not smaller than the number of classes.
    """

    name = "top_5"
    higher_is_better = True

    def __init__(self, k: int = 5) -> None:
        if type(k) is not int or k < 1:
            raise ConfigError(f"TopK(k={k!r}): k must be a positive integer")
        self.k = k
        self.name = f"top_{k}"

    def resolve(self, loss: Loss, output_shape: tuple[int, ...]) -> Metric:
        resolved = super().resolve(loss, output_shape)
        if output_shape[-1] <= self.k:
            raise ConfigError(
                f"metric {self.name!r} would always be 1: the network has {output_shape[-1]} outputs; choose k smaller"
            )
        return resolved

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        xp = namespace(prediction)
        label = xp.argmax(target, axis=-1) if target.ndim == prediction.ndim else target
        counts = self._weights(label, prediction, weight)
        classes = xp.arange(prediction.shape[-1], dtype=label.dtype, device=device(prediction))
        # An ignored label may lie outside the classes: it looks at class 0, and counts nothing.
        known = (label >= 0) & (label < prediction.shape[-1])
        index = xp.expand_dims(xp.where(known, label, xp.zeros_like(label)), axis=-1)
        own = xp.take_along_axis(prediction, index, axis=-1)
        behind = (prediction < own) | ((prediction == own) & (classes >= index))
        # What is not behind is ahead, so that a NaN, which no comparison finds, is never among the best.
        rank = xp.sum(xp.astype(~behind, prediction.dtype), axis=-1)
        right = xp.where((rank < self.k) & known, counts, xp.zeros_like(counts))
        return sums[0] + xp.sum(right), sums[1] + xp.sum(counts)

    def result(self, sums: Sums) -> float:
        return _ratio(sums[0], sums[1])


class ConfusionMatrix(_ClassMetric):
    """How often (by weight) class i was taken for class j, as nested lists: entry [i][j].

    With one output the classes are 0 ("no") and 1 ("yes").

    Args:
        threshold: as in `Accuracy`.
    """

    name = "confusion_matrix"

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def sum_shapes(self, output_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        classes = 2 if self._binary else output_shape[-1]
        return ((classes, classes),)

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        xp = namespace(prediction)
        predicted, label = self._labels(prediction, target)
        counts = xp.reshape(self._weights(label, prediction, weight), (-1, 1))
        true = _one_hot(xp, label, sums[0].shape[0], prediction.dtype) * counts
        taken_for = _one_hot(xp, predicted, sums[0].shape[0], prediction.dtype)
        return (sums[0] + xp.matmul(xp.matrix_transpose(true), taken_for),)

    def result(self, sums: Sums) -> Any:
        rows: list[list[float]] = sums[0].tolist()
        whole = all(value.is_integer() for row in rows for value in row)
        return [[int(value) for value in row] for row in rows] if whole else rows


def _one_hot(xp: Any, label: Array, classes: int, dtype: Any) -> Array:
    """(labels, classes) of 0 and 1; a label outside the classes gives a row of zeros."""
    if xp.isdtype(label.dtype, "bool"):
        yes = xp.astype(xp.reshape(label, (-1, 1)), dtype)
        return xp.concat([1.0 - yes, yes], axis=1)
    numbers = xp.arange(classes, dtype=label.dtype, device=device(label))
    return xp.astype(xp.reshape(label, (-1, 1)) == xp.expand_dims(numbers, axis=0), dtype)


class _FromConfusion(ConfusionMatrix):
    """Base of precision, recall and F1: a number made of hits, wrong alarms and misses."""

    higher_is_better = True

    def __init__(self, average: str = "auto", threshold: float | None = None) -> None:
        if average not in ("auto", "binary", "macro", "micro"):
            raise ConfigError(f'average={average!r} is unknown; choose "auto", "binary", "macro" or "micro"')
        self.average = average
        self.threshold = threshold

    @staticmethod
    def score(hits: float, wrong_alarms: float, misses: float) -> float:
        """The measure of one class; 0 where it would be 0/0."""
        raise NotImplementedError

    def resolve(self, loss: Loss, output_shape: tuple[int, ...]) -> Metric:
        resolved = super().resolve(loss, output_shape)
        if self.average == "binary" and resolved.sum_shapes(output_shape) != ((2, 2),):
            raise ConfigError(f'average="binary" wants two classes, the network has {output_shape[-1]}; say "macro"')
        return resolved

    def result(self, sums: Sums) -> float:
        matrix = sums[0]
        hits = [float(matrix[k, k]) for k in range(len(matrix))]
        wrong_alarms = [float(matrix[:, k].sum()) - hits[k] for k in range(len(matrix))]
        misses = [float(matrix[k, :].sum()) - hits[k] for k in range(len(matrix))]
        if self.average == "binary" or (self.average == "auto" and len(matrix) == 2):
            return self.score(hits[1], wrong_alarms[1], misses[1])
        if self.average == "micro":
            return self.score(sum(hits), sum(wrong_alarms), sum(misses))
        seen = [counts for counts in zip(hits, wrong_alarms, misses, strict=True) if any(counts)]
        return _ratio(sum(self.score(*counts) for counts in seen), len(seen))


class Precision(_FromConfusion):
    """Of the samples that were said to be of a class, the share that is: hits / (hits + wrong alarms).

    Args:
        average: "binary" looks at class 1 alone; "macro" is the mean over all classes that occur (as label or as
            answer); "micro" adds the counts of all classes up first; "auto" is binary with two classes, else macro.
        threshold: as in `Accuracy`.
    """

    name = "precision"

    @staticmethod
    def score(hits: float, wrong_alarms: float, misses: float) -> float:
        return _ratio(hits, hits + wrong_alarms)


class Recall(_FromConfusion):
    """Of the samples of a class, the share that was found: hits / (hits + misses).

    Args:
        average: as in `Precision`.
        threshold: as in `Accuracy`.
    """

    name = "recall"

    @staticmethod
    def score(hits: float, wrong_alarms: float, misses: float) -> float:
        return _ratio(hits, hits + misses)


class F1(_FromConfusion):
    """The harmonic mean of precision and recall: 2 hits / (2 hits + wrong alarms + misses).

    Args:
        average: as in `Precision`.
        threshold: as in `Accuracy`.
    """

    name = "f1"

    @staticmethod
    def score(hits: float, wrong_alarms: float, misses: float) -> float:
        return _ratio(2 * hits, 2 * hits + wrong_alarms + misses)


class _Regression(Metric):
    """Base of the metrics that compare numbers element by element."""

    def __init__(self) -> None:
        pass

    def _residual(self, sums: Sums, prediction: Array, target: Array) -> tuple[Array, Array]:
        """(residual, target), in the dtype of the sums: squares may need its range."""
        if target.shape != prediction.shape:
            raise ConfigError(
                f"metric {self.name!r} compares numbers: outputs have shape {tuple(prediction.shape)}, targets "
                f'{tuple(target.shape)}; with class labels use "accuracy"'
            )
        xp = namespace(prediction)
        target = xp.astype(target, sums[0].dtype)
        return xp.astype(prediction, sums[0].dtype) - target, target

    @staticmethod
    def _add_mean(sums: Sums, losses: Array, weight: Array | None) -> Sums:
        xp = namespace(losses)
        elements = float(math.prod(losses.shape[1:]))
        if weight is None:
            return sums[0] + xp.sum(losses), sums[1] + losses.shape[0] * elements
        factor = xp.reshape(weight, (weight.shape[0],) + (1,) * (losses.ndim - 1))
        return sums[0] + xp.sum(losses * factor), sums[1] + xp.sum(weight) * elements


class MeanAbsoluteError(_Regression):
    """The mean of |prediction - target| over all elements."""

    name = "mae"

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        residual, _ = self._residual(sums, prediction, target)
        return self._add_mean(sums, namespace(residual).abs(residual), weight)

    def result(self, sums: Sums) -> float:
        return _ratio(sums[0], sums[1])


class RootMeanSquaredError(_Regression):
    """The square root of the mean of (prediction - target)^2 over all elements."""

    name = "rmse"

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        residual, _ = self._residual(sums, prediction, target)
        return self._add_mean(sums, residual * residual, weight)

    def result(self, sums: Sums) -> float:
        return math.sqrt(_ratio(sums[0], sums[1]))


class R2(_Regression):
    """The coefficient of determination, 1 - sum (target - prediction)^2 / sum (target - mean)^2.

    With several outputs, the mean of theirs. A target that never changes gives 1 if it is hit exactly, else 0.

    The spread of the targets is put together from the batches' own means and spreads, which loses nothing to
    cancellation where the mean is large (Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
    The American Statistician 37, 1983).
    """

    name = "r2"
    higher_is_better = True

    def sum_shapes(self, output_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return ((), output_shape, output_shape, output_shape)

    def add(self, sums: Sums, prediction: Array, target: Array, weight: Array | None) -> Sums:
        total, mean, spread, squares = sums
        residual, target = self._residual(sums, prediction, target)
        xp = namespace(target)
        if weight is None:
            weight = xp.ones((target.shape[0],), dtype=target.dtype, device=device(target))
        weight = xp.astype(weight, target.dtype)
        factor = xp.reshape(weight, (weight.shape[0],) + (1,) * (target.ndim - 1))
        here = xp.sum(weight)
        some = xp.where(here > 0, here, xp.ones_like(here))
        mean_here = xp.sum(target * factor, axis=0) / some
        deviation = target - mean_here
        spread_here = xp.sum(deviation * deviation * factor, axis=0)
        new_total = total + here
        share = here / xp.where(new_total > 0, new_total, xp.ones_like(new_total))
        step = mean_here - mean
        return (
            new_total,
            mean + step * share,
            spread + spread_here + step * step * (total * share),
            squares + xp.sum(residual * residual * factor, axis=0),
        )

    def result(self, sums: Sums) -> float:
        _, _, spread, squares = sums
        scores = []
        for total, left in zip(_flat(spread), _flat(squares), strict=True):
            scores.append(1.0 - left / total if total > 0 else float(left == 0))
        return _ratio(sum(scores), len(scores))


def _flat(values: Any) -> list[float]:
    return [float(values)] if isinstance(values, float) else values.reshape(-1).tolist()


def _ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; 0 where nothing was counted."""
    return float(numerator / denominator) if denominator else 0.0


METRICS: dict[str, type[Metric]] = {
    metric.name: metric
    for metric in (Accuracy, TopK, Precision, Recall, F1, ConfusionMatrix, MeanAbsoluteError, RootMeanSquaredError, R2)
}


def metric_from(value: Any) -> Metric:
    """A metric from itself or from its name; "top_3" is `TopK(3)`. Raises ConfigError for anything else."""
    if isinstance(value, Metric):
        return value
    top = re.fullmatch(r"top_([1-9]\d*)", value) if isinstance(value, str) else None
    if top:
        return TopK(int(top[1]))
    if isinstance(value, str) and value in METRICS:
        return METRICS[value]()
    known = ", ".join(sorted(METRICS))
    if isinstance(value, type) and issubclass(value, Metric):
        raise ConfigError(f"metrics holds the class {value.__name__}; write {value.__name__}()")
    raise ConfigError(f"metrics holds {value!r}; give names ({known}) or xpnn.metrics.Metric objects")


def metrics_from(values: Any) -> tuple[Metric, ...]:
    """Metrics from a list of names and objects. Raises ConfigError if one is unknown or two have one name."""
    if isinstance(values, (str, Metric)):
        values = [values]
    try:
        found = tuple(metric_from(value) for value in values)
    except TypeError:
        raise ConfigError(f'metrics={values!r} is no list; write metrics=["accuracy"]') from None
    names = ["loss", *(metric.name for metric in found)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two metrics are called {name!r}; give one of them another `name`")
    return found
