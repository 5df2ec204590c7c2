"""Kernels of the losses and their gradients. See `kernels` for what a kernel is.

A loss is made in one call, or in two where it may be split among threads: then the first gives the sums of blocks or
rows, and `LOSS_TOTAL` adds them up. Operands that all have:

- weight: what each sample (or row) is multiplied with; empty: nothing.
- counted: the numbers by whose sum the loss is divided; empty: by nothing.
- factor: what the loss is multiplied with.
- sums: float64, one for each block or row.
- value: the loss; empty if `LOSS_TOTAL` is to compute it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xpnn_backends.recording import Kernel


def _divisor(counted: Any) -> Any:
    """The sum of what counts, or 1 if that is not positive or nothing is given."""
    if not counted.size:
        return 1.0
    total = np.add.reduce(counted, None, dtype=np.float64)
    return total if total > 0.0 else 1.0


def _finish(total: Any, counted: Any, factor: Any, sums: Any, value: Any) -> None:
    """value = factor * total / divisor; or leave the total to `LOSS_TOTAL`."""
    if value.size:
        np.multiply(total, factor / _divisor(counted), out=value, casting="same_kind")
    else:
        sums[...] = 0.0
        sums[0] = total


def _loss_total(sums: Any, counted: Any, factor: Any, value: Any) -> None:
    value[...] = np.add.reduce(sums) * (factor / _divisor(counted))


LOSS_TOTAL = Kernel("loss_total", _loss_total, "loss_total")
"""loss_total(sums, counted, factor, value): the loss from the sums of all blocks or rows."""


def _by_row(array: Any, weight: Any) -> Any:
    """The array as a matrix with a row for each weight."""
    return array.reshape(weight.size, -1)


def _elementwise(name: str, loss_and_slope: Callable[..., None]) -> Kernel:
    """The kernel of a loss of single elements.

    loss_and_slope(prediction, target, first setting, second setting, losses, slopes) fills the last two.
    """

    def run(
        prediction: Any,
        target: Any,
        weight: Any,
        counted: Any,
        factor: Any,
        first_setting: Any,
        second_setting: Any,
        block: int,
        slopes: Any,
        losses: Any,
        sums: Any,
        value: Any,
    ) -> None:
        loss_and_slope(prediction, target, first_setting, second_setting, losses, slopes)
        if weight.size:
            rows = _by_row(losses, weight)
            rows *= weight.reshape(-1, 1)
        # NumPy adds long sums pairwise, with a smaller error than a dot product would have.
        _finish(np.add.reduce(losses, None), counted, factor, sums, value)

    return Kernel(name, run, name, (8, 9, 10, 11))


def _mse(prediction: Any, target: Any, first: Any, second: Any, losses: Any, slopes: Any) -> None:
    np.subtract(prediction, target, out=slopes)
    np.multiply(slopes, slopes, out=losses)


def _mae(prediction: Any, target: Any, first: Any, second: Any, losses: Any, slopes: Any) -> None:
    np.subtract(prediction, target, out=slopes)
    np.abs(slopes, out=losses)
    np.sign(slopes, out=slopes)


def _huber(prediction: Any, target: Any, delta: Any, second: Any, losses: Any, slopes: Any) -> None:
    np.subtract(prediction, target, out=slopes)
    size = np.abs(slopes)
    cut = np.minimum(size, delta)
    np.multiply(cut, size - 0.5 * cut, out=losses)
    np.minimum(slopes, delta, out=slopes)
    np.maximum(slopes, -delta, out=slopes)


def _hinge(scores: Any, labels: Any, first: Any, second: Any, losses: Any, slopes: Any) -> None:
    np.multiply(labels, scores, out=losses)
    np.subtract(1.0, losses, out=losses)
    np.negative(labels, out=slopes)
    slopes[~(losses > 0)] = 0.0
    np.maximum(losses, 0.0, out=losses)


def _binary_cross_entropy(
    logits: Any, labels: Any, positive_weight: Any, second: Any, losses: Any, slopes: Any
) -> None:
    positive = labels * positive_weight
    negative = 1.0 - labels
    decay = np.exp(-np.abs(logits))
    np.multiply(positive, np.maximum(-logits, 0.0), out=losses)
    losses += negative * np.maximum(logits, 0.0)
    losses += (positive + negative) * np.log1p(decay)
    large = 1.0 / (1.0 + decay)
    small = decay * large
    above = logits >= 0
    np.multiply(negative, np.where(above, large, small), out=slopes)
    slopes -= positive * np.where(above, small, large)


def _binary_cross_entropy_from_probabilities(
    p: Any, labels: Any, floor: Any, floor_of_complement: Any, losses: Any, slopes: Any
) -> None:
    log_yes, slope_yes = _bounded_log(p, floor)
    ceiling = 1.0 - floor_of_complement
    inside = np.minimum(p, ceiling)
    log_no = np.log1p(-inside) - (np.maximum(p, ceiling) - ceiling) * (1.0 / floor_of_complement)
    no = 1.0 - labels
    np.multiply(labels, log_yes, out=losses)
    losses += no * log_no
    np.negative(losses, out=losses)
    np.divide(no, 1.0 - inside, out=slopes)
    slopes -= labels * slope_yes


def _bounded_log(p: Any, floor: Any) -> tuple[Any, Any]:
    """log p, continued by its tangent below the floor, and the derivative; see `xpnn.ops.logarithm`."""
    inside = np.maximum(p, floor)
    return np.log(inside) + (np.minimum(p, floor) * (1.0 / floor) - 1.0), 1.0 / inside


def _kl_difference(log_probabilities: Any, target: Any) -> tuple[Any, Any]:
    """(where t > 0, log t - l there and 0 elsewhere)."""
    present = target > 0
    return present, np.where(present, np.log(np.where(present, target, 1.0)) - log_probabilities, 0.0)


def _kl_divergence(log_probabilities: Any, target: Any, first: Any, second: Any, losses: Any, slopes: Any) -> None:
    np.multiply(target, _kl_difference(log_probabilities, target)[1], out=losses)
    np.negative(target, out=slopes)


def _kl_divergence_target(
    log_probabilities: Any, target: Any, first: Any, second: Any, losses: Any, slopes: Any
) -> None:
    present, difference = _kl_difference(log_probabilities, target)
    np.multiply(target, difference, out=losses)
    np.copyto(slopes, np.where(present, difference + 1.0, 0.0))


def _log_kl_divergence(
    log_probabilities: Any, log_target: Any, first: Any, second: Any, losses: Any, slopes: Any
) -> None:
    target = np.exp(log_target)
    np.multiply(target, log_target - log_probabilities, out=losses)
    np.negative(target, out=slopes)


def _log_kl_divergence_target(
    log_probabilities: Any, log_target: Any, first: Any, second: Any, losses: Any, slopes: Any
) -> None:
    target = np.exp(log_target)
    difference = log_target - log_probabilities
    np.multiply(target, difference, out=losses)
    np.multiply(target, difference + 1.0, out=slopes)


ELEMENTWISE = {
    "mse": _elementwise("mse", _mse),
    "mae": _elementwise("mae", _mae),
    "huber": _elementwise("huber", _huber),
    "hinge": _elementwise("hinge", _hinge),
    "binary_cross_entropy": _elementwise("binary_cross_entropy", _binary_cross_entropy),
    "binary_cross_entropy_from_probabilities": _elementwise(
        "binary_cross_entropy_from_probabilities", _binary_cross_entropy_from_probabilities
    ),
    "kl_divergence": _elementwise("kl_divergence", _kl_divergence),
    "kl_divergence_target": _elementwise("kl_divergence_target", _kl_divergence_target),
    "log_kl_divergence": _elementwise("log_kl_divergence", _log_kl_divergence),
    "log_kl_divergence_target": _elementwise("log_kl_divergence_target", _log_kl_divergence_target),
}
"""name -> kernel(prediction, target, weight, counted, factor, first setting, second setting, block, slopes, losses,
sums, value): the loss, and each element's slope, its derivative with respect to the prediction (half of it for "mse").
Those that end in "_target" give the slopes with respect to the target. `losses` is room to work in, `block` the length
of a block."""


def _loss_gradient(slopes: Any, weight: Any, counted: Any, factor: Any, gradient: Any) -> None:
    factor = factor / _divisor(counted)
    if weight.size:
        np.multiply(_by_row(slopes, weight), (weight * factor).reshape(-1, 1), out=_by_row(gradient, weight))
    else:
        np.multiply(slopes, float(factor), out=gradient)


LOSS_GRADIENT = Kernel("loss_gradient", _loss_gradient, "loss_gradient")
"""loss_gradient(slopes, weight, counted, factor, gradient): the gradient of a loss of single elements."""


def _label_weights(labels: Any, weight: Any, class_weights: Any, ignores: int, ignored: int, out: Any) -> None:
    out[...] = weight if weight.size else 1.0
    if class_weights.size:
        known, places = _places(labels, class_weights.size)
        out *= np.where(known, class_weights[places], 0.0)
    if ignores:
        out[labels == ignored] = 0.0


LABEL_WEIGHTS = Kernel("label_weights", _label_weights, "label_weights")
"""label_weights(labels, weight, class_weights, ignores, ignored, out): the weight of each row, times that of its label,
0 for an ignored one."""


def _places(labels: Any, classes: int) -> tuple[Any, Any]:
    """(whether each label is a class, the label or 0)."""
    known = (labels >= 0) & (labels < classes)
    return known, np.where(known, labels, 0)


def _shift(logits: Any, powers: Any) -> None:
    np.subtract(logits, np.maximum.reduce(logits, 1, keepdims=True), out=powers)


def _row_factors(weight: Any, counted: Any, factor: Any) -> Any:
    """What each row of the gradient is multiplied with: a number or a vector."""
    factor = factor / _divisor(counted)
    return weight * factor if weight.size else float(factor)


def _cross_entropy(
    logits: Any,
    labels: Any,
    weight: Any,
    counted: Any,
    factor: Any,
    powers: Any,
    normalizers: Any,
    sums: Any,
    value: Any,
) -> None:
    _shift(logits, powers)
    if not weight.size:
        picked = powers[np.arange(len(labels)), labels]
    else:
        known, places = _places(labels, powers.shape[1])
        # A row that does not count adds 0, however far its label's logit is.
        picked = np.where(known & (weight != 0), powers[np.arange(len(labels)), places], 0.0)
    np.exp(powers, out=powers)
    np.add.reduce(powers, 1, out=normalizers)
    losses = np.log(normalizers) - picked
    if weight.size:
        losses *= weight
    _finish(np.add.reduce(losses), counted, factor, sums, value)


CROSS_ENTROPY = Kernel("cross_entropy", _cross_entropy, "cross_entropy", (5, 6, 7, 8))
"""cross_entropy(logits, labels, weight, counted, factor, powers, normalizers, sums, value): the loss of integer labels;
and exp(z - max z) and its sums, of which the gradient is made."""


def _cross_entropy_gradient(
    powers: Any, normalizers: Any, labels: Any, weight: Any, counted: Any, factor: Any, gradient: Any
) -> None:
    factors = _row_factors(weight, counted, factor)
    np.multiply(powers, (factors / normalizers)[:, None], out=gradient)
    if weight.size:
        known, labels = _places(labels, powers.shape[1])
        factors = np.where(known, factors, 0.0)
    gradient[np.arange(len(labels)), labels] -= factors


CROSS_ENTROPY_GRADIENT = Kernel("cross_entropy_gradient", _cross_entropy_gradient, "cross_entropy_gradient")
"""cross_entropy_gradient(powers, normalizers, labels, weight, counted, factor, gradient): softmax - one-hot."""


def _soft_cross_entropy(
    logits: Any,
    masses: Any,
    weight: Any,
    counted: Any,
    factor: Any,
    powers: Any,
    normalizers: Any,
    totals: Any,
    sums: Any,
    value: Any,
) -> None:
    _shift(logits, powers)
    # A class without mass adds 0 even where its logit is -infinity.
    picked = np.add.reduce(masses * np.where(masses != 0, powers, 0.0), 1)
    np.exp(powers, out=powers)
    np.add.reduce(powers, 1, out=normalizers)
    np.add.reduce(masses, 1, out=totals)
    losses = np.log(normalizers) * totals - picked
    if weight.size:
        losses *= weight
    _finish(np.add.reduce(losses), counted, factor, sums, value)


SOFT_CROSS_ENTROPY = Kernel("soft_cross_entropy", _soft_cross_entropy, "soft_cross_entropy", (5, 6, 7, 8, 9))
"""soft_cross_entropy(logits, masses, weight, counted, factor, powers, normalizers, totals, sums, value): the same with
a mass for each class; and the masses' sums."""


