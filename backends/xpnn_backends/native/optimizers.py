"""Optimizers' updates, in place on theta and the slots, in one pass over memory.

Where a formula touches many arrays, it is cut into loops over pieces that stay in the first-level cache: a compiler
makes vector code of a loop only if few pairs of arrays might overlap. It does so only for loops that count from 0, too
(else an index might be negative, which means something else in Python): kernels take views of their parts first.
"""

import numpy as np
from numba.extending import register_jitable

from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.sums import sum_of_products

_PIECE = 1024
"""Elements of a piece."""


@register_jitable
def shrink(theta, decays, learning_rate):
    """theta *= 1 - learning_rate decay, with one decay for each element; nothing if there are none."""
    if decays.size:
        one = theta.dtype.type(1.0)
        rate = theta.dtype.type(learning_rate)
        for i in range(theta.size):
            theta[i] *= one - rate * decays[i]


@register_jitable
def advance_moments(gradient, first_moment, second_moment, beta1, beta2):
    """m = beta1 m + (1 - beta1) g and v = beta2 v + (1 - beta2) g^2."""
    real = gradient.dtype.type
    old1, new1 = real(beta1), real(1.0 - beta1)
    old2, new2 = real(beta2), real(1.0 - beta2)
    for i in range(gradient.size):
        g = gradient[i]
        first_moment[i] = old1 * first_moment[i] + new1 * g
        second_moment[i] = old2 * second_moment[i] + g * (new2 * g)


@kernel("T:1 T:1 number", parallel=True)
def sgd(part, parts, theta, gradient, learning_rate):
    """theta -= learning_rate gradient."""
    first, last = share(theta.size, part, parts, 16)
    theta, gradient = theta[first:last], gradient[first:last]
    rate = theta.dtype.type(learning_rate)
    for i in range(theta.size):
        theta[i] -= gradient[i] * rate


@kernel("T:1 T:1 T:1 T:1", parallel=True)
def sgd_step(part, parts, theta, gradient, learning_rate, out):
    """out = theta - learning_rate gradient, for a learning rate that was computed on the way (one element)."""
    first, last = share(theta.size, part, parts, 16)
    theta, gradient, out = theta[first:last], gradient[first:last], out[first:last]
    rate = learning_rate[0]
    for i in range(theta.size):
        out[i] = theta[i] - gradient[i] * rate


@kernel("T:1 T:1 T:1 number number number int", parallel=True)
def sgd_momentum(part, parts, theta, gradient, velocity, learning_rate, momentum, gradient_weight, nesterov):
    """v = momentum v + gradient_weight g; theta -= learning_rate v, or (g + momentum v) for Nesterov's momentum."""
    first, last = share(theta.size, part, parts, 16)
    theta, gradient, velocity = theta[first:last], gradient[first:last], velocity[first:last]
    real = theta.dtype.type
    rate, keep, weight = real(learning_rate), real(momentum), real(gradient_weight)
    if nesterov:
        for i in range(theta.size):
            g = gradient[i]
            v = keep * velocity[i] + weight * g
            velocity[i] = v
            theta[i] -= rate * (g + keep * v)
    else:
        for i in range(theta.size):
            v = keep * velocity[i] + weight * gradient[i]
            velocity[i] = v
            theta[i] -= rate * v


@kernel("T:1 T:1 T:1 T:1 T:1 number number number number number number number", parallel=True)
def adam(
    part,
    parts,
    theta,
    gradient,
    first_moment,
    second_moment,
    decays,
    learning_rate,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
    decay,
):
    """Adam with decoupled decay; see `xpnn.ops.adam`. The correction of v is drawn out of the root."""
    first, last = share(theta.size, part, parts, 16)
    real = theta.dtype.type
    scale = np.sqrt(correction2)
    rate = real(learning_rate / correction1 * scale)
    floor = real(epsilon * scale)
    keep = real(1.0 - learning_rate * decay)
    old1, new1 = real(beta1), real(1.0 - beta1)
    old2, new2 = real(beta2), real(1.0 - beta2)
    for start in range(first, last, _PIECE):
        stop = min(start + _PIECE, last)
        theta_part = theta[start:stop]
        gradient_part = gradient[start:stop]
        first_part = first_moment[start:stop]
        second_part = second_moment[start:stop]
        decays_part = decays[start:stop]
        shrink(theta_part, decays_part, learning_rate)
        for i in range(theta_part.size):
            g = gradient_part[i]
            m = old1 * first_part[i] + new1 * g
            v = old2 * second_part[i] + g * (new2 * g)
            first_part[i] = m
            second_part[i] = v
            theta_part[i] = keep * theta_part[i] - rate * (m / (np.sqrt(v) + floor))


