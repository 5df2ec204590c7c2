"""Kernels of the optimizers: updates in place, clipping, norms. See `kernels` for what a kernel is.

The NumPy functions work piece by piece, so that what one call leaves in the cache the next one finds there. Where a
kernel takes one number for each element or one for all, an empty array stands for the second.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnn_backends.recording import Kernel

BLOCK = 16384
"""Elements of a block: long sums are made block by block, and the same blocks whatever the number of threads."""

CHUNK = 32768
"""Elements of a piece: the pieces of all arrays of an optimizer fit a core's second-level cache together."""


def blocks_of(size: int) -> int:
    """How many blocks that many elements make."""
    return -(-size // BLOCK)


def _pieces(*arrays: Any) -> Any:
    """Views of arrays of one size, piece by piece; an empty array stays as it is.

    Arrays come whole if they are small, or not contiguous: flattening would copy them.
    """
    if arrays[0].size <= CHUNK or not all(array.flags.c_contiguous for array in arrays):
        return (arrays,)
    flat = [array.reshape(-1) for array in arrays]
    return (
        tuple(array[start : start + CHUNK] if array.size else array for array in flat)
        for start in range(0, arrays[0].size, CHUNK)
    )


def _sgd(theta: Any, gradient: Any, learning_rate: Any) -> None:
    for part, slope in _pieces(theta, gradient):
        part -= slope * learning_rate


SGD = Kernel("sgd", _sgd, "sgd", (0,))
"""sgd(theta, gradient, learning_rate), in place."""


def _sgd_step(theta: Any, gradient: Any, learning_rate: Any, out: Any) -> None:
    np.multiply(gradient, learning_rate, out=out)
    np.subtract(theta, out, out=out)


SGD_STEP = Kernel("sgd_step", _sgd_step, "sgd_step")
"""sgd_step(theta, gradient, learning_rate, out): out = theta - learning_rate gradient, the rate an array."""


def _sgd_momentum(
    theta: Any, gradient: Any, velocity: Any, learning_rate: Any, momentum: Any, gradient_weight: Any, nesterov: Any
) -> None:
    for part, slope, speed in _pieces(theta, gradient, velocity):
        speed *= momentum
        speed += slope if gradient_weight == 1.0 else slope * gradient_weight
        direction = slope + momentum * speed if nesterov else speed
        part -= direction * learning_rate


SGD_MOMENTUM = Kernel("sgd_momentum", _sgd_momentum, "sgd_momentum", (0, 2))
"""sgd_momentum(theta, gradient, velocity, learning_rate, momentum, gradient_weight, nesterov), in place."""


def _advance(moment: Any, old: Any, addend: Any, new: Any, buffer: Any) -> None:
    """moment = old * moment + new * addend."""
    moment *= old
    np.multiply(addend, new, out=buffer)
    moment += buffer


def _advance_square(moment: Any, old: Any, root: Any, new: Any, buffer: Any) -> None:
    """moment = old * moment + new * root^2; root * (new * root) is finite for some roots whose square is not."""
    moment *= old
    np.multiply(root, new, out=buffer)
    buffer *= root
    moment += buffer


def _shrink(part: Any, learning_rate: Any, decay: Any, shares: Any) -> None:
    """part *= 1 - learning_rate * decay."""
    if shares.size:
        part *= 1.0 - learning_rate * shares
    elif decay != 0.0:
        part *= 1.0 - learning_rate * decay


def _adam(
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    decays: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any,
) -> None:
    # rate * m / (sqrt(v) / scale + epsilon) with the scale drawn out of the root: one pass fewer.
    scale = math.sqrt(correction2)
    rate = learning_rate / correction1 * scale
    for part, slope, first, second, shares in _pieces(theta, gradient, first_moment, second_moment, decays):
        buffer = np.empty_like(part)
        _advance(first, beta1, slope, 1.0 - beta1, buffer)
        _advance_square(second, beta2, slope, 1.0 - beta2, buffer)
        np.sqrt(second, out=buffer)
        buffer += epsilon * scale
        np.divide(first, buffer, out=buffer)
        buffer *= rate
        _shrink(part, learning_rate, decay, shares)
        part -= buffer


ADAM = Kernel("adam", _adam, "adam", (0, 2, 3))
"""adam(theta, gradient, first_moment, second_moment, decays, learning_rate, beta1, beta2, epsilon, correction1,
correction2, decay), in place; the decay counts where `decays` is empty."""


def _amsgrad(
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    largest_second_moment: Any,
    decays: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any,
) -> None:
    scale = math.sqrt(correction2)
    rate = learning_rate / correction1 * scale
    arrays = (theta, gradient, first_moment, second_moment, largest_second_moment, decays)
    for part, slope, first, second, largest, shares in _pieces(*arrays):
        buffer = np.empty_like(part)
        _advance(first, beta1, slope, 1.0 - beta1, buffer)
        _advance_square(second, beta2, slope, 1.0 - beta2, buffer)
        np.maximum(largest, second, out=largest)
        np.sqrt(largest, out=buffer)
        buffer += epsilon * scale
        np.divide(first, buffer, out=buffer)
        buffer *= rate
        _shrink(part, learning_rate, decay, shares)
        part -= buffer


AMSGRAD = Kernel("amsgrad", _amsgrad, "amsgrad", (0, 2, 3, 4))
"""amsgrad(theta, gradient, first_moment, second_moment, largest_second_moment, decays, and on as `ADAM`), in place."""


def _nadam(
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
) -> None:
    scale = math.sqrt(correction2)
    for part, slope, first, second in _pieces(theta, gradient, first_moment, second_moment):
        buffer = np.empty_like(part)
        _advance(first, beta1, slope, 1.0 - beta1, buffer)
        _advance_square(second, beta2, slope, 1.0 - beta2, buffer)
        np.sqrt(second, out=buffer)
        buffer += epsilon * scale
        direction = slope * (gradient_rate * scale)
        direction += first * (moment_rate * scale)
        direction /= buffer
        part -= direction


NADAM = Kernel("nadam", _nadam, "nadam", (0, 2, 3))
"""nadam(theta, gradient, first_moment, second_moment, gradient_rate, moment_rate, beta1, beta2, epsilon, correction2),
in place."""


def _move(part: Any, direction: Any, speed: Any, rate: Any, momentum: Any) -> None:
    """One step along the direction, or with a velocity, along what that becomes. The direction is overwritten."""
    if speed.size:
        speed *= momentum
        speed += direction
        np.multiply(speed, rate, out=direction)
    else:
        direction *= rate
    part -= direction


def _rmsprop(
    theta: Any,
    gradient: Any,
    square_average: Any,
    velocity: Any,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any,
) -> None:
    for part, slope, average, speed in _pieces(theta, gradient, square_average, velocity):
        buffer = np.empty_like(part)
        _advance_square(average, alpha, slope, 1.0 - alpha, buffer)
        np.sqrt(average, out=buffer)
        buffer += epsilon
        np.divide(slope, buffer, out=buffer)
        _move(part, buffer, speed, learning_rate, momentum)


RMSPROP = Kernel("rmsprop", _rmsprop, "rmsprop", (0, 2, 3))
"""rmsprop(theta, gradient, square_average, velocity, learning_rate, alpha, epsilon, momentum), in place; an empty
velocity stands for no momentum."""


def _rmsprop_centered(
    theta: Any,
    gradient: Any,
    variance: Any,
    average: Any,
    velocity: Any,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any,
) -> None:
    for part, slope, spread, mean, speed in _pieces(theta, gradient, variance, average, velocity):
        buffer = np.empty_like(part)
        offset = slope - mean
        _advance_square(spread, alpha, offset, alpha * (1.0 - alpha), buffer)
        offset *= 1.0 - alpha
        mean += offset
        np.sqrt(spread, out=buffer)
        buffer += epsilon
        np.divide(slope, buffer, out=buffer)
        _move(part, buffer, speed, learning_rate, momentum)


RMSPROP_CENTERED = Kernel("rmsprop_centered", _rmsprop_centered, "rmsprop_centered", (0, 2, 3, 4))
"""rmsprop_centered(theta, gradient, variance, average, velocity, and on as `RMSPROP`), in place."""


def _adagrad(theta: Any, gradient: Any, square_sum: Any, learning_rate: Any, epsilon: Any) -> None:
    for part, slope, total in _pieces(theta, gradient, square_sum):
        buffer = slope * slope
        total += buffer
        np.sqrt(total, out=buffer)
        buffer += epsilon
        np.divide(slope, buffer, out=buffer)
        buffer *= learning_rate
        part -= buffer


ADAGRAD = Kernel("adagrad", _adagrad, "adagrad", (0, 2))
"""adagrad(theta, gradient, square_sum, learning_rate, epsilon), in place."""


def _adadelta(
    theta: Any, gradient: Any, square_average: Any, square_step_average: Any, learning_rate: Any, rho: Any, epsilon: Any
) -> None:
    for part, slope, average, steps in _pieces(theta, gradient, square_average, square_step_average):
        buffer = np.empty_like(part)
        _advance_square(average, rho, slope, 1.0 - rho, buffer)
        np.add(average, epsilon, out=buffer)
        np.sqrt(buffer, out=buffer)
        step = steps + epsilon
        np.sqrt(step, out=step)
        step /= buffer
        step *= slope
        _advance_square(steps, rho, step, 1.0 - rho, buffer)
        step *= learning_rate
        part -= step


ADADELTA = Kernel("adadelta", _adadelta, "adadelta", (0, 2, 3))
"""adadelta(theta, gradient, square_average, square_step_average, learning_rate, rho, epsilon), in place."""


def _lion(
    theta: Any, gradient: Any, momentum: Any, decays: Any, learning_rate: Any, beta1: Any, beta2: Any, decay: Any
) -> None:
    for part, slope, mean, shares in _pieces(theta, gradient, momentum, decays):
        buffer = np.empty_like(part)
        direction = mean * beta1
        np.multiply(slope, 1.0 - beta1, out=buffer)
        direction += buffer
        np.sign(direction, out=direction)
        direction *= learning_rate
        _advance(mean, beta2, slope, 1.0 - beta2, buffer)
        _shrink(part, learning_rate, decay, shares)
        part -= direction


LION = Kernel("lion", _lion, "lion", (0, 2))
"""lion(theta, gradient, momentum, decays, learning_rate, beta1, beta2, decay), in place."""


def _add_weight_decay(gradient: Any, theta: Any, decays: Any, decay: Any, out: Any) -> None:
    for slope, part, shares, to in _pieces(gradient, theta, decays, out):
        np.multiply(part, shares if shares.size else decay, out=to)
        to += slope


ADD_WEIGHT_DECAY = Kernel("add_weight_decay", _add_weight_decay, "add_weight_decay")
"""add_weight_decay(gradient, theta, decays, decay, out): out = gradient + decay theta."""


def _moving_average(average: Any, value: Any, decay: Any) -> None:
    for mean, part in _pieces(average, value):
        mean *= decay
        mean += part * (1.0 - decay)


MOVING_AVERAGE = Kernel("moving_average", _moving_average, "moving_average", (0,))
"""moving_average(average, value, decay), in place: average = decay average + (1 - decay) value."""


def _clip_by_value(x: Any, limit: Any, out: Any) -> None:
    np.minimum(x, limit, out=out)
    np.maximum(out, -limit, out=out)


CLIP_BY_VALUE = Kernel("clip_by_value", _clip_by_value, "clip_by_value")
"""clip_by_value(x, limit, out): x, moved into [-limit, limit]."""


def _norm_parts(x: Any, block: int, sums: Any) -> None:
    flat = x.reshape(-1)
    with np.errstate(over="ignore", under="ignore"):
        for number in range(sums.size // 2):
            part = flat[number * block : (number + 1) * block].astype(np.float64)
            scale, total = 1.0, np.add.reduce(part * part)
            if total < 1e-280 or total == np.inf:
                scale = np.maximum.reduce(np.abs(part))
                if scale == np.inf:
                    scale = 1.0
                elif scale > 0.0:
                    part /= scale
                    total = np.add.reduce(part * part)
            sums[2 * number : 2 * number + 2] = scale, total


NORM_PARTS = Kernel("norm_parts", _norm_parts, "norm_parts")
"""norm_parts(x, block, sums): for each block of x, (a, b) with a^2 b its sum of squares, in float64; neither overflows
or underflows. a is 1 unless the plain sum would be out of range."""


def _scaled_norm(sums: Any, smallest_scale: float) -> tuple[float, float]:
    """(scale, norm / scale) from the parts; the scale is at least `smallest_scale`, and never 0."""
    scales, totals = sums[::2], sums[1::2]
    scale = max(float(np.maximum.reduce(scales)), smallest_scale) or 1.0
    return scale, math.sqrt(np.add.reduce((scales / scale) ** 2 * totals))


def _norm(sums: Any, value: Any) -> None:
    scale, length = _scaled_norm(sums, 0.0)
    with np.errstate(over="ignore"):
        value[...] = scale * length


NORM = Kernel("norm", _norm, "norm")
"""norm(sums, value): the Euclidean norm from the parts of all blocks."""


def _clip_by_norm(x: Any, sums: Any, limit: Any, out: Any) -> None:
    scale, length = _scaled_norm(sums, 1.0)
    longer = length + 1e-6 / scale
    if longer <= limit / scale:
        np.copyto(out, x)
    elif scale == 1.0 and limit / longer > 1e-30:
        np.multiply(x, limit / longer, out=out)
    else:
        # A factor that small need not be a number of float32.
        np.copyto(out, x.astype(np.float64) / scale * (limit / longer), casting="same_kind")


CLIP_BY_NORM = Kernel("clip_by_norm", _clip_by_norm, "clip_by_norm")
"""clip_by_norm(x, sums, limit, out): out = x min(1, limit / (norm + 1e-6)), with the norm that `sums` has the parts of;
a NaN in it counts as too long."""


def _secant_parts(
    theta: Any, gradient: Any, previous_theta: Any, previous_gradient: Any, block: int, sums: Any
) -> None:
    s = (theta - previous_theta).reshape(-1).astype(np.float64)
    y = (gradient - previous_gradient).reshape(-1).astype(np.float64)
    for number in range(sums.size // 3):
        part = slice(number * block, (number + 1) * block)
        sums[3 * number] = np.add.reduce(s[part] * s[part])
        sums[3 * number + 1] = np.add.reduce(s[part] * y[part])
        sums[3 * number + 2] = np.add.reduce(y[part] * y[part])


SECANT_PARTS = Kernel("secant_parts", _secant_parts, "secant_parts")
"""secant_parts(theta, gradient, previous_theta, previous_gradient, block, sums): for each block s.s, s.y and y.y with s
the change of theta and y that of the gradient."""


def _secant_totals(sums: Any, ss: Any, sy: Any, yy: Any) -> None:
    ss[...], sy[...], yy[...] = np.add.reduce(sums.reshape(-1, 3))


SECANT_TOTALS = Kernel("secant_totals", _secant_totals, "secant_totals", (1, 2, 3))
"""secant_totals(sums, ss, sy, yy): the sums over the blocks."""
