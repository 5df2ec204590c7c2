"""Sequences of different lengths as one array."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xpnn.backend import host
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, DataError
from xpnn.training.data import numbers_on_host

_SIDES = ("after", "before")


def pad_sequences(
    sequences: Iterable[Sequence[Any] | Array],
    length: int | None = None,
    value: float = 0,
    side: str = "after",
    truncate: str = "after",
) -> Array:
    """Sequences of different lengths as one array, shorter ones filled up with `value`.

    Sequences of integers (the numbers of words, or labels) give integers, others float64. Tell a network what is
    padding: with `Masking(value)` where steps have features, with `Embedding(..., padding_index=value)` where they are
    integers.

    Args:
        sequences: one for each sample, each (time,) or (time, ...); all of one shape but for the time.
        length: of the result; without it, that of the longest sequence.
        value: what is filled in.
        side: "after" fills up behind the end, "before" in front of the start.
        truncate: where longer sequences are cut off, "after" (they lose their end) or "before" (their start).

    Returns:
        A host array (samples, length, ...).

    Raises:
        DataError: a sequence is no array of numbers, or their steps differ in shape; names the sequence.
        ConfigError: another argument makes no sense.
    """
    for name, choice in (("side", side), ("truncate", truncate)):
        if choice not in _SIDES:
            raise ConfigError(f'{name}={choice!r} is unknown; choose "after" or "before"')
    xp = host().xp
    rows = [numbers_on_host(f"sequence {number}", sequence) for number, sequence in enumerate(sequences)]
    for number, row in enumerate(rows):
        if row.ndim == 0:
            raise DataError(f"sequence {number} is the single number {row}; give a list of numbers for each sample")
    # An empty list does not say what its steps would look like.
    known = [row for row in rows if row.shape[0]] or rows
    step = known[0].shape[1:] if known else ()
    for number, row in enumerate(rows):
        if row.shape[0] and row.shape[1:] != step:
            raise DataError(
                f"the steps of sequence {number} have shape {row.shape[1:]}, those before it {step}; they must all "
                "have one shape"
            )
    longest = max((row.shape[0] for row in rows), default=0)
    wanted = longest if length is None else check_integer("length", length, minimum=0)
    whole = all(row.dtype.kind in "biu" for row in known) and float(value).is_integer()
    padded = xp.full((len(rows), wanted, *step), value, dtype=xp.int64 if whole else xp.float64)
    for number, row in enumerate(rows):
        if not row.shape[0] or not wanted:
            continue
        kept = row[:wanted] if truncate == "after" else row[-wanted:]
        if side == "after":
            padded[number, : kept.shape[0]] = kept
        else:
            padded[number, wanted - kept.shape[0] :] = kept
    return padded
