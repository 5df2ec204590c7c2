"""Bodies of the optimizers' ops for recorded arrays: one kernel for each update, in place on what is donated."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnn.dispatch import OPS
from xpnn_backends import kernels_optimizers as kernels
from xpnn_backends.recorded_bodies import _body, _is_number
from xpnn_backends.recording import Kernel, RecordedArray, Recorder, constant


def _same(*arrays: Any) -> bool:
    """True if all are recorded arrays of one shape and floating dtype, in C order."""
    first = arrays[0]
    return all(
        isinstance(x, RecordedArray)
        and x.shape == first.shape
        and x.dtype == first.dtype
        and x.dtype.kind == "f"
        and x.ghost.flags.c_contiguous
        for x in arrays
    )


def _none(x: RecordedArray) -> RecordedArray:
    """An empty array: it stands for an argument that is not there."""
    return constant(np.zeros(0, x.dtype))


def _decays(decay: Any, theta: RecordedArray) -> tuple[RecordedArray, Any] | None:
    """(a decay for each element or an empty array, one decay for all); None if it is neither."""
    if _is_number(decay):
        return _none(theta), decay
    if isinstance(decay, np.ndarray):
        decay = constant(decay)
    return (decay, 0.0) if _same(theta, decay) else None


def _update(
    recorder: Recorder, kernel: Kernel, arrays: tuple[Any, ...], settings: tuple[Any, ...], donate: bool, decay: Any
) -> Any:
    """Write down kernel(*arrays, [decays,] *settings[, decay]): (theta, *slots) if it can be done in place."""
    theta, _, *slots = arrays
    present = tuple(x for x in arrays if x is not None)
    if not donate or not _same(*present) or not all(x.is_whole for x in (theta, *slots) if x is not None):
        return None
    if not all(map(_is_number, settings)):
        return None
    operands = tuple(_none(theta) if x is None else x for x in arrays)
    if decay is None:
        recorder.call(kernel, *operands, *settings)
    else:
        found = _decays(decay, theta)
        if found is None:
            return None
        recorder.call(kernel, *operands, found[0], *settings, found[1])
    return tuple(x for x in (theta, *slots) if x is not None), None


@_body
def sgd(recorder: Recorder, theta: Any, gradient: Any, learning_rate: Any, *, donate: bool = False) -> Any:
    """In place on a donated theta; with a rate that is an array of no axes, into a new array."""
    if _is_number(learning_rate):
        found = _update(recorder, kernels.SGD, (theta, gradient), (learning_rate,), donate, None)
        return None if found is None else (found[0][0], None)
    if not _same(theta, gradient) or not _same(learning_rate) or learning_rate.shape != ():
        return None
    if learning_rate.dtype != theta.dtype:
        return None
    out = recorder.empty(theta.shape, theta.dtype)
    recorder.call(kernels.SGD_STEP, theta, gradient, learning_rate, out)

    def vjp(dy: Any) -> Any:
        return dy, dy * (-learning_rate)

    return out, vjp


@_body
def sgd_momentum(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    velocity: Any,
    learning_rate: Any,
    momentum: Any,
    gradient_weight: Any = 1.0,
    *,
    nesterov: bool = False,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and velocity."""
    settings = (learning_rate, momentum, gradient_weight, int(nesterov))
    return _update(recorder, kernels.SGD_MOMENTUM, (theta, gradient, velocity), settings, donate, None)