def _soft_cross_entropy_gradient(
    powers: Any, normalizers: Any, totals: Any, masses: Any, weight: Any, counted: Any, factor: Any, gradient: Any
) -> None:
    factors = _row_factors(weight, counted, factor)
    np.multiply(powers, (totals / normalizers)[:, None], out=gradient)
    gradient -= masses
    gradient *= factors[:, None] if weight.size else factors


SOFT_CROSS_ENTROPY_GRADIENT = Kernel(
    "soft_cross_entropy_gradient", _soft_cross_entropy_gradient, "soft_cross_entropy_gradient"
)
"""soft_cross_entropy_gradient(powers, normalizers, totals, masses, weight, counted, factor, gradient)."""


def _picked_log(
    probabilities: Any,
    labels: Any,
    weight: Any,
    counted: Any,
    factor: Any,
    floor: Any,
    slopes: Any,
    sums: Any,
    value: Any,
) -> None:
    known, places = _places(labels, probabilities.shape[1])
    picked = probabilities[np.arange(len(labels)), places]
    logarithms, derivatives = _bounded_log(picked, floor) if floor else (picked, 1.0)
    np.copyto(slopes, np.where(known, np.negative(derivatives), 0.0))
    if weight.size:
        known = known & (weight != 0)
    losses = np.where(known, -logarithms, 0.0)
    if weight.size:
        losses *= weight
    _finish(np.add.reduce(losses), counted, factor, sums, value)


