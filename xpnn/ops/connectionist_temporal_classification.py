"""Connectionist temporal classification (CTC): the loss of a sequence of labels that is not aligned with the input."""

from __future__ import annotations

import math
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
    xp = namespace(logits)
    _check(logits, targets, input_lengths, blank)
    time = logits.shape[1]
    path = _path(xp, targets, blank)
    log_probabilities, _ = log_softmax(logits)
    said = _log_probabilities_of_places(xp, log_probabilities, path)
    counts = [None if input_lengths is None else xp.expand_dims(input_lengths > t, axis=1) for t in range(time)]
    alphas, log_likelihood = _forward(xp, said, counts, path)
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
        occupied = _occupancy(xp, alphas, said, counts, path)
        is_label = xp.expand_dims(path.labels, axis=-1) == xp.arange(
            logits.shape[-1], dtype=path.labels.dtype, device=device(logits)
        )
        expected = xp.matmul(occupied, xp.astype(is_label, logits.dtype))
        scale = xp.reshape(shares * (dy * factor), (logits.shape[0], 1, 1))
        dlogits = (xp.exp(log_probabilities) - expected) * scale
        instead = xp.zeros_like(dlogits) if zero_infinity else xp.full_like(dlogits, math.nan)
        dlogits = xp.where(xp.reshape(infinite, (logits.shape[0], 1, 1)), instead, dlogits)
        if input_lengths is not None:
            dlogits = xp.where(xp.stack(counts, axis=1), dlogits, xp.zeros_like(dlogits))
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


def _forward(xp: Any, said: Array, counts: list[Any], path: Path) -> tuple[list[Array], Array]:
    """(alpha of each step, log-likelihood of each sample).

    alpha_t(s) is the log-probability of what was said up to step t, if it leads to place s. The largest one is taken
    off in each step and added up beside: numbers near 0 keep more digits.
    """
    batch, time, places = said.shape
    start = xp.concat([xp.ones_like(path.exists[:, :1]), xp.zeros_like(path.exists[:, 1:])], axis=1)
    zeros = xp.zeros((batch, places), dtype=said.dtype, device=device(said))
    nothing = _nothing(xp, zeros)
    alpha = xp.where(start, zeros, nothing)
    total = zeros[:, :1]
    alphas = []
    for step in range(time):
        shifted = xp.concat([nothing[:, :1], nothing[:, :1], alpha], axis=1)
        late = xp.where(path.can_be_entered_late, shifted[:, :places], nothing)
        new = xp.logaddexp(xp.logaddexp(alpha, shifted[:, 1 : places + 1]), late) + said[:, step, ...]
        new, taken_off = _near_zero(xp, new)
        if counts[step] is not None:
            new = xp.where(counts[step], new, alpha)
            taken_off = xp.where(counts[step], taken_off, xp.zeros_like(taken_off))
        alpha = new
        total = total + taken_off
        alphas.append(alpha)
    # The two places where an alignment may end are the largest and the second largest of what is left.
    ends = xp.where(path.is_last, alpha, nothing)
    in_blank = xp.max(ends[:, ::2], axis=1)
    in_label = xp.max(xp.concat([nothing[:, :1], ends[:, 1::2]], axis=1), axis=1)
    return alphas, xp.logaddexp(in_blank, in_label) + total[:, 0]


def _occupancy(xp: Any, alphas: list[Array], said: Array, counts: list[Any], path: Path) -> Array:
    """The probability of being in a place in a step, given the labels; (batch, time, places).

    beta_t(s) is the log-probability of what is said after step t, if it begins in place s and ends in a last one. Given
    the labels, the probability of place s is proportional to exp(alpha_t(s) + beta_t(s)).
    """
    places = said.shape[2]
    nothing = _nothing(xp, alphas[0])
    end = xp.where(path.is_last, xp.zeros_like(nothing), nothing)
    beta = end
    occupied: list[Any] = [None] * len(alphas)
    for step in reversed(range(len(alphas))):
        together, _ = _near_zero(xp, alphas[step] + beta)
        likely = xp.exp(together)
        total = xp.sum(likely, axis=1, keepdims=True)
        occupied[step] = likely / xp.where(total > 0, total, xp.ones_like(total))
        if step == 0:
            break
        entered = beta + said[:, step, ...]
        late = xp.where(path.can_be_entered_late, entered, nothing)
        shifted = xp.concat([entered, nothing[:, :1]], axis=1)[:, 1:]
        shifted_late = xp.concat([late, nothing[:, :1], nothing[:, :1]], axis=1)[:, 2 : places + 2]
        new, _ = _near_zero(xp, xp.logaddexp(xp.logaddexp(entered, shifted), shifted_late))
        beta = new if counts[step] is None else xp.where(counts[step], new, end)
    return xp.stack(occupied, axis=1)


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