@_body
def adam(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and moments."""
    arrays = (theta, gradient, first_moment, second_moment)
    settings = (learning_rate, beta1, beta2, epsilon, correction1, correction2)
    return _update(recorder, kernels.ADAM, arrays, settings, donate, decay)


@_body
def amsgrad(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    largest_second_moment: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and moments."""
    arrays = (theta, gradient, first_moment, second_moment, largest_second_moment)
    settings = (learning_rate, beta1, beta2, epsilon, correction1, correction2)
    return _update(recorder, kernels.AMSGRAD, arrays, settings, donate, decay)


@_body
def nadam(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    gradient_rate: Any,
    moment_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction2: Any,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and moments."""
    arrays = (theta, gradient, first_moment, second_moment)
    settings = (gradient_rate, moment_rate, beta1, beta2, epsilon, correction2)
    return _update(recorder, kernels.NADAM, arrays, settings, donate, None)


@_body
def rmsprop(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    square_average: Any,
    velocity: Any,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and slots."""
    arrays = (theta, gradient, square_average, velocity)
    return _update(recorder, kernels.RMSPROP, arrays, (learning_rate, alpha, epsilon, momentum), donate, None)


@_body
def rmsprop_centered(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    variance: Any,
    average: Any,
    velocity: Any,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and slots."""
    arrays = (theta, gradient, variance, average, velocity)
    return _update(recorder, kernels.RMSPROP_CENTERED, arrays, (learning_rate, alpha, epsilon, momentum), donate, None)


@_body
def adagrad(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    square_sum: Any,
    learning_rate: Any,
    epsilon: Any,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and sum."""
    return _update(recorder, kernels.ADAGRAD, (theta, gradient, square_sum), (learning_rate, epsilon), donate, None)


@_body
def adadelta(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    square_average: Any,
    square_step_average: Any,
    learning_rate: Any,
    rho: Any,
    epsilon: Any,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and slots."""
    arrays = (theta, gradient, square_average, square_step_average)
    return _update(recorder, kernels.ADADELTA, arrays, (learning_rate, rho, epsilon), donate, None)


@_body
def lion(
    recorder: Recorder,
    theta: Any,
    gradient: Any,
    momentum: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """In place on a donated theta and momentum."""
    arrays = (theta, gradient, momentum)
    return _update(recorder, kernels.LION, arrays, (learning_rate, beta1, beta2), donate, decay)


@_body
def add_weight_decay(recorder: Recorder, gradient: Any, theta: Any, decay: Any) -> Any:
    """One pass, where the generic body would make two."""
    if not _same(gradient, theta) or (found := _decays(decay, theta)) is None:
        return None
    out = recorder.empty(theta.shape, theta.dtype)
    recorder.call(kernels.ADD_WEIGHT_DECAY, gradient, theta, *found, out)

    def vjp(dy: Any) -> Any:
        return dy, decay * dy, None

    return out, vjp


@_body
def moving_average(recorder: Recorder, average: Any, value: Any, decay: Any, *, donate: bool = False) -> Any:
    """In place on a donated average."""
    if not donate or not _same(average, value) or not average.is_whole or not _is_number(decay):
        return None
    recorder.call(kernels.MOVING_AVERAGE, average, value, decay)
    return average, None


@_body
def clip_by_value(recorder: Recorder, x: Any, limit: Any) -> Any:
    """One pass, where the generic body would make two."""
    if not _same(x) or not _is_number(limit):
        return None
    out = recorder.empty(x.shape, x.dtype)
    recorder.call(kernels.CLIP_BY_VALUE, x, limit, out)

    return out, _generic_vjp("clip_by_value", x, limit)


def _norm_parts(recorder: Recorder, blocks: tuple[Any, ...]) -> RecordedArray | None:
    """The parts of the norm of all blocks; None if they are not of one dtype, in C order, and not empty."""
    if not all(_same(x) and x.dtype == blocks[0].dtype and x.size for x in blocks):
        return None
    counts = [2 * kernels.blocks_of(x.size) for x in blocks]
    sums = recorder.empty((sum(counts),), np.dtype(np.float64))
    start = 0
    for x, count in zip(blocks, counts, strict=True):
        recorder.call(kernels.NORM_PARTS, x, kernels.BLOCK, sums[start : start + count])
        start += count
    return sums


def _generic_vjp(name: str, *arguments: Any, **options: Any) -> Any:
    """The vjp of the op's generic body; what that writes down is left out of the program where nothing needs it."""

    def vjp(cotangents: Any) -> Any:
        return OPS[name].generic(*arguments, **options)[1](cotangents)

    return vjp


@_body
def global_norm(recorder: Recorder, *blocks: Any) -> Any:
    """One pass, with sums in float64."""
    sums = _norm_parts(recorder, blocks)
    if sums is None:
        return None
    value = recorder.empty((), blocks[0].dtype)
    recorder.call(kernels.NORM, sums, value)
    return value, _generic_vjp("global_norm", *blocks)


def _clipped(recorder: Recorder, blocks: tuple[Any, ...], limit: Any) -> tuple[RecordedArray, ...] | None:
    """The blocks, made shorter by one factor; None if the generic body is to do it."""
    sums = _norm_parts(recorder, blocks) if _is_number(limit) else None
    if sums is None:
        return None
    clipped = tuple(recorder.empty(x.shape, x.dtype) for x in blocks)
    for x, out in zip(blocks, clipped, strict=True):
        recorder.call(kernels.CLIP_BY_NORM, x, sums, limit, out)
    return clipped


@_body
def clip_by_norm(recorder: Recorder, x: Any, limit: Any) -> Any:
    """A pass for the norm, with sums in float64, and a pass to clip."""
    clipped = _clipped(recorder, (x,), limit)
    return None if clipped is None else (clipped[0], _generic_vjp("clip_by_norm", x, limit))


@_body
def clip_by_global_norm(recorder: Recorder, *blocks: Any, limit: Any) -> Any:
    """A pass for the norm of all blocks, with sums in float64, and a pass to clip."""
    clipped = _clipped(recorder, blocks, limit)
    return None if clipped is None else (clipped, _generic_vjp("clip_by_global_norm", *blocks, limit=limit))


@_body
def secant_products(recorder: Recorder, theta: Any, gradient: Any, previous_theta: Any, previous_gradient: Any) -> Any:
    """One pass for all three sums, in float64."""
    arrays = (theta, gradient, previous_theta, previous_gradient)
    if not _same(*arrays) or not theta.size:
        return None
    sums = recorder.empty((3 * kernels.blocks_of(theta.size),), np.dtype(np.float64))
    recorder.call(kernels.SECANT_PARTS, *arrays, kernels.BLOCK, sums)
    values = tuple(recorder.empty((), theta.dtype) for _ in range(3))
    recorder.call(kernels.SECANT_TOTALS, sums, *values)
    return values, _generic_vjp("secant_products", *arrays)