PICKED_LOG = Kernel("picked_log", _picked_log, "picked_log", (6, 7, 8))
"""picked_log(probabilities, labels, weight, counted, factor, floor, slopes, sums, value): each row loses -log p_label,
or -p_label itself for a floor of 0; and the derivatives."""


def _picked_gradient(slopes: Any, labels: Any, weight: Any, counted: Any, factor: Any, gradient: Any) -> None:
    gradient[...] = 0.0
    _, places = _places(labels, gradient.shape[1])
    # The slope of a label that is no class is 0.
    gradient[np.arange(len(labels)), places] = slopes * _row_factors(weight, counted, factor)


PICKED_GRADIENT = Kernel("picked_gradient", _picked_gradient, "picked_gradient")
"""picked_gradient(slopes, labels, weight, counted, factor, gradient): the slopes, weighted, in the labels' places."""


def _categorical_hinge(
    scores: Any, labels: Any, weight: Any, counted: Any, factor: Any, best: Any, sums: Any, value: Any
) -> None:
    known, places = _places(labels, scores.shape[1])
    rows = np.arange(len(labels))
    right = np.where(known, scores[rows, places], 0.0)
    wrong = scores.copy()
    wrong[rows[known], places[known]] = -np.inf
    np.argmax(wrong, 1, out=best)
    margins = 1.0 + (wrong[rows, best] - right)
    best[~(margins > 0)] = -1
    losses = np.maximum(margins, 0.0)
    if weight.size:
        losses *= weight
    _finish(np.add.reduce(losses), counted, factor, sums, value)


CATEGORICAL_HINGE = Kernel("categorical_hinge", _categorical_hinge, "categorical_hinge", (5, 6, 7))
"""categorical_hinge(scores, labels, weight, counted, factor, best, sums, value): the loss, and each row's best wrong
class, -1 where the loss is flat."""


def _categorical_hinge_gradient(best: Any, labels: Any, weight: Any, counted: Any, factor: Any, gradient: Any) -> None:
    known, places = _places(labels, gradient.shape[1])
    rows = np.arange(len(labels))
    factors = np.where(best >= 0, _row_factors(weight, counted, factor), 0.0)
    gradient[...] = 0.0
    gradient[rows, best] = factors
    gradient[rows[known], places[known]] -= factors[known]


CATEGORICAL_HINGE_GRADIENT = Kernel(
    "categorical_hinge_gradient", _categorical_hinge_gradient, "categorical_hinge_gradient"
)
"""categorical_hinge_gradient(best, labels, weight, counted, factor, gradient)."""
