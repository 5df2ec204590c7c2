"""Targets as they come in: checked, reshaped, converted. Called once per data set; here the device may be read."""

from __future__ import annotations

from typing import Any

from xpnn.backend import Backend
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, DataError

_SUM_TOLERANCE = 1e-3
"""How far the sum of a row of soft labels may be from 1: rounded to three digits it is still taken, to two not."""


def same_shape(name: str, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
    """Finite targets of the output's shape and dtype; a missing or extra axis of length 1 is mended.

    Args:
        name: of the loss, for errors.
        targets: (samples, ...).
        output_shape: the shape of one sample of the network's output.
        backend: where the arrays lie.
        dtype: of the result.

    Raises:
        DataError: the shapes do not fit, or a target is NaN or infinite.
    """
    xp = backend.xp
    wanted = (targets.shape[0], *output_shape)
    if tuple(targets.shape) != wanted:
        if _without_ones(targets.shape[1:]) != _without_ones(output_shape):
            hint = ""
            if _without_ones(targets.shape[1:]) == _without_ones(output_shape[:-1]) and output_shape[-1:] != (1,):
                hint = '; if y holds class labels, use loss="cross_entropy" (or "categorical_hinge")'
            raise DataError(
                f"loss {name} compares targets and outputs element by element: y has shape {tuple(targets.shape)}, the "
                f"network gives {wanted}; give y that shape, or end the network in a layer of another size{hint}"
            )
        targets = xp.reshape(targets, wanted)
    _check_finite(name, targets, backend)
    return xp.astype(targets, backend.dtype(dtype), copy=False)


def in_unit_interval(name: str, targets: Array, backend: Backend, fix: str) -> Array:
    """`targets` themselves. Raises DataError if one is outside [0, 1]."""
    low, high = _range(targets, backend)
    if low < 0.0 or high > 1.0:
        raise DataError(f"loss {name} wants targets from 0 to 1: y holds numbers from {low:g} to {high:g}; {fix}")
    return targets


def signs(name: str, targets: Array, backend: Backend) -> Array:
    """Labels -1 and +1 from labels -1 and +1, or 0 and 1. Raises DataError for any other."""
    xp = backend.xp
    is_zero, is_minus = targets == 0, targets == -1
    if not bool(xp.all(is_zero | is_minus | (targets == 1))):
        low, high = _range(targets, backend)
        raise DataError(
            f"loss {name} wants labels -1 and +1, or 0 and 1: y holds other numbers, from {low:g} to {high:g}; "
            'recode them, or for more than two classes use loss="categorical_hinge" and one output per class'
        )
    if bool(xp.any(is_zero)) and bool(xp.any(is_minus)):
        raise DataError(f"loss {name} wants labels -1 and +1, or 0 and 1: y holds 0 and -1; recode one of them")
    return xp.where(is_zero, -xp.ones_like(targets), targets)


def class_targets(
    name: str,
    targets: Array,
    output_shape: tuple[int, ...],
    backend: Backend,
    dtype: str,
    ignore_index: int | None = None,
) -> Array:
    """Integer labels (samples, ...) as int64, or one-hot and soft labels (samples, ..., classes) in `dtype`.

    Which of the two they are, the shape says. Floats that hold whole numbers are taken as integer labels; a missing
    or extra axis of length 1 is mended.

    Args:
        name: of the loss, for errors.
        targets: (samples, ...).
        output_shape: the shape of one sample of the network's output; its last axis holds the classes.
        backend: where the arrays lie.
        dtype: the network's.
        ignore_index: the label outside of 0 to classes - 1 that is allowed.

    Raises:
        DataError: the targets are no labels of that many classes.
        ConfigError: the network has one output, so that there are no classes to choose from.
    """
    xp = backend.xp
    classes = output_shape[-1] if output_shape else 1
    if classes < 2:
        raise ConfigError(
            f'loss {name} wants one output per class, the network has one output; use loss="binary_cross_entropy" '
            '(or "hinge"), or end the network in one output for each class'
        )
    samples = targets.shape[0]
    inner = _without_ones(targets.shape[1:])
    _check_finite(name, targets, backend)
    if inner == _without_ones(output_shape[:-1]):
        labels = xp.reshape(targets, (samples, *output_shape[:-1]))
        return _integer_labels(name, labels, classes, backend, ignore_index)
    if inner == _without_ones(output_shape):
        rows = xp.astype(xp.reshape(targets, (samples, *output_shape)), backend.dtype(dtype))
        return _soft_labels(name, rows, backend, ignore_index)
    raise DataError(
        f"loss {name}: y has shape {tuple(targets.shape)}, the network gives {(samples, *output_shape)}; y must hold "
        f"integer labels of shape {(samples, *output_shape[:-1])}, or one number per class, {(samples, *output_shape)}"
    )


def whole_numbers(name: str, targets: Array, backend: Backend) -> Array:
    """The targets as int64. Raises DataError if one is not whole, NaN or infinite."""
    xp = backend.xp
    _check_finite(name, targets, backend)
    if xp.isdtype(targets.dtype, "real floating") and not bool(xp.all(xp.floor(targets) == targets)):
        raise DataError(f"loss {name} wants integer labels: y holds numbers that are not whole")
    return xp.astype(targets, backend.dtype("int64"))


def labels_of_rows(name: str, targets: Array, backend: Backend) -> Array:
    """Integer labels from one-hot rows; integer labels as they are. Raises DataError if a row is not one-hot."""
    xp = backend.xp
    if xp.isdtype(targets.dtype, "integral"):
        return targets
    if not bool(xp.all((targets == 0) | (targets == 1))):
        raise DataError(
            f"loss {name} wants one right class for each row: y holds numbers between 0 and 1; give integer labels or "
            'one-hot rows, or for soft labels use loss="cross_entropy"'
        )
    return xp.astype(xp.argmax(targets, axis=-1), backend.dtype("int64"))


def _integer_labels(name: str, labels: Array, classes: int, backend: Backend, ignore_index: int | None) -> Array:
    xp = backend.xp
    if xp.isdtype(labels.dtype, "real floating") and not bool(xp.all(xp.floor(labels) == labels)):
        raise DataError(
            f"loss {name} wants class labels: y holds numbers that are not whole; number the classes from 0 to "
            f'{classes - 1}, or for numbers that are measured use loss="mse"'
        )
    labels = xp.astype(labels, backend.dtype("int64"))
    allowed = (labels >= 0) & (labels < classes)
    if ignore_index is not None:
        allowed = allowed | (labels == ignore_index)
    if not bool(xp.all(allowed)):
        outside = xp.where(allowed, xp.zeros_like(labels), labels)
        low, high = int(xp.min(outside)), int(xp.max(outside))
        worst = high if high >= classes else low
        besides = "" if ignore_index is None else f", or ignore_index={ignore_index}"
        raise DataError(
            f"loss {name}: y holds the label {worst}, and the network has {classes} outputs: labels run from 0 to "
            f"{classes - 1}{besides}; number the classes from 0, or give the last layer one unit per class"
        )
    return labels


def _soft_labels(name: str, rows: Array, backend: Backend, ignore_index: int | None) -> Array:
    if ignore_index is not None:
        raise DataError(
            f"loss {name}: ignore_index={ignore_index} is for integer labels, and y holds one number per class; give y "
            "as integer labels, or leave ignore_index out (a sample_weight of 0 ignores a sample)"
        )
    advice = 'if several classes may be right at once, use loss="binary_cross_entropy"'
    return probability_rows(name, rows, backend, advice=advice)


def probability_rows(name: str, rows: Array, backend: Backend, log: bool = False, advice: str = "") -> Array:
    """`rows` themselves: probabilities along the last axis, or with `log` their logarithms.

    Raises DataError if they are not: the message ends in `advice`.
    """
    xp = backend.xp
    # the minimum keeps the exponential of what is no log-probability from overflowing
    probabilities = xp.exp(xp.minimum(rows, 1.0)) if log else rows
    low, _ = _range(probabilities, backend)
    if low < 0.0:
        raise DataError(f"loss {name} wants rows of probabilities: y holds {low:g}; give numbers >= 0")
    smallest, largest = _range(xp.sum(probabilities, axis=-1), backend)
    if smallest < 1.0 - _SUM_TOLERANCE or largest > 1.0 + _SUM_TOLERANCE:
        worst = smallest if 1.0 - smallest > largest - 1.0 else largest
        what = "log-probabilities: the exponentials of a row of y have" if log else "probabilities: a row of y has"
        fix = "give logarithms of rows with sum 1" if log else "divide each row by its sum"
        raise DataError(
            f"loss {name} wants rows of {what} the sum {worst:g}, not 1; {'; '.join(filter(None, (fix, advice)))}"
        )
    return rows


def _check_finite(name: str, targets: Array, backend: Backend) -> None:
    xp = backend.xp
    if not xp.isdtype(targets.dtype, "real floating"):
        return
    finite = xp.isfinite(targets)
    if bool(xp.all(finite)):
        return
    bad = int(xp.sum(xp.astype(~finite, backend.dtype("int64"))))
    raise DataError(
        f"loss {name}: y holds {bad} {'number that is' if bad == 1 else 'numbers that are'} NaN or infinite; "
        "remove those samples, or fill in the missing values"
    )


def _range(x: Array, backend: Backend) -> tuple[float, float]:
    """The smallest and the largest number; (1, 1), which every check lets pass, if there is none."""
    if 0 in x.shape:
        return 1.0, 1.0
    return float(backend.xp.min(x)), float(backend.xp.max(x))


def _without_ones(shape: Any) -> list[int]:
    return [length for length in shape if length != 1]