@kernel("T:1 T:1 T:1 T:1 T:1 T:1 number number number number number number number", parallel=True)
def amsgrad(
    part,
    parts,
    theta,
    gradient,
    first_moment,
    second_moment,
    largest_second_moment,
    decays,
    learning_rate,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
    decay,
):
    """Adam with the largest second moment so far in the denominator; see `xpnn.ops.amsgrad`."""
    first, last = share(theta.size, part, parts, 16)
    real = theta.dtype.type
    scale = np.sqrt(correction2)
    rate = real(learning_rate / correction1 * scale)
    floor = real(epsilon * scale)
    keep = real(1.0 - learning_rate * decay)
    for start in range(first, last, _PIECE):
        stop = min(start + _PIECE, last)
        theta_part = theta[start:stop]
        gradient_part = gradient[start:stop]
        first_part = first_moment[start:stop]
        second_part = second_moment[start:stop]
        largest_part = largest_second_moment[start:stop]
        decays_part = decays[start:stop]
        shrink(theta_part, decays_part, learning_rate)
        advance_moments(gradient_part, first_part, second_part, beta1, beta2)
        for i in range(theta_part.size):
            v, largest = second_part[i], largest_part[i]
            # A NaN on either side stays.
            largest = largest if largest >= v or largest != largest else v
            largest_part[i] = largest
            theta_part[i] = keep * theta_part[i] - rate * (first_part[i] / (np.sqrt(largest) + floor))


@kernel("T:1 T:1 T:1 T:1 number number number number number number", parallel=True)
def nadam(
    part,
    parts,
    theta,
    gradient,
    first_moment,
    second_moment,
    gradient_rate,
    moment_rate,
    beta1,
    beta2,
    epsilon,
    correction2,
):
    """Adam with Nesterov's momentum; see `xpnn.ops.nadam`."""
    first, last = share(theta.size, part, parts, 16)
    real = theta.dtype.type
    scale = np.sqrt(correction2)
    rate_of_gradient, rate_of_moment = real(gradient_rate * scale), real(moment_rate * scale)
    floor = real(epsilon * scale)
    for start in range(first, last, _PIECE):
        stop = min(start + _PIECE, last)
        theta_part = theta[start:stop]
        gradient_part = gradient[start:stop]
        first_part = first_moment[start:stop]
        second_part = second_moment[start:stop]
        advance_moments(gradient_part, first_part, second_part, beta1, beta2)
        for i in range(theta_part.size):
            direction = rate_of_gradient * gradient_part[i] + rate_of_moment * first_part[i]
            theta_part[i] -= direction / (np.sqrt(second_part[i]) + floor)


@kernel("T:1 T:1 T:1 T:1 number number number number", parallel=True)
def rmsprop(part, parts, theta, gradient, square_average, velocity, learning_rate, alpha, epsilon, momentum):
    """The gradient over its root mean square, with momentum unless the velocity is empty; see `xpnn.ops.rmsprop`."""
    first, last = share(theta.size, part, parts, 16)
    theta = theta[first:last]
    gradient = gradient[first:last]
    square_average = square_average[first:last]
    velocity = velocity[first:last]
    real = theta.dtype.type
    rate, floor, keep = real(learning_rate), real(epsilon), real(momentum)
    old, new = real(alpha), real(1.0 - alpha)
    if velocity.size:
        for i in range(theta.size):
            g = gradient[i]
            average = old * square_average[i] + g * (new * g)
            square_average[i] = average
            v = keep * velocity[i] + g / (np.sqrt(average) + floor)
            velocity[i] = v
            theta[i] -= rate * v
    else:
        for i in range(theta.size):
            g = gradient[i]
            average = old * square_average[i] + g * (new * g)
            square_average[i] = average
            theta[i] -= rate * (g / (np.sqrt(average) + floor))


