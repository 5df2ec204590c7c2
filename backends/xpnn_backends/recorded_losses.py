"""Bodies of the losses for recorded arrays: one or two kernels for the value, one for each gradient.

What they leave to the generic bodies: arrays of different dtypes, no elements, weights of a wrong length, one weight of
the positive labels for each output, and soft labels or smoothing where the loss takes no logits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnn.ops.labels import label_masses
from xpnn.ops.reduction import REDUCTIONS
from xpnn_backends import kernels_losses as kernels
from xpnn_backends.kernels_optimizers import BLOCK, blocks_of
from xpnn_backends.recorded_bodies import _body, _is_number
from xpnn_backends.recording import NAMESPACE, Kernel, RecordedArray, Recorder, constant


class _Reduction:
    """How the losses of elements or rows become one number: what the kernels' common operands are.

    Args:
        recorder: the recorder.
        dtype: of the losses.
        weight: a weight for each sample or row, or None.
        counted: the numbers by whose sum the loss is divided, or None.
        factor: what the loss is multiplied with.
    """

    def __init__(self, recorder: Recorder, dtype: Any, weight: Any, counted: Any, factor: float) -> None:
        nothing = constant(np.zeros(0, dtype))
        self.recorder = recorder
        self.operands = (nothing if weight is None else weight, nothing if counted is None else counted)
        self.factor = factor
        self.dtype = dtype

    def value(
        self, kernel: Kernel, arguments: tuple[Any, ...], results: tuple[Any, ...], sums: int, split: bool
    ) -> Any:
        """Write down kernel(*arguments, weight, counted, factor, *results, sums, value), and the total of the sums if
        the kernel may be split among threads."""
        recorder = self.recorder
        partial = recorder.empty((sums,), np.dtype(np.float64))
        value = recorder.empty((), self.dtype)
        wanted = constant(np.zeros(0, self.dtype)) if split else value
        recorder.call(kernel, *arguments, *self.operands, self.factor, *results, partial, wanted)
        if split:
            recorder.call(kernels.LOSS_TOTAL, partial, self.operands[1], self.factor, value)
        return value

    def gradient(self, kernel: Kernel, arguments: tuple[Any, ...], shape: tuple[int, ...], dy: Any, sign: float) -> Any:
        """Write down kernel(*arguments, weight, counted, sign * dy * factor, gradient)."""
        by_number = _is_number(dy)
        gradient = self.recorder.empty(shape, self.dtype)
        factor = (dy if by_number else 1.0) * (sign * self.factor)
        self.recorder.call(kernel, *arguments, *self.operands, factor, gradient)
        return gradient if by_number else gradient * dy


def _sample_weight(recorder: Recorder, weight: Any, like: Any) -> RecordedArray:
    """The weight in the dtype of the losses, in C order."""
    return recorder.contiguous(weight if weight.dtype == like.dtype else NAMESPACE.astype(weight, like.dtype))


def _element_reduction(recorder: Recorder, prediction: Any, weight: Any, reduction: str) -> _Reduction | None:
    """That of a loss of single elements, or None if the generic body is to find out what is wrong."""
    if reduction not in REDUCTIONS or not prediction.ndim:
        return None
    samples = prediction.shape[0]
    factor = 0.5 if reduction.startswith("half") else 1.0
    if reduction == "mean":
        factor /= prediction.size / samples
    if weight is None:
        return _Reduction(recorder, prediction.dtype, None, None, factor / samples if "mean" in reduction else factor)
    if weight.shape != (samples,):
        return None
    weight = _sample_weight(recorder, weight, prediction)
    return _Reduction(recorder, prediction.dtype, weight, weight if "mean" in reduction else None, factor)


def _elementwise(
    recorder: Recorder,
    name: str,
    prediction: Any,
    target: Any,
    weight: Any,
    reduction: str,
    first_setting: float = 0.0,
    second_setting: float = 0.0,
) -> tuple[RecordedArray, _Reduction, RecordedArray] | None:
    """(value, reduction, slopes) of a loss of single elements; None if the generic body is to do it."""
    if prediction.shape != target.shape or not prediction.size or prediction.dtype != target.dtype:
        return None
    if prediction.dtype.kind != "f" or not (_is_number(first_setting) and _is_number(second_setting)):
        return None
    reduced = _element_reduction(recorder, prediction, weight, reduction)
    if reduced is None:
        return None
    slopes, losses = (recorder.empty(prediction.shape, prediction.dtype) for _ in range(2))
    arrays = (recorder.contiguous(prediction), recorder.contiguous(target))
    # The settings and the block's length stand between the factor and the results.
    results = (first_setting, second_setting, BLOCK, slopes, losses)
    blocks = blocks_of(prediction.size)
    value = reduced.value(kernels.ELEMENTWISE[name], arrays, results, blocks, blocks > 1)
    return value, reduced, slopes


def _symmetric(found: tuple[RecordedArray, _Reduction, RecordedArray] | None, scale: float) -> Any:
    """(value, vjp) of a loss of the difference: the target's gradient is minus the prediction's."""
    if found is None:
        return None
    value, reduced, slopes = found

    def vjp(dy: Any) -> Any:
        return (
            reduced.gradient(kernels.LOSS_GRADIENT, (slopes,), slopes.shape, dy, scale),
            reduced.gradient(kernels.LOSS_GRADIENT, (slopes,), slopes.shape, dy, -scale),
            None,
        )

    return value, vjp


def _of_prediction(found: tuple[RecordedArray, _Reduction, RecordedArray] | None) -> Any:
    """(value, vjp) of a loss whose target has no gradient."""
    if found is None:
        return None
    value, reduced, slopes = found

    def vjp(dy: Any) -> Any:
        return reduced.gradient(kernels.LOSS_GRADIENT, (slopes,), slopes.shape, dy, 1.0), None, None

    return value, vjp


@_body
def mse(recorder: Recorder, prediction: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> Any:
    """The residuals and the sum of their squares in one pass."""
    return _symmetric(_elementwise(recorder, "mse", prediction, target, weight, reduction), 2.0)


@_body
def mae(recorder: Recorder, prediction: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> Any:
    """The signs and the sum in one pass."""
    return _symmetric(_elementwise(recorder, "mae", prediction, target, weight, reduction), 1.0)


@_body
def huber(
    recorder: Recorder,
    prediction: Any,
    target: Any,
    weight: Any = None,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
) -> Any:
    """The cut residuals and the sum in one pass."""
    return _symmetric(_elementwise(recorder, "huber", prediction, target, weight, reduction, delta), 1.0)


@_body
def hinge(recorder: Recorder, scores: Any, labels: Any, weight: Any = None, *, reduction: str = "mean") -> Any:
    """The slopes and the sum in one pass."""
    return _of_prediction(_elementwise(recorder, "hinge", scores, labels, weight, reduction))


@_body
def binary_cross_entropy(
    recorder: Recorder,
    logits: Any,
    labels: Any,
    weight: Any = None,
    *,
    positive_weight: Any = 1.0,
    reduction: str = "mean",
) -> Any:
    """The slopes and the sum in one pass."""
    name = "binary_cross_entropy"
    return _of_prediction(_elementwise(recorder, name, logits, labels, weight, reduction, positive_weight))


@_body
def binary_cross_entropy_from_probabilities(
    recorder: Recorder, probabilities: Any, labels: Any, weight: Any = None, *, reduction: str = "mean"
) -> Any:
    """The slopes and the sum in one pass."""
    name = "binary_cross_entropy_from_probabilities"
    if probabilities.dtype.kind != "f":
        return None
    floors = _log_floor(probabilities.dtype), float(np.finfo(probabilities.dtype).eps) / 2.0
    return _of_prediction(_elementwise(recorder, name, probabilities, labels, weight, reduction, *floors))


def _log_floor(dtype: Any) -> float:
    """Where the logarithm of a probability is continued by its tangent; see `xpnn.ops.logarithm`."""
    return float(np.finfo(dtype).smallest_normal) * 64.0


@_body
def kl_divergence(
    recorder: Recorder,
    log_probabilities: Any,
    target: Any,
    weight: Any = None,
    *,
    log_target: bool = False,
    reduction: str = "batch_mean",
) -> Any:
    """The slopes and the sum in one pass; those of the target in another, where they are needed."""
    name = "log_kl_divergence" if log_target else "kl_divergence"
    arguments = (log_probabilities, target, weight, reduction)
    found = _elementwise(recorder, name, *arguments)
    if found is None:
        return None
    value, reduced, slopes = found

    def vjp(dy: Any) -> Any:
        of_target = _elementwise(recorder, f"{name}_target", *arguments)
        assert of_target is not None
        return (
            reduced.gradient(kernels.LOSS_GRADIENT, (slopes,), slopes.shape, dy, 1.0),
            reduced.gradient(kernels.LOSS_GRADIENT, (of_target[2],), slopes.shape, dy, 1.0),
            None,
        )

    return value, vjp


def _rows_fit(scores: Any, weight: Any, reduction: str) -> bool:
    """True if scores (batch, ..., classes) and the weight are as the losses of rows want them."""
    fits = scores.ndim >= 2 and scores.size and scores.dtype.kind == "f" and reduction in REDUCTIONS
    return bool(fits) and (weight is None or weight.shape == scores.shape[:1])


def _row_weight(recorder: Recorder, scores: Any, weight: Any) -> RecordedArray | None:
    """A weight for each row, (rows,), from one for each sample."""
    if weight is None:
        return None
    by_sample = _sample_weight(recorder, weight, scores)
    if scores.ndim == 2:
        return by_sample
    shape = scores.shape[:-1]
    by_sample = by_sample.reshape((shape[0],) + (1,) * (len(shape) - 1))
    by_row: RecordedArray = recorder.contiguous(NAMESPACE.broadcast_to(by_sample, shape))
    return by_row.reshape((math.prod(shape),))


def _row_reduction(
    recorder: Recorder, scores: Any, weight: Any, row_weight: Any, counts: Any, reduction: str
) -> _Reduction:
    """That of a loss of rows.

    Args:
        recorder: the recorder.
        scores: (batch, ..., classes).
        weight: (batch,) or None.
        row_weight: (rows,) or None: what a row's loss is multiplied with.
        counts: (rows,) or None: what a row counts in a mean, its weight included.
        reduction: the name.
    """
    factor = 0.5 if reduction.startswith("half") else 1.0
    if reduction == "mean":
        counted, otherwise = counts, math.prod(scores.shape[:-1])
    elif reduction.endswith("mean"):
        counted = None if weight is None else _sample_weight(recorder, weight, scores)
        otherwise = scores.shape[0]
    else:
        counted, otherwise = None, 1
    return _Reduction(
        recorder, scores.dtype, row_weight, counted, factor if counted is not None else factor / otherwise
    )


def _matrix(recorder: Recorder, x: Any) -> RecordedArray:
    """(batch, ..., classes) as (rows, classes), in C order."""
    return recorder.contiguous(x).reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def _flat_labels(recorder: Recorder, labels: Any) -> RecordedArray:
    """The labels as int64, on one axis, in C order."""
    if labels.dtype != np.int64:
        labels = NAMESPACE.astype(labels, np.dtype(np.int64))
    return recorder.contiguous(labels).reshape((labels.size,))


def _labelled(
    recorder: Recorder,
    scores: Any,
    labels: Any,
    weight: Any,
    reduction: str,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
) -> tuple[RecordedArray, RecordedArray, _Reduction] | None:
    """(scores as a matrix, labels on one axis, reduction) for integer labels; None if the generic body is to do it."""
    if not _rows_fit(scores, weight, reduction) or labels.shape != scores.shape[:-1] or labels.dtype.kind not in "iu":
        return None
    if class_weights is not None and len(class_weights) != scores.shape[-1]:
        return None
    flat = _flat_labels(recorder, labels)
    row_weight = _row_weight(recorder, scores, weight)
    if class_weights is not None or ignore_index is not None:
        nothing = constant(np.zeros(0, scores.dtype))
        by_class = nothing if class_weights is None else constant(np.array(class_weights, scores.dtype))
        given = nothing if row_weight is None else row_weight
        ignores = (0, 0) if ignore_index is None else (1, ignore_index)
        row_weight = recorder.empty((flat.size,), scores.dtype)
        recorder.call(kernels.LABEL_WEIGHTS, flat, given, by_class, *ignores, row_weight)
    return (
        _matrix(recorder, scores),
        flat,
        _row_reduction(recorder, scores, weight, row_weight, row_weight, reduction),
    )


@_body
def cross_entropy(
    recorder: Recorder,
    logits: Any,
    labels: Any,
    weight: Any = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    """Softmax and loss in one pass, the gradient in another."""
    if label_smoothing != 0.0 or labels.shape != logits.shape[:-1]:
        return _soft_cross_entropy(
            recorder, logits, labels, weight, class_weights, label_smoothing, ignore_index, reduction
        )
    found = _labelled(recorder, logits, labels, weight, reduction, class_weights, ignore_index)
    if found is None:
        return None
    matrix, flat, reduced = found
    powers = recorder.empty(matrix.shape, logits.dtype)
    normalizers = recorder.empty(flat.shape, logits.dtype)
    value = reduced.value(kernels.CROSS_ENTROPY, (matrix, flat), (powers, normalizers), flat.size, matrix.size > BLOCK)

    def vjp(dy: Any) -> Any:
        operands = (powers, normalizers, flat)
        gradient = reduced.gradient(kernels.CROSS_ENTROPY_GRADIENT, operands, matrix.shape, dy, 1.0)
        return gradient.reshape(logits.shape), None, None

    return value, vjp


def _soft_cross_entropy(
    recorder: Recorder,
    logits: Any,
    labels: Any,
    weight: Any,
    class_weights: tuple[float, ...] | None,
    label_smoothing: float,
    ignore_index: int | None,
    reduction: str,
) -> Any:
    """Cross-entropy with a mass for each class: of soft labels, or of smoothed ones."""
    if not _rows_fit(logits, weight, reduction) or labels.shape not in (logits.shape, logits.shape[:-1]):
        return None
    made = label_masses(NAMESPACE, logits, labels, class_weights, label_smoothing, ignore_index)
    masses = _matrix(recorder, made.by_class)
    matrix = _matrix(recorder, logits)
    row_weight = counts = _row_weight(recorder, logits, weight)
    if made.counts is not None:
        counts = recorder.contiguous(made.counts).reshape((masses.shape[0],))
        if row_weight is not None:
            counts = NAMESPACE.multiply(counts, row_weight)
    reduced = _row_reduction(recorder, logits, weight, row_weight, counts, reduction)
    powers = recorder.empty(matrix.shape, logits.dtype)
    normalizers, totals = (recorder.empty((matrix.shape[0],), logits.dtype) for _ in range(2))
    results = (powers, normalizers, totals)
    split = matrix.size > BLOCK
    value = reduced.value(kernels.SOFT_CROSS_ENTROPY, (matrix, masses), results, matrix.shape[0], split)

    def vjp(dy: Any) -> Any:
        operands = (*results, masses)
        gradient = reduced.gradient(kernels.SOFT_CROSS_ENTROPY_GRADIENT, operands, matrix.shape, dy, 1.0)
        return gradient.reshape(logits.shape), None, None

    return value, vjp


def _picked(recorder: Recorder, scores: Any, found: Any, floor: float) -> Any:
    """(value, vjp) of a loss of the label's score or of its logarithm."""
    if found is None:
        return None
    matrix, flat, reduced = found
    slopes = recorder.empty(flat.shape, scores.dtype)
    split = matrix.size > BLOCK
    value = reduced.value(kernels.PICKED_LOG, (matrix, flat), (floor, slopes), flat.size, split)

    def vjp(dy: Any) -> Any:
        gradient = reduced.gradient(kernels.PICKED_GRADIENT, (slopes, flat), matrix.shape, dy, 1.0)
        return gradient.reshape(scores.shape), None, None

    return value, vjp


