"""Losses on the GPU: value and gradient in one pass over the memory; softmax and its logarithm.

A step first asks for a loss's value and then, in training, for its gradient. What that costs is counted in bytes, for
logits that no cache holds. A pass for the value reads them once; one for the gradient reads them again and writes as
much: three times the size of the logits. One pass that makes both reads them once and writes once: two times. But an
evaluation wants no gradient, and would pay double for it. Nothing in a call says which it is, so a body goes by the
call before: if the gradient of the last loss of the same op, shape and dtype was asked for (with dy = 1, as a step
does), it is made together with the value, else not. A wrong guess costs time; the bits are the same either way, since
it is the same kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cupy
import numpy as np

from xpnn.dispatch import Body, device, namespace
from xpnn.half_precision import handles_half
from xpnn.ops.reduction import REDUCTIONS
from xpnn_backends.cupy.bodies_activations import PACKS, ceil_divide
from xpnn_backends.cupy.kernels import THREADS, generic, in_order, launch, number

_MOST_BLOCKS = 16384
"""Of a pass over rows: one block can add up their sums in little time."""

_MOST_ELEMENT_BLOCKS = 1024
"""Of a pass over single elements, where each thread has several to do."""

_ALONE = 4
"""One block goes so many times around before there are others, which would need a second kernel to add up."""

_SHORT = 256
"""Rows of so many elements are shared by the lanes of a part of a warp."""

_SHORT_HELD = 8
"""Elements of such a row that each lane holds."""

_HELD = {"float32": 4, "float64": 2, "float16": 2, "bfloat16": 2}
"""dtype -> how many packs of 16 bytes of a longer row each thread of its block holds."""

_MOST_THREADS = {"float32": 1024, "float64": 512, "float16": 1024, "bfloat16": 1024}
"""dtype -> how many threads such a block may have: as in losses.cu, `ROW_THREADS`."""

_DEEP_HELD = {"float32": 16, "float64": 8, "float16": 8, "bfloat16": 8}
"""dtype -> the same for still longer rows and 512 threads: as many as there are registers for."""

_DEEP_THREADS = 512

_SHORT_ROW = (_SHORT_HELD, 1, False)
"""(packs held, elements of a pack, whether a block shares the row): template parameters of the kernels on rows."""

_COUNTED = ("int32", "int64")


def _kernels() -> list[tuple[str, str, tuple[Any, ...]]]:
    found: list[tuple[str, str, tuple[Any, ...]]] = [("losses", "divisor_of", ())]
    for dtype, pack in PACKS.items():
        found += [("losses", "loss_total", (dtype,)), ("losses", "row_weights", (dtype,))]
        unheld = (0, pack, True)
        rows = [_SHORT_ROW, (_HELD[dtype], pack, True), (_DEEP_HELD[dtype], pack, True), unheld]
        found += [("losses", "cross_entropy", (dtype, *row, False)) for row in rows]
        found += [("losses", "cross_entropy", (dtype, *row, True)) for row in (_SHORT_ROW, unheld)]
        for is_log in (False, True):
            found += [("losses", "softmax", (dtype, *row, is_log)) for row in rows]
            found += [("losses", "softmax_gradient", (dtype, *row, is_log)) for row in (*rows[:2], unheld)]
        for loss in _ELEMENTWISE.values():
            found.append(("losses", "elementwise_loss", (loss.function, dtype, loss.has_target_gradient)))
    return found


class _ElementwiseLoss(NamedTuple):
    """A loss of single elements: its struct in losses.cu, and whether its target has a gradient."""

    function: str
    has_target_gradient: bool


_ELEMENTWISE = {
    "mse": _ElementwiseLoss("Mse", True),
    "mae": _ElementwiseLoss("Mae", True),
    "huber": _ElementwiseLoss("Huber", True),
    "hinge": _ElementwiseLoss("Hinge", False),
    "binary_cross_entropy": _ElementwiseLoss("BinaryCrossEntropy", False),
    "binary_cross_entropy_from_probabilities": _ElementwiseLoss("BinaryCrossEntropyFromProbabilities", False),
    "kl_divergence": _ElementwiseLoss("KlDivergence", True),
    "log_kl_divergence": _ElementwiseLoss("LogKlDivergence", True),
}

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = _kernels()

_gradient_was_wanted: dict[tuple[Any, ...], bool] = {}
"""(loss, shape, dtype) -> whether the last such loss was asked for its gradient, with dy = 1."""

Run = Callable[[Any, bool, bool], tuple[Any, tuple[Any, ...] | None]]
"""run(dy, wants value, wants gradients) -> (value or None, gradients or None)."""


def _value_and_vjp(key: tuple[Any, ...], run: Run) -> tuple[Any, Callable[..., Any]]:
    """The value of a loss, with its gradients where they are likely to be wanted; see the top of this file."""
    expected = _gradient_was_wanted.get(key, False)
    _gradient_was_wanted[key] = False
    value, gradients = run(1.0, True, expected)
    kept = [] if gradients is None else [gradients]

    def vjp(dy: Any) -> tuple[Any, ...]:
        is_one = type(dy) is float and dy == 1.0
        _gradient_was_wanted[key] = is_one
        found = kept.pop() if kept else None  # given away once: whoever has it may do with it what it likes
        if found is None or not is_one:
            found = run(dy, False, True)[1]
            assert found is not None
        return found

    return value, vjp


def _sums(blocks: int) -> Any:
    """A place for the part of each block, or None for one block, which is no part."""
    return cupy.empty(blocks, dtype=cupy.float64) if blocks > 1 else None


def _add_up(sums: Any, factor: float, divisor: Any, value: Any) -> None:
    if sums is not None:
        arguments = (sums, np.int32(sums.size), factor, divisor, value)
        launch("losses", "loss_total", (value.dtype.name,), 1, THREADS, arguments)


def _weights(
    dtype: Any,
    rows: int,
    weight: Any,
    rows_of_sample: int,
    labels: Any = None,
    class_weights: Any = None,
    ignore_index: int | None = None,
    keeps_weights: bool = False,
) -> tuple[Any, Any]:
    """(the weight of each row or None, their sum as an array of one number); see `row_weights` in losses.cu."""
    weights = cupy.empty(rows, dtype=cupy.float64) if keeps_weights else None
    divisor = cupy.empty(1, dtype=cupy.float64)
    blocks = min(ceil_divide(rows, 4 * THREADS), _MOST_ELEMENT_BLOCKS)
    sums = _sums(blocks)
    arguments = (
        weight,
        rows_of_sample,
        labels,
        np.int32(0 if labels is None else labels.dtype.itemsize),
        class_weights,
        np.int32(0 if class_weights is None else class_weights.size),
        np.int32(ignore_index is not None),
        0 if ignore_index is None else ignore_index,
        rows,
        weights,
        sums,
        divisor,
    )
    launch("losses", "row_weights", (dtype.name,), blocks, THREADS, arguments)
    if sums is not None:
        launch("losses", "divisor_of", (), 1, THREADS, (sums, np.int32(blocks), divisor))
    return weights, divisor


class _RowPlan(NamedTuple):
    """How a kernel shares out rows.

    Attributes:
        row: its template parameters (packs held, elements of a pack, whether a block shares the row).
        lanes: how many threads share a row.
        threads: of a block.
        blocks: how many.
    """

    row: tuple[int, int, bool]
    lanes: int
    threads: int
    blocks: int


def _plan_rows(x: Any, rows: int, length: int, holds: bool = True, holds_many: bool = True) -> _RowPlan:
    """The plan for a matrix x (rows, length).

    Args:
        x: the matrix, or one that lies alike with respect to packs.
        rows: how many.
        length: of a row.
        holds: False if there is no kernel whose blocks hold rows.
        holds_many: False if there is none in which each thread holds many packs.
    """
    if length <= _SHORT:
        lanes = 1 << (ceil_divide(length, _SHORT_HELD) - 1).bit_length()
        rows_at_once = THREADS // lanes
        around = ceil_divide(rows, rows_at_once)
        return _RowPlan(_SHORT_ROW, lanes, THREADS, 1 if around <= _ALONE else min(around, _MOST_BLOCKS))
    dtype = x.dtype.name
    pack = PACKS[dtype]
    # A row that does not begin where a pack may begin has elements in one pack more.
    packs = length // pack if length % pack == 0 and x.data.ptr % 16 == 0 else ceil_divide(length + pack - 1, pack)
    if holds and packs <= _HELD[dtype] * _MOST_THREADS[dtype]:
        held = _HELD[dtype]
        threads = 32 * ceil_divide(packs, 32 * held)
    elif holds and holds_many and packs <= _DEEP_HELD[dtype] * _DEEP_THREADS:
        held, threads = _DEEP_HELD[dtype], _DEEP_THREADS
    else:
        held, threads = 0, min(_DEEP_THREADS, 32 * ceil_divide(packs, 32))
    return _RowPlan((held, pack, True), threads, threads, min(rows, _MOST_BLOCKS))


def _like_a_row(x: Any) -> Any:
    """x in C order at an address where a pack may begin, as that of a new array: itself or a copy."""
    x = in_order(x)
    return x if x.data.ptr % 16 == 0 else x.copy()


# ------------------------------------------------------------------------------------------------------ cross-entropy


@handles_half
def cross_entropy(
    logits: Any,
    labels: Any,
    weight: Any = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Any, Any]:
    """One kernel for value and gradient, and a small one or two before it where rows have weights."""
    if not _rows_fit(logits, labels, weight, class_weights, label_smoothing, reduction):
        return generic("cross_entropy")(
            logits,
            labels,
            weight,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    dtype, shape = logits.dtype, logits.shape
    rows, classes = math.prod(shape[:-1]), shape[-1]
    logits = _like_a_row(logits)
    is_soft = labels.shape == shape
    if not is_soft and labels.dtype.name not in _COUNTED:
        labels = labels.astype(cupy.int64)
    labels = in_order(labels)
    by_class = None
    if class_weights is not None:
        by_class = namespace(logits).asarray(class_weights, dtype=dtype, device=device(logits))
    if weight is not None:
        weight = in_order(weight if weight.dtype == dtype else weight.astype(dtype))
    factor = 0.5 if reduction.startswith("half") else 1.0
    has_masses = is_soft or label_smoothing != 0.0
    weights = divisor = None
    counts = not is_soft and (by_class is not None or ignore_index is not None)
    if weight is not None or counts:
        given = (dtype, rows, weight, rows // shape[0])
        if is_soft:
            weights, divisor = _weights(*given, None, None, None, True)
        else:
            weights, divisor = _weights(*given, labels, by_class, ignore_index, True)
        if counts and by_class is not None and has_masses:
            # The classes' weights are part of the masses already: they count in the divisor alone.
            weights, _ = _weights(*given, labels, None, ignore_index, True)
        if reduction != "mean":
            divisor = None
        if weight is not None and reduction.endswith("batch_mean"):
            _, divisor = _weights(dtype, shape[0], weight, 1)
    if divisor is None and reduction.endswith("mean"):
        factor /= rows if reduction == "mean" else shape[0]
    plan = _plan_rows(logits, rows, classes, holds=not has_masses)

    def run(dy: Any, wants_value: bool, wants_gradients: bool) -> tuple[Any, tuple[Any, ...] | None]:
        value = cupy.empty((), dtype=dtype) if wants_value else None
        gradient = cupy.empty(shape, dtype=dtype) if wants_gradients else None
        sums = _sums(plan.blocks) if wants_value else None
        arguments = (
            logits,
            None if is_soft else labels,
            np.int32(labels.dtype.itemsize),
            labels if is_soft else None,
            by_class if has_masses else None,
            float(label_smoothing),
            weights,
            factor,
            divisor,
            *number(dy),
            rows,
            np.int32(classes),
            np.int32(plan.lanes),
            gradient,
            sums,
            value,
        )
        launch("losses", "cross_entropy", (dtype.name, *plan.row, has_masses), plan.blocks, plan.threads, arguments)
        _add_up(sums, factor, divisor, value)
        return value, None if gradient is None else (gradient, None, None)

    return _value_and_vjp(("cross_entropy", shape, dtype.char), run)


def _rows_fit(logits: Any, labels: Any, weight: Any, class_weights: Any, label_smoothing: Any, reduction: str) -> bool:
    """True if the kernel may do it; the generic body does the rest, and finds out what is wrong."""
    if logits.dtype.name not in PACKS or logits.ndim < 2 or not logits.size or logits.shape[-1] >= 1 << 30:
        return False
    if reduction not in REDUCTIONS or not isinstance(label_smoothing, (int, float)):
        return False
    if weight is not None and weight.shape != logits.shape[:1]:
        return False
    if class_weights is not None and len(class_weights) != logits.shape[-1]:
        return False
    if labels.shape == logits.shape:
        return bool(labels.dtype == logits.dtype)
    return labels.shape == logits.shape[:-1] and labels.dtype.kind in "iu"


# ------------------------------------------------------------------------------------------------------------ softmax


def _softmax(name: str, x: Any, axis: int) -> tuple[Any, Any]:
    fits = x.dtype.name in PACKS and x.size and axis in (-1, x.ndim - 1) and x.shape[-1] < 1 << 30
    if not fits:
        return generic(name)(x, axis)
    dtype, shape = x.dtype, x.shape
    rows, length = math.prod(shape[:-1]), shape[-1]
    is_log = name == "log_softmax"
    x = _like_a_row(x)
    y = cupy.empty(shape, dtype=dtype)
    plan = _plan_rows(x, rows, length)
    arguments = (x, y, rows, np.int32(length), np.int32(plan.lanes))
    launch("losses", "softmax", (dtype.name, *plan.row, is_log), plan.blocks, plan.threads, arguments)

    def vjp(dy: Any) -> tuple[Any]:
        dy = _like_a_row(dy if dy.dtype == dtype else dy.astype(dtype))
        dx = cupy.empty(shape, dtype=dtype)
        plan = _plan_rows(y, rows, length, holds_many=False)
        arguments = (y, dy, dx, rows, np.int32(length), np.int32(plan.lanes))
        launch("losses", "softmax_gradient", (dtype.name, *plan.row, is_log), plan.blocks, plan.threads, arguments)
        return (dx,)

    return y, vjp


@handles_half
def softmax(x: Any, axis: int = -1) -> tuple[Any, Any]:
    """Along the last axis: one kernel each way."""
    return _softmax("softmax", x, axis)


@handles_half
def log_softmax(x: Any, axis: int = -1) -> tuple[Any, Any]:
    """Along the last axis: one kernel each way."""
    return _softmax("log_softmax", x, axis)


# ------------------------------------------------------------------------------------------ losses of single elements


def _elements_fit(prediction: Any, target: Any, weight: Any, reduction: str, settings: tuple[Any, ...]) -> bool:
    """True if the kernel may do it; the generic body does the rest, and finds out what is wrong."""
    if prediction.dtype.name not in PACKS or target.dtype != prediction.dtype or target.shape != prediction.shape:
        return False
    if not prediction.size or not prediction.ndim or reduction not in REDUCTIONS:
        return False
    if not all(isinstance(setting, (int, float)) for setting in settings):
        return False
    return weight is None or weight.shape == prediction.shape[:1]


def _elementwise(
    name: str,
    prediction: Any,
    target: Any,
    weight: Any,
    reduction: str,
    first_setting: float = 0.0,
    second_setting: float = 0.0,
) -> tuple[Any, Any]:
    """(value, vjp) of a loss of single elements for which `_elements_fit`."""
    loss = _ELEMENTWISE[name]
    dtype, shape = prediction.dtype, prediction.shape
    prediction, target = in_order(prediction), in_order(target)
    samples = shape[0]
    elements = prediction.size // samples
    factor = (0.5 if reduction.startswith("half") else 1.0) / (elements if reduction == "mean" else 1)
    divisor = None
    if weight is not None:
        weight = in_order(weight if weight.dtype == dtype else weight.astype(dtype))
        if reduction.endswith("mean"):
            _, divisor = _weights(dtype, samples, weight, 1)
    elif reduction.endswith("mean"):
        factor /= samples
    around = ceil_divide(prediction.size, THREADS * PACKS[dtype.name])
    blocks = 1 if around <= _ALONE else min(around, _MOST_ELEMENT_BLOCKS)

    def run(dy: Any, wants_value: bool, wants_gradients: bool) -> tuple[Any, tuple[Any, ...] | None]:
        value = cupy.empty((), dtype=dtype) if wants_value else None
        gradient = cupy.empty(shape, dtype=dtype) if wants_gradients else None
        with_target = wants_gradients and loss.has_target_gradient
        target_gradient = cupy.empty(shape, dtype=dtype) if with_target else None
        sums = _sums(blocks) if wants_value else None
        arguments = (
            prediction,
            target,
            weight,
            elements,
            float(first_setting),
            float(second_setting),
            factor,
            divisor,
            *number(dy),
            prediction.size,
            gradient,
            target_gradient,
            sums,
            value,
        )
        parameters = (loss.function, dtype.name, loss.has_target_gradient)
        launch("losses", "elementwise_loss", parameters, blocks, THREADS, arguments)
        _add_up(sums, factor, divisor, value)
        return value, (gradient, target_gradient, None) if wants_gradients else None

    return _value_and_vjp((name, shape, dtype.char), run)


@handles_half
def mse(prediction: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> tuple[Any, Any]:
    """One kernel for the value and both gradients."""
    if not _elements_fit(prediction, target, weight, reduction, ()):
        return generic("mse")(prediction, target, weight, reduction=reduction)
    return _elementwise("mse", prediction, target, weight, reduction)


@handles_half
def mae(prediction: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> tuple[Any, Any]:
    """One kernel for the value and both gradients."""
    if not _elements_fit(prediction, target, weight, reduction, ()):
        return generic("mae")(prediction, target, weight, reduction=reduction)
    return _elementwise("mae", prediction, target, weight, reduction)


@handles_half
def huber(
    prediction: Any, target: Any, weight: Any = None, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Any, Any]:
    """One kernel for the value and both gradients."""
    if not _elements_fit(prediction, target, weight, reduction, (delta,)):
        return generic("huber")(prediction, target, weight, delta=delta, reduction=reduction)
    return _elementwise("huber", prediction, target, weight, reduction, delta)


@handles_half
def hinge(scores: Any, labels: Any, weight: Any = None, *, reduction: str = "mean") -> tuple[Any, Any]:
    """One kernel for the value and the gradient."""
    if not _elements_fit(scores, labels, weight, reduction, ()):
        return generic("hinge")(scores, labels, weight, reduction=reduction)
    return _elementwise("hinge", scores, labels, weight, reduction)


@handles_half
def binary_cross_entropy(
    logits: Any, labels: Any, weight: Any = None, *, positive_weight: Any = 1.0, reduction: str = "mean"
) -> tuple[Any, Any]:
    """One kernel for the value and the gradient, if all outputs have one weight of their positive labels."""
    if not _elements_fit(logits, labels, weight, reduction, (positive_weight,)):
        options = {"positive_weight": positive_weight, "reduction": reduction}
        return generic("binary_cross_entropy")(logits, labels, weight, **options)
    return _elementwise("binary_cross_entropy", logits, labels, weight, reduction, positive_weight)


@handles_half
def binary_cross_entropy_from_probabilities(
    probabilities: Any, labels: Any, weight: Any = None, *, reduction: str = "mean"
) -> tuple[Any, Any]:
    """One kernel for the value and the gradient."""
    name = "binary_cross_entropy_from_probabilities"
    if not _elements_fit(probabilities, labels, weight, reduction, ()):
        return generic(name)(probabilities, labels, weight, reduction=reduction)
    # The floors of `xpnn.ops.logarithm`, for the type that is computed with.
    limits = np.finfo(np.float64 if probabilities.dtype == np.float64 else np.float32)
    floors = float(limits.smallest_normal) * 64.0, float(limits.eps) / 2.0
    return _elementwise(name, probabilities, labels, weight, reduction, *floors)


@handles_half
def kl_divergence(
    log_probabilities: Any,
    target: Any,
    weight: Any = None,
    *,
    log_target: bool = False,
    reduction: str = "batch_mean",
) -> tuple[Any, Any]:
    """One kernel for the value and both gradients."""
    if not _elements_fit(log_probabilities, target, weight, reduction, ()):
        options = {"log_target": log_target, "reduction": reduction}
        return generic("kl_divergence")(log_probabilities, target, weight, **options)
    name = "log_kl_divergence" if log_target else "kl_divergence"
    return _elementwise(name, log_probabilities, target, weight, reduction)


BODIES: dict[str, Body] = {
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_from_probabilities": binary_cross_entropy_from_probabilities,
    "cross_entropy": cross_entropy,
    "hinge": hinge,
    "huber": huber,
    "kl_divergence": kl_divergence,
    "log_softmax": log_softmax,
    "mae": mae,
    "mse": mse,
    "softmax": softmax,
}