@kernel("T:1 T:1 T:1 T:1 T:1 number number number number", parallel=True)
def rmsprop_centered(
    part, parts, theta, gradient, variance, average, velocity, learning_rate, alpha, epsilon, momentum
):
    """The gradient over its standard deviation; see `xpnn.ops.rmsprop_centered`. An empty velocity: no momentum."""
    first, last = share(theta.size, part, parts, 16)
    real = theta.dtype.type
    rate, floor, keep = real(learning_rate), real(epsilon), real(momentum)
    old, new, both = real(alpha), real(1.0 - alpha), real(alpha * (1.0 - alpha))
    for start in range(first, last, _PIECE):
        stop = min(start + _PIECE, last)
        theta_part = theta[start:stop]
        gradient_part = gradient[start:stop]
        variance_part = variance[start:stop]
        average_part = average[start:stop]
        velocity_part = velocity[start:stop]
        for i in range(theta_part.size):
            offset = gradient_part[i] - average_part[i]
            variance_part[i] = old * variance_part[i] + offset * (both * offset)
            average_part[i] += new * offset
        if velocity_part.size:
            for i in range(theta_part.size):
                v = keep * velocity_part[i] + gradient_part[i] / (np.sqrt(variance_part[i]) + floor)
                velocity_part[i] = v
                theta_part[i] -= rate * v
        else:
            for i in range(theta_part.size):
                theta_part[i] -= rate * (gradient_part[i] / (np.sqrt(variance_part[i]) + floor))


@kernel("T:1 T:1 T:1 number number", parallel=True)
def adagrad(part, parts, theta, gradient, square_sum, learning_rate, epsilon):
    """The gradient over the root of the sum of its squares; see `xpnn.ops.adagrad`."""
    first, last = share(theta.size, part, parts, 16)
    theta, gradient, square_sum = theta[first:last], gradient[first:last], square_sum[first:last]
    rate, floor = theta.dtype.type(learning_rate), theta.dtype.type(epsilon)
    for i in range(theta.size):
        g = gradient[i]
        total = square_sum[i] + g * g
        square_sum[i] = total
        theta[i] -= rate * (g / (np.sqrt(total) + floor))


@kernel("T:1 T:1 T:1 T:1 number number number", parallel=True)
def adadelta(part, parts, theta, gradient, square_average, square_step_average, learning_rate, rho, epsilon):
    """Steps of the size of earlier steps; see `xpnn.ops.adadelta`."""
    first, last = share(theta.size, part, parts, 16)
    theta = theta[first:last]
    gradient = gradient[first:last]
    square_average = square_average[first:last]
    square_step_average = square_step_average[first:last]
    real = theta.dtype.type
    rate, floor = real(learning_rate), real(epsilon)
    old, new = real(rho), real(1.0 - rho)
    for i in range(theta.size):
        g = gradient[i]
        average = old * square_average[i] + g * (new * g)
        square_average[i] = average
        steps = square_step_average[i]
        step = g * (np.sqrt(steps + floor) / np.sqrt(average + floor))
        square_step_average[i] = old * steps + step * (new * step)
        theta[i] -= rate * step


@kernel("T:1 T:1 T:1 T:1 number number number number", parallel=True)
def lion(part, parts, theta, gradient, momentum, decays, learning_rate, beta1, beta2, decay):
    """Steps of one length along a sign; see `xpnn.ops.lion`."""
    first, last = share(theta.size, part, parts, 16)
    real = theta.dtype.type
    zero, rate, keep = real(0.0), real(learning_rate), real(1.0 - learning_rate * decay)
    old1, new1 = real(beta1), real(1.0 - beta1)
    old2, new2 = real(beta2), real(1.0 - beta2)
    for start in range(first, last, _PIECE):
        stop = min(start + _PIECE, last)
        theta_part = theta[start:stop]
        gradient_part = gradient[start:stop]
        momentum_part = momentum[start:stop]
        decays_part = decays[start:stop]
        shrink(theta_part, decays_part, learning_rate)
        for i in range(theta_part.size):
            g = gradient_part[i]
            mixed = old1 * momentum_part[i] + new1 * g
            # The step is 0 for a zero and NaN for a NaN, as the sign is.
            step = rate * mixed
            step = rate if mixed > zero else step
            step = -rate if mixed < zero else step
            momentum_part[i] = old2 * momentum_part[i] + new2 * g
            theta_part[i] = keep * theta_part[i] - step


@kernel("T:1 T:1 T:1 number T:1", parallel=True)
def add_weight_decay(part, parts, gradient, theta, decays, decay, out):
    """out = gradient + decay theta, with one decay for each element, or one for all if `decays` is empty."""
    first, last = share(theta.size, part, parts, 16)
    gradient, theta, decays, out = gradient[first:last], theta[first:last], decays[first:last], out[first:last]
    if decays.size:
        for i in range(gradient.size):
            out[i] = gradient[i] + decays[i] * theta[i]
    else:
        factor = theta.dtype.type(decay)
        for i in range(gradient.size):
            out[i] = gradient[i] + factor * theta[i]