@_body
def cross_entropy_from_probabilities(
    recorder: Recorder,
    probabilities: Any,
    labels: Any,
    weight: Any = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    """Integer labels: the logarithm of one probability in each row.

    A NaN among the other probabilities stays out of the gradient, where the generic body passes it on (it adds nothing
    to the value there, either).
    """
    if label_smoothing != 0.0:
        return None
    found = _labelled(recorder, probabilities, labels, weight, reduction, class_weights, ignore_index)
    return _picked(recorder, probabilities, found, _log_floor(probabilities.dtype) if found is not None else 0.0)


@_body
def nll(
    recorder: Recorder,
    log_probabilities: Any,
    labels: Any,
    weight: Any = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    """Integer labels: one number of each row."""
    found = _labelled(recorder, log_probabilities, labels, weight, reduction, class_weights, ignore_index)
    return _picked(recorder, log_probabilities, found, 0.0)


@_body
def categorical_hinge(
    recorder: Recorder, scores: Any, labels: Any, weight: Any = None, *, reduction: str = "mean"
) -> Any:
    """The best wrong classes and the loss in one pass."""
    found = _labelled(recorder, scores, labels, weight, reduction)
    if found is None:
        return None
    matrix, flat, reduced = found
    best = recorder.empty(flat.shape, np.dtype(np.int64))
    split = matrix.size > BLOCK
    value = reduced.value(kernels.CATEGORICAL_HINGE, (matrix, flat), (best,), flat.size, split)

    def vjp(dy: Any) -> Any:
        gradient = reduced.gradient(kernels.CATEGORICAL_HINGE_GRADIENT, (best, flat), matrix.shape, dy, 1.0)
        return gradient.reshape(scores.shape), None, None

    return value, vjp
