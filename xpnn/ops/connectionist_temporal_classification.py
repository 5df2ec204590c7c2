"""Connectionist temporal classification (CTC): the loss of a sequence of labels that is not aligned with the input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ConfigError, ShapeError
from xpnn.ops.reduction import reduce_loss
from xpnn.ops.softmax import log_softmax


class Path(NamedTuple):
    """The labels with a blank before, between and behind them: the places that an alignment goes through.

    Attributes:
        labels: (batch, places), with places = 2 length + 1; the blank again behind the end of a shorter sequence.
        lengths: how many labels each sample has, (batch,).
        exists: (batch, places), False behind the end.
        can_be_entered_late: (batch, places), True where an alignment may come from two places before: past a blank
            that stands between two different labels.
        is_last: (batch, places), True for the last label and for the blank behind it: an alignment ends in one of them.
    """

    labels: Array
    lengths: Array
    exists: Array
    can_be_entered_late: Array
    is_last: Array


@op
def ctc(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    input_lengths: Array | None = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> tuple[Array, Vjp]:
    """The negative log-likelihood of label sequences under all their alignments with the input (Graves, Fernandez,
    Gomez and Schmidhuber, ICML 2006).

    In each time step the network says one of the classes, of which one is the blank. What it says stands for the labels
    that are left when repetitions are dropped, then blanks. With p_t the softmax of the logits of step t, the
    likelihood of the labels is the sum over all sayings c that stand for them of the product over t of p_t(c_t). It is
    computed place by place along the labels with blanks between them (forward variables alpha), in logarithms.

    Derivative with respect to the logits: p_t(k) - (probability, given the labels, that class k is said in step t). The
    latter comes from alpha and from the same recursion backwards in time (beta).

    Where no alignment exists (more labels, and blanks that must be between equal ones, than steps), the loss is
    infinite and its gradient NaN, as in PyTorch; or both are 0 with `zero_infinity`.

    Args:
        logits: (batch, time, classes).
        targets: labels (batch, length), integers; -1 behind the end of a shorter sequence.
        weight: one number for each sample, (batch,), or None.
        input_lengths: how many steps of each sample count, integers (batch,), or None for all. The others have
            gradient 0.
        blank: the number of the class that stands for no label.
        reduction: "mean": each sample's loss is divided by its number of labels (by 1 if it has none), then their mean
            is taken, as in PyTorch; "batch_mean": their mean; "sum": their sum; or half of the latter two,
            "half_batch_mean", "half_sum".
        zero_infinity: True to take an infinite loss as 0.

    Returns:
        The loss as a 0-d array, and vjp(dy) -> (dlogits, None, None, None).

    Raises:
        ShapeError: the shapes do not fit together.
        ConfigError: the blank is no class, or the reduction is unknown.
    """
    return ctc_in_steps(
        in_steps,
        logits,
        targets,
        weight,
        input_lengths,
        blank=blank,
        reduction=reduction,
        zero_infinity=zero_infinity,
    )


def in_steps(xp: Any, step: Callable[[Any, Any], tuple[Any, Any]], start: Any, given: Any, reverse: bool) -> Any:
    """(what the last step left, what each step gave), step by step: (left, gave) = step(left by the one before, given).

    Args:
        xp: the namespace.
        step: one step.
        start: what the first step gets.
        given: a tuple of arrays with time in front, or None; each step gets its part of them.
        reverse: True to go from the last step to the first.
    """
    time = given[0].shape[0]
    gave: list[Any] = [None] * time
    left = start
    for number in reversed(range(time)) if reverse else range(time):
        left, gave[number] = step(left, tuple(None if array is None else array[number, ...] for array in given))
    return left, xp.stack(gave, axis=0) if time else given[0]


def ctc_in_steps(
    loop: Callable[..., Any],
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    input_lengths: Array | None = None,
    *,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> tuple[Array, Vjp]:
    """`ctc`, with a function that takes the steps as `in_steps` does: a backend may have a better one."""
    xp = namespace(logits)
    _check(logits, targets, input_lengths, blank)
    time = logits.shape[1]
    path = _path(xp, targets, blank)
    log_probabilities, _ = log_softmax(logits)
    said = xp.permute_dims(_log_probabilities_of_places(xp, log_probabilities, path), (1, 0, 2))
    counts = None if input_lengths is None else _counts(xp, input_lengths, time)
    alphas, log_likelihood = _forward(xp, loop, said, counts, path)
    infinite = log_likelihood == -math.inf
    losses = -log_likelihood
    if zero_infinity:
        losses = xp.where(infinite, xp.zeros_like(losses), losses)
    shares = xp.ones_like(losses)
    if reduction == "mean":
        lengths = xp.astype(path.lengths, losses.dtype)
        shares = 1.0 / xp.maximum(lengths, 1.0)
    value, factor = reduce_loss(xp, losses * shares, weight, reduction)

    def vjp(dy: Any) -> tuple[Any, None, None, None]:
        if time == 0:
            return xp.zeros_like(logits), None, None, None
        occupied = xp.permute_dims(_occupancy(xp, loop, alphas, said, counts, path), (1, 0, 2))
        is_label = xp.expand_dims(path.labels, axis=-1) == xp.arange(
            logits.shape[-1], dtype=path.labels.dtype, device=device(logits)
        )
        expected = xp.matmul(occupied, xp.astype(is_label, logits.dtype))
        scale = xp.reshape(shares * (dy * factor), (logits.shape[0], 1, 1))
        dlogits = (xp.exp(log_probabilities) - expected) * scale
        instead = xp.zeros_like(dlogits) if zero_infinity else xp.full_like(dlogits, math.nan)
        dlogits = xp.where(xp.reshape(infinite, (logits.shape[0], 1, 1)), instead, dlogits)
        if counts is not None:
            dlogits = xp.where(xp.permute_dims(counts, (1, 0, 2)), dlogits, xp.zeros_like(dlogits))
        return dlogits, None, None, None

    return value, vjp


def _path(xp: Any, targets: Array, blank: int) -> Path:
    batch, length = targets.shape
    places = 2 * length + 1
    blanks = xp.full((batch, places + 1), blank, dtype=targets.dtype, device=device(targets))
    is_label = targets >= 0
    lengths = xp.sum(xp.astype(is_label, targets.dtype), axis=1, dtype=targets.dtype)
    known = xp.where(is_label, targets, blanks[:, :length])
    between = xp.reshape(xp.stack([blanks[:, :length], known], axis=2), (batch, 2 * length))
    labels = xp.concat([between, blanks[:, :1]], axis=1)
    two_before = xp.concat([blanks[:, :2], labels], axis=1)[:, :places]
    place = xp.expand_dims(xp.arange(places, dtype=targets.dtype, device=device(targets)), axis=0)
    end = xp.expand_dims(2 * lengths, axis=1)
    return Path(
        labels,
        lengths,
        place <= end,
        (labels != blank) & (labels != two_before),
        (place == end) | (place == end - 1),
    )


def _log_probabilities_of_places(xp: Any, log_probabilities: Array, path: Path) -> Array:
    """For each step and place, the logarithm of the probability that its label is said; (batch, time, places)."""
    batch, time, _ = log_probabilities.shape
    shape = (batch, time, path.labels.shape[1])
    labels = xp.broadcast_to(xp.expand_dims(path.labels, axis=1), shape)
    said = xp.take_along_axis(log_probabilities, labels, axis=2)
    return xp.where(xp.expand_dims(path.exists, axis=1), said, _nothing(xp, said))


def _nothing(xp: Any, like: Array) -> Array:
    """The logarithm of 0, in the shape of `like`."""
    return xp.full_like(like, -math.inf)


def _counts(xp: Any, input_lengths: Array, time: int) -> Array:
    """Which steps of which samples count, (time, batch, 1)."""
    steps = xp.arange(time, dtype=input_lengths.dtype, device=device(input_lengths))
    return xp.expand_dims(xp.expand_dims(input_lengths, axis=0) > xp.expand_dims(steps, axis=1), axis=-1)


def _forward(xp: Any, loop: Any, said: Array, counts: Array | None, path: Path) -> tuple[Array, Array]:
    """(alpha of each step, (time, batch, places); log-likelihood of each sample).

    alpha_t(s) is the log-probability of what was said up to step t, if it leads to place s. The largest one is taken
    off in each step and added up beside: numbers near 0 keep more digits.
    """
    _, batch, places = said.shape
    start = xp.concat([xp.ones_like(path.exists[:, :1]), xp.zeros_like(path.exists[:, 1:])], axis=1)
    zeros = xp.zeros((batch, places), dtype=said.dtype, device=device(said))
    nothing = _nothing(xp, zeros)

    def step(left: Any, given: Any) -> tuple[Any, Array]:
        (alpha, total), (said_here, counts_here) = left, given
        shifted = xp.concat([nothing[:, :1], nothing[:, :1], alpha], axis=1)
        late = xp.where(path.can_be_entered_late, shifted[:, :places], nothing)
        new = xp.logaddexp(xp.logaddexp(alpha, shifted[:, 1 : places + 1]), late) + said_here
        new, taken_off = _near_zero(xp, new)
        if counts_here is not None:
            new = xp.where(counts_here, new, alpha)
            taken_off = xp.where(counts_here, taken_off, xp.zeros_like(taken_off))
        return (new, total + taken_off), new

    first = xp.where(start, zeros, nothing), zeros[:, :1]
    (alpha, total), alphas = loop(xp, step, first, (said, counts), False)
    # The two places where an alignment may end are the largest and the second largest of what is left.
    ends = xp.where(path.is_last, alpha, nothing)
    in_blank = xp.max(ends[:, ::2], axis=1)
    in_label = xp.max(xp.concat([nothing[:, :1], ends[:, 1::2]], axis=1), axis=1)
    return alphas, xp.logaddexp(in_blank, in_label) + total[:, 0]


def _occupancy(xp: Any, loop: Any, alphas: Array, said: Array, counts: Array | None, path: Path) -> Array:
    """The probability of being in a place in a step, given the labels; (time, batch, places).

    beta_t(s) is the log-probability of what is said after step t, if it begins in place s and ends in a last one. Given
    the labels, the probability of place s is proportional to exp(alpha_t(s) + beta_t(s)).
    """
    places = said.shape[2]
    nothing = _nothing(xp, alphas[0, ...])
    end = xp.where(path.is_last, xp.zeros_like(nothing), nothing)

    def step(beta: Array, given: Any) -> tuple[Array, Array]:
        alpha, said_here, counts_here = given
        together, _ = _near_zero(xp, alpha + beta)
        likely = xp.exp(together)
        total = xp.sum(likely, axis=1, keepdims=True)
        occupied = likely / xp.where(total > 0, total, xp.ones_like(total))
        entered = beta + said_here
        late = xp.where(path.can_be_entered_late, entered, nothing)
        shifted = xp.concat([entered, nothing[:, :1]], axis=1)[:, 1:]
        shifted_late = xp.concat([late, nothing[:, :1], nothing[:, :1]], axis=1)[:, 2 : places + 2]
        new, _ = _near_zero(xp, xp.logaddexp(xp.logaddexp(entered, shifted), shifted_late))
        return (new if counts_here is None else xp.where(counts_here, new, end)), occupied

    return loop(xp, step, end, (alphas, said, counts), True)[1]


def _near_zero(xp: Any, logarithms: Array) -> tuple[Array, Array]:
    """(the logarithms without their largest one in each row, that one); a row of nothing stays as it is, with 0."""
    largest = xp.max(logarithms, axis=1, keepdims=True)
    largest = xp.where(largest == -math.inf, xp.zeros_like(largest), largest)
    return logarithms - largest, largest


def _check(logits: Array, targets: Array, input_lengths: Array | None, blank: int) -> None:
    if logits.ndim != 3:
        raise ShapeError(f"ctc: the logits have shape {tuple(logits.shape)}; they must have (batch, time, classes)")
    batch, _, classes = logits.shape
    if targets.ndim != 2 or targets.shape[0] != batch:
        raise ShapeError(
            f"ctc: targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}; give "
            f"labels of shape ({batch}, length)"
        )
    if input_lengths is not None and tuple(input_lengths.shape) != (batch,):
        raise ShapeError(
            f"ctc: input_lengths has shape {tuple(input_lengths.shape)}; give one number for each of {batch} samples"
        )
    if not 0 <= blank < classes:
        raise ConfigError(f"blank={blank!r} is no class: the logits have {classes}, numbered from 0")
