"""Losses and their gradients, with sums that do not depend on the number of threads.

A loss of single elements computes each element's loss and slope (its derivative with respect to the prediction) in one
pass; the gradient is the slopes times a number. A loss of rows works on as many rows at a time as the first-level
cache holds, so that short rows fill whole vectors too.

Operands that all have: `weight`, what each sample or row is multiplied with (empty: nothing); `counted`, the numbers by
whose sum the loss is divided (empty: by nothing); `factor`, what the loss is multiplied with; `sums`, one for each
block or row; `value`, the loss, or an empty array if the sums are added up by `loss_total`.
"""

# Functions are compiled for the types that they are called with.

import numpy as np
from numba.extending import register_jitable

from xpnn_backends.native.elementary import exp, like, log, log1p
from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.sums import largest_of, long_sum_of, sum_of

_PIECE = 2048
"""Elements that are worked on at a time."""


@register_jitable
def divisor(counted):
    """The sum of what counts, or 1 if that is not positive or nothing is given."""
    if counted.size == 0:
        return 1.0
    total = long_sum_of(counted)
    return total if total > 0.0 else 1.0


@register_jitable
def finish(sums, counted, factor, value):
    """value = factor (the sum of `sums`) / divisor, if the value is wanted here."""
    if value.size:
        value[0] = factor * long_sum_of(sums) / divisor(counted)


@kernel("f8:1 T:1 number T:1")
def loss_total(part, parts, sums, counted, factor, value):
    """The loss from the sums of all blocks or rows."""
    finish(sums, counted, factor, value)