@kernel("T:1 T:1 number", parallel=True)
def moving_average(part, parts, average, value, decay):
    """average = decay average + (1 - decay) value."""
    first, last = share(average.size, part, parts, 16)
    average, value = average[first:last], value[first:last]
    old, new = average.dtype.type(decay), average.dtype.type(1.0 - decay)
    for i in range(average.size):
        average[i] = old * average[i] + new * value[i]


@kernel("T:1 number T:1", parallel=True)
def clip_by_value(part, parts, x, limit, out):
    """out = x, moved into [-limit, limit]; a NaN stays."""
    first, last = share(x.size, part, parts, 16)
    x, out = x[first:last], out[first:last]
    upper, lower = x.dtype.type(limit), x.dtype.type(-limit)
    for i in range(x.size):
        value = x[i]
        value = upper if value > upper else value
        out[i] = lower if value < lower else value


@kernel("T:1 int f8:1", parallel=True)
def norm_parts(part, parts, x, length, sums):
    """For each block of `length` elements of x, (a, b) with a^2 b its sum of squares; neither overflows or underflows.

    a is 1 unless that sum would be out of float64's range; then it is the block's largest element.
    """
    blocks = sums.size // 2
    first, last = share(blocks, part, parts)
    for block in range(first, last):
        values = x[block * length : (block + 1) * length]
        scale = 1.0
        total = sum_of_products(values, values)
        if total < 1e-280 or total == np.inf:
            scale = 0.0
            for i in range(values.size):
                size = np.abs(np.float64(values[i]))
                scale = size if size > scale else scale
            if scale == np.inf:
                scale = 1.0
            elif scale > 0.0:
                total = 0.0
                for i in range(values.size):
                    ratio = np.float64(values[i]) / scale
                    total += ratio * ratio
        sums[2 * block] = scale
        sums[2 * block + 1] = total


@register_jitable
def scaled_norm(sums, smallest_scale):
    """(scale, norm / scale) from the parts; the scale is at least `smallest_scale`, and never 0."""
    scale = smallest_scale
    for block in range(sums.size // 2):
        scale = sums[2 * block] if sums[2 * block] > scale else scale
    if scale == 0.0:
        scale = 1.0
    total = 0.0
    for block in range(sums.size // 2):
        ratio = sums[2 * block] / scale
        total += ratio * ratio * sums[2 * block + 1]
    return scale, np.sqrt(total)


@kernel("f8:1 T:1")
def norm(part, parts, sums, value):
    """The Euclidean norm, from the parts of all blocks."""
    scale, length = scaled_norm(sums, 0.0)
    value[0] = scale * length


@kernel("T:1 f8:1 number T:1", parallel=True)
def clip_by_norm(part, parts, x, sums, limit, out):
    """out = x min(1, limit / (norm + 1e-6)), with the norm of all blocks that `sums` has the parts of."""
    first, last = share(x.size, part, parts, 16)
    x, out = x[first:last], out[first:last]
    scale, length = scaled_norm(sums, 1.0)
    longer = length + 1e-6 / scale
    factor = limit / longer
    if longer <= limit / scale:
        for i in range(x.size):
            out[i] = x[i]
    elif scale == 1.0 and factor > 1e-30:
        short = x.dtype.type(factor)
        for i in range(x.size):
            out[i] = x[i] * short
    else:
        # A factor that small need not be a number of float32.
        for i in range(x.size):
            out[i] = np.float64(x[i]) / scale * factor


@kernel("T:1 T:1 T:1 T:1 int f8:1", parallel=True)
def secant_parts(part, parts, theta, gradient, previous_theta, previous_gradient, length, sums):
    """For each block, s.s, s.y and y.y with s the change of theta and y that of the gradient."""
    first, last = share(sums.size // 3, part, parts)
    for block in range(first, last):
        start, stop = block * length, min((block + 1) * length, theta.size)
        theta_part, theta_before = theta[start:stop], previous_theta[start:stop]
        gradient_part, gradient_before = gradient[start:stop], previous_gradient[start:stop]
        ss = sy = yy = 0.0
        for i in range(theta_part.size):
            s = np.float64(theta_part[i] - theta_before[i])
            y = np.float64(gradient_part[i] - gradient_before[i])
            ss += s * s
            sy += s * y
            yy += y * y
        sums[3 * block] = ss
        sums[3 * block + 1] = sy
        sums[3 * block + 2] = yy


@kernel("f8:1 T:1 T:1 T:1")
def secant_totals(part, parts, sums, ss, sy, yy):
    """The sums over the blocks."""
    first = second = third = 0.0
    for block in range(sums.size // 3):
        first += sums[3 * block]
        second += sums[3 * block + 1]
        third += sums[3 * block + 2]
    ss[0] = first
    sy[0] = second
    yy[0] = third