@register_jitable
def weigh(losses, start, elements, weight):
    """Multiply losses, the first of which is that of element `start`, with the weights of their samples."""
    if elements == 1:
        weight = weight[start : start + losses.size]
        for i in range(losses.size):
            losses[i] *= weight[i]
    else:
        for i in range(losses.size):
            losses[i] *= weight[(start + i) // elements]


@register_jitable(inline="always")
def mse_and_slope(prediction, target, first, second):
    """r^2 and r (half the derivative), for r = prediction - target."""
    residual = prediction - target
    return residual * residual, residual


@register_jitable(inline="always")
def mae_and_slope(prediction, target, first, second):
    """|r| and its sign."""
    residual = prediction - target
    zero, one = like(residual, 0.0), like(residual, 1.0)
    sign = one if residual > zero else residual
    return abs(residual), -one if residual < zero else sign


@register_jitable(inline="always")
def huber_and_slope(prediction, target, delta, second):
    """a (|r| - a / 2) with a = min(|r|, delta), and r cut to [-delta, delta]."""
    residual = prediction - target
    size = abs(residual)
    cut = delta if size > delta else size
    slope = delta if residual > delta else residual
    return cut * (size - like(cut, 0.5) * cut), -delta if slope < -delta else slope


@register_jitable(inline="always")
def hinge_and_slope(score, label, first, second):
    """max(0, 1 - y f), and -y where that is positive."""
    zero = like(score, 0.0)
    margin = like(score, 1.0) - label * score
    return zero if margin < zero else margin, -label if margin > zero else zero


@register_jitable(inline="always")
def binary_cross_entropy_and_slope(logit, label, positive_weight, second):
    """a y softplus(-z) + (1 - y) softplus(z), and (1 - y) p - a y (1 - p), with exp(-|z|) alone."""
    zero, one = like(logit, 0.0), like(logit, 1.0)
    positive, negative = label * positive_weight, one - label
    decay = exp(-abs(logit))
    large = one / (one + decay)
    small = decay * large
    above = logit >= zero
    loss = positive * (zero if logit > zero else -logit) + negative * (logit if logit > zero else zero)
    loss += (positive + negative) * log1p(decay)
    slope = negative * (large if above else small) - positive * (small if above else large)
    return loss, slope


@register_jitable(inline="always")
def bounded_log(p, floor):
    """log p, continued by its tangent below the floor, and the derivative; see `xpnn.ops.logarithm`."""
    one = like(p, 1.0)
    inside = floor if p < floor else p
    outside = p if p < floor else floor
    return log(inside) + (outside * (one / floor) - one), one / inside


@register_jitable(inline="always")
def binary_cross_entropy_from_probabilities_and_slope(p, label, floor, floor_of_complement):
    """-y log p - (1 - y) log(1 - p), and -y / p + (1 - y) / (1 - p); see `xpnn.ops.logarithm` for the floors."""
    one = like(p, 1.0)
    log_yes, slope_yes = bounded_log(p, floor)
    ceiling = one - floor_of_complement
    inside = ceiling if p > ceiling else p
    beyond = (p - ceiling if p > ceiling else like(p, 0.0)) * (one / floor_of_complement)
    log_no = log1p(-inside) - beyond
    no = one - label
    return -(label * log_yes + no * log_no), no / (one - inside) - label * slope_yes


@register_jitable(inline="always")
def kl_divergence_and_slope(log_probability, target, first, second):
    """t (log t - l) and -t; 0 where t is not positive."""
    zero, one = like(target, 0.0), like(target, 1.0)
    present = target > zero
    difference = log(target if present else one) - log_probability
    return target * (difference if present else zero), -target


@register_jitable(inline="always")
def kl_divergence_and_target_slope(log_probability, target, first, second):
    """The same, with the derivative with respect to t: log t + 1 - l."""
    zero, one = like(target, 0.0), like(target, 1.0)
    present = target > zero
    difference = log(target if present else one) - log_probability
    return target * (difference if present else zero), difference + one if present else zero


@register_jitable(inline="always")
def log_kl_divergence_and_slope(log_probability, log_target, first, second):
    """t (s - l) and -t, for t = exp(s)."""
    target = exp(log_target)
    return target * (log_target - log_probability), -target


@register_jitable(inline="always")
def log_kl_divergence_and_target_slope(log_probability, log_target, first, second):
    """The same, with the derivative with respect to s: t (s - l + 1)."""
    target = exp(log_target)
    difference = log_target - log_probability
    return target * difference, target * (difference + like(target, 1.0))


def _elementwise(name, loss_and_slope):
    """The kernel of a loss of single elements, from a function of (prediction, target, and two settings)."""

    def run(
        part,
        parts,
        prediction,
        target,
        weight,
        counted,
        factor,
        first_setting,
        second_setting,
        block,
        slopes,
        losses,
        sums,
        value,
    ):
        first_number, second_number = like(slopes[0], first_setting), like(slopes[0], second_setting)
        elements = prediction.size // max(weight.size, 1)
        first, last = share(sums.size, part, parts)
        for number in range(first, last):
            total = 0.0
            stop = min((number + 1) * block, prediction.size)
            for start in range(number * block, stop, _PIECE):
                end = min(start + _PIECE, stop)
                predicted, wanted, slope = prediction[start:end], target[start:end], slopes[start:end]
                # Each thread uses one piece of this array, again and again.
                loss = losses[first * block : first * block + end - start]
                for i in range(predicted.size):
                    loss[i], slope[i] = loss_and_slope(predicted[i], wanted[i], first_number, second_number)
                if weight.size:
                    weigh(loss, start, elements, weight)
                total += sum_of(loss, 0, loss.size)
            sums[number] = total
        finish(sums, counted, factor, value)

    run.__name__ = run.__qualname__ = name
    return kernel("T:1 T:1 T:1 T:1 number number number int T:1 T:1 f8:1 T:1", parallel=True)(run)


mse = _elementwise("mse", mse_and_slope)
mae = _elementwise("mae", mae_and_slope)
huber = _elementwise("huber", huber_and_slope)
hinge = _elementwise("hinge", hinge_and_slope)
binary_cross_entropy = _elementwise("binary_cross_entropy", binary_cross_entropy_and_slope)
binary_cross_entropy_from_probabilities = _elementwise(
    "binary_cross_entropy_from_probabilities", binary_cross_entropy_from_probabilities_and_slope
)
kl_divergence = _elementwise("kl_divergence", kl_divergence_and_slope)
kl_divergence_target = _elementwise("kl_divergence_target", kl_divergence_and_target_slope)
log_kl_divergence = _elementwise("log_kl_divergence", log_kl_divergence_and_slope)
log_kl_divergence_target = _elementwise("log_kl_divergence_target", log_kl_divergence_and_target_slope)


@kernel("T:1 T:1 T:1 number T:1", parallel=True)
def loss_gradient(part, parts, slopes, weight, counted, factor, gradient):
    """gradient = factor / divisor * (the sample's weight) * slope."""
    factor /= divisor(counted)
    real = slopes.dtype.type
    if weight.size == 0:
        first, last = share(slopes.size, part, parts, 16)
        slopes, gradient = slopes[first:last], gradient[first:last]
        number = real(factor)
        for i in range(slopes.size):
            gradient[i] = slopes[i] * number
    else:
        elements = slopes.size // weight.size
        first, last = share(weight.size, part, parts)
        for row in range(first, last):
            number = real(factor * weight[row])
            slope, out = slopes[row * elements : (row + 1) * elements], gradient[row * elements : (row + 1) * elements]
            for i in range(slope.size):
                out[i] = slope[i] * number


@kernel("i8:1 T:1 T:1 int int T:1")
def label_weights(part, parts, labels, weight, class_weights, ignores, ignored, out):
    """The weight of each row: of its sample, times that of its label's class, 0 for an ignored label."""
    for i in range(labels.size):
        label = labels[i]
        number = weight[i] if weight.size else out.dtype.type(1.0)
        if class_weights.size:
            # A label that is no class counts nothing.
            number *= class_weights[label] if 0 <= label < class_weights.size else out.dtype.type(0.0)
        out[i] = out.dtype.type(0.0) if ignores and label == ignored else number


@register_jitable
def rows_at_a_time(columns):
    """How many rows the first-level cache holds."""
    return max(1, _PIECE // columns)


@register_jitable
def exponentials(x):
    """Replace all elements by their exponentials."""
    for i in range(x.size):
        x[i] = exp(x[i])


@kernel("T:1 i8:1 T:1 T:1 number T:1 T:1 f8:1 T:1", parallel=True)
def cross_entropy(part, parts, logits, labels, weight, counted, factor, powers, normalizers, sums, value):
    """powers = exp(z - max z), normalizers = their sums; a row loses log(normalizer) - (z_label - max z)."""
    classes = logits.size // labels.size
    first, last = share(labels.size, part, parts)
    rows = rows_at_a_time(classes)
    for top in range(first, last, rows):
        bottom = min(top + rows, last)
        for i in range(top, bottom):
            z, shifted = logits[i * classes : (i + 1) * classes], powers[i * classes : (i + 1) * classes]
            largest = largest_of(z, 0, classes)  # a NaN that it passes over makes the sum of the powers NaN
            for j in range(z.size):
                shifted[j] = z[j] - largest
            label = labels[i]
            sums[i] = shifted[label] if 0 <= label < classes else shifted.dtype.type(0.0)
        exponentials(powers[top * classes : bottom * classes])
        for i in range(top, bottom):
            normalizers[i] = sum_of(powers, i * classes, (i + 1) * classes)
        losses, normalizer, of_row = sums[top:bottom], normalizers[top:bottom], weight[top:bottom]
        if weight.size == 0:
            for i in range(losses.size):
                losses[i] = log(np.float64(normalizer[i])) - losses[i]
        else:
            for i in range(losses.size):
                # A row that does not count adds 0, however far its label's logit is.
                picked = losses[i] if of_row[i] != 0 else 0.0
                losses[i] = of_row[i] * (log(np.float64(normalizer[i])) - picked)
    finish(sums, counted, factor, value)


@kernel("T:1 T:1 i8:1 T:1 T:1 number T:1", parallel=True)
def cross_entropy_gradient(part, parts, powers, normalizers, labels, weight, counted, factor, gradient):
    """gradient = factor / divisor * weight * (softmax - one-hot)."""
    factor /= divisor(counted)
    classes = powers.size // labels.size
    first, last = share(labels.size, part, parts)
    for i in range(first, last):
        of_row = factor * weight[i] if weight.size else factor
        number = powers.dtype.type(of_row / normalizers[i])
        power, out = powers[i * classes : (i + 1) * classes], gradient[i * classes : (i + 1) * classes]
        for j in range(power.size):
            out[j] = power[j] * number
        label = labels[i]
        if 0 <= label < classes:
            out[label] -= powers.dtype.type(of_row)


@kernel("T:1 T:1 T:1 T:1 number T:1 T:1 T:1 f8:1 T:1", parallel=True)
def soft_cross_entropy(part, parts, logits, masses, weight, counted, factor, powers, normalizers, totals, sums, value):
    """As `cross_entropy`, for a mass m_k of each class: log(normalizer) (sum of m_k) - sum of m_k (z_k - max z)."""
    count = normalizers.size
    classes = logits.size // count
    first, last = share(count, part, parts)
    rows = rows_at_a_time(classes)
    zero = logits.dtype.type(0.0)
    for top in range(first, last, rows):
        bottom = min(top + rows, last)
        for i in range(top, bottom):
            z, shifted = logits[i * classes : (i + 1) * classes], powers[i * classes : (i + 1) * classes]
            mass = masses[i * classes : (i + 1) * classes]
            largest = largest_of(z, 0, classes)
            for j in range(z.size):
                # A class without mass adds 0 even where its logit is -infinity.
                shifted[j] = mass[j] * (z[j] - largest if mass[j] != zero else zero)
            sums[i] = sum_of(shifted, 0, classes)
            totals[i] = sum_of(mass, 0, classes)
            for j in range(z.size):
                shifted[j] = z[j] - largest
        exponentials(powers[top * classes : bottom * classes])
        for i in range(top, bottom):
            normalizer = sum_of(powers, i * classes, (i + 1) * classes)
            normalizers[i] = normalizer
            loss = log(normalizer) * np.float64(totals[i]) - sums[i]
            sums[i] = weight[i] * loss if weight.size else loss
    finish(sums, counted, factor, value)


@kernel("T:1 T:1 T:1 T:1 T:1 T:1 number T:1", parallel=True)
def soft_cross_entropy_gradient(part, parts, powers, normalizers, totals, masses, weight, counted, factor, gradient):
    """gradient = factor / divisor * weight * (softmax (sum of m_k) - m)."""
    factor /= divisor(counted)
    classes = powers.size // normalizers.size
    first, last = share(normalizers.size, part, parts)
    real = powers.dtype.type
    for i in range(first, last):
        of_row = real(factor * weight[i]) if weight.size else real(factor)
        number = totals[i] / normalizers[i]
        power, out = powers[i * classes : (i + 1) * classes], gradient[i * classes : (i + 1) * classes]
        mass = masses[i * classes : (i + 1) * classes]
        for j in range(power.size):
            out[j] = (power[j] * number - mass[j]) * of_row


@kernel("T:1 i8:1 T:1 T:1 number number T:1 f8:1 T:1", parallel=True)
def picked_log(part, parts, probabilities, labels, weight, counted, factor, floor, slopes, sums, value):
    """Each row loses -log p_label, or -p_label itself for a floor of 0; slopes = the derivatives."""
    classes = probabilities.size // labels.size
    first, last = share(labels.size, part, parts)
    real = probabilities.dtype.type
    lowest = real(floor)
    for i in range(first, last):
        label = labels[i]
        loss, slope = real(0.0), real(0.0)
        if 0 <= label < classes:
            p = probabilities[i * classes + label]
            if lowest > 0.0:
                logarithm, derivative = bounded_log(p, lowest)
                loss, slope = -logarithm, -derivative
            else:
                loss, slope = -p, real(-1.0)
        slopes[i] = slope
        if weight.size:
            loss = weight[i] * loss if weight[i] != 0 else real(0.0)
        sums[i] = loss
    finish(sums, counted, factor, value)


@kernel("T:1 i8:1 T:1 T:1 number T:1", parallel=True)
def picked_gradient(part, parts, slopes, labels, weight, counted, factor, gradient):
    """gradient = factor / divisor * weight * slope in the place of the label, 0 elsewhere."""
    factor /= divisor(counted)
    classes = gradient.size // labels.size
    first, last = share(labels.size, part, parts)
    real = gradient.dtype.type
    everything = gradient[first * classes : last * classes]
    for i in range(everything.size):
        everything[i] = real(0.0)
    for i in range(first, last):
        label = labels[i]
        if 0 <= label < classes:
            of_row = factor * weight[i] if weight.size else factor
            gradient[i * classes + label] = real(of_row) * slopes[i]


@kernel("T:1 i8:1 T:1 T:1 number i8:1 f8:1 T:1", parallel=True)
def categorical_hinge(part, parts, scores, labels, weight, counted, factor, best, sums, value):
    """max(0, 1 + max over k != y of f_k - f_y); best = that k (the first), or -1 where the loss is flat."""
    classes = scores.size // labels.size
    first, last = share(labels.size, part, parts)
    real = scores.dtype.type
    for i in range(first, last):
        score = scores[i * classes : (i + 1) * classes]
        label = labels[i]
        right = score[label] if 0 <= label < classes else real(0.0)
        largest = real(-np.inf)
        if 0 < label < classes:
            largest = largest_of(score, 0, label)
        if label < 0 or label >= classes:
            largest = largest_of(score, 0, classes)
        elif label + 1 < classes:
            after = largest_of(score, label + 1, classes)
            largest = after if after > largest else largest
        strange = False
        for j in range(score.size):
            strange |= score[j] != score[j]
        margin = real(np.nan) if strange else real(1.0) + (largest - right)
        found = -1
        if margin > 0.0:
            found = 0
            while found == label or score[found] != largest:
                found += 1
        best[i] = found
        loss = real(0.0) if margin < 0.0 else margin
        sums[i] = weight[i] * loss if weight.size else loss
    finish(sums, counted, factor, value)


@kernel("i8:1 i8:1 T:1 T:1 number T:1", parallel=True)
def categorical_hinge_gradient(part, parts, best, labels, weight, counted, factor, gradient):
    """gradient = factor / divisor * weight in the place of the best wrong class, and minus that in the label's."""
    factor /= divisor(counted)
    classes = gradient.size // labels.size
    first, last = share(labels.size, part, parts)
    real = gradient.dtype.type
    everything = gradient[first * classes : last * classes]
    for i in range(everything.size):
        everything[i] = real(0.0)
    for i in range(first, last):
        if best[i] >= 0:
            of_row = real(factor * weight[i]) if weight.size else real(factor)
            gradient[i * classes + best[i]] = of_row
            if 0 <= labels[i] < classes:
                gradient[i * classes + labels[i]] = -of_row
