"""From a table to what a network is trained on: targets as numbers, a part held out, features of like size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xpnn import random
from xpnn.backend import host
from xpnn.dispatch import Array
from xpnn.errors import DataError

FEW_CLASSES = 20
"""Integer targets with at most so many different values, each twice on average or more, are taken for classes."""


@dataclass(frozen=True)
class Target:
    """A target as numbers.

    Attributes:
        task: "classification" or "regression".
        values: (samples,): class numbers as int64, or float64.
        class_names: the name of each class; () for a regression.
    """

    task: str
    values: Array
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scaling:
    """x -> (x - mean) / scale, column by column.

    Attributes:
        mean: (features,), float64.
        scale: (features,), float64; never zero.
    """

    mean: Array
    scale: Array

    @classmethod
    def of(cls, x: Array, together: bool = False) -> Scaling:
        """Mean and standard deviation of the columns of x: (samples, features).

        A column whose values are all equal gets the scale 1: it becomes zero, and nothing is divided by zero.

        Args:
            x: the training part alone; what is held out must not leak into the statistics.
            together: one mean and one scale for all columns: right for pixels, where a column that is nearly always
                black would else be blown up.
        """
        xp = host().xp
        axis = None if together else 0
        # Divided by the largest value first, so that squares of huge or tiny numbers stay within range.
        largest = xp.max([xp.max(xp.abs(rows), axis=axis) for rows in _pieces(x)], axis=0)
        largest = xp.where(largest == 0, xp.ones_like(largest), largest)
        count = x.size if together else len(x)
        mean = sum(xp.sum(rows / largest, axis=axis) for rows in _pieces(x)) / count
        variance = sum(xp.sum((rows / largest - mean) ** 2, axis=axis) for rows in _pieces(x)) / count
        # Rounding leaves a constant column with a deviation of a few units in the last place.
        deviation = xp.sqrt(variance)
        scale = xp.where(deviation <= 1e-12, xp.ones_like(largest), deviation * largest)
        columns = xp.zeros((x.shape[1],), dtype=xp.float64)
        return cls(columns + mean * largest, columns + scale)

    def apply(self, x: Array, dtype: str = "float64") -> Array:
        """x, standardised: computed in float64, then rounded to `dtype`."""
        xp = host().xp
        scaled = xp.empty(x.shape, dtype=getattr(xp, dtype))
        done = 0
        # What is too large for `dtype` becomes infinite, which the network refuses in an error of its own.
        with xp.errstate(over="ignore"):
            for rows in _pieces(x):
                scaled[done : done + len(rows)] = (rows - self.mean) / self.scale
                done += len(rows)
        return scaled

    def undo(self, x: Array) -> Array:
        """What was standardised, in its own units again."""
        return x * self.scale + self.mean

    def to_json(self) -> dict[str, Any]:
        """For a model file; columns that are all scaled alike, as pixels are, are written once."""
        columns = len(self.mean)
        if columns > 1 and (self.mean == self.mean[0]).all() and (self.scale == self.scale[0]).all():
            return {"mean": [float(self.mean[0])], "scale": [float(self.scale[0])], "columns": columns}
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scaling:
        """What `to_json` gave."""
        xp = host().xp
        mean, scale = (xp.asarray(data[name], dtype=xp.float64) for name in ("mean", "scale"))
        columns = data.get("columns", len(mean))
        return cls(xp.broadcast_to(mean, (columns,)), xp.broadcast_to(scale, (columns,)))


def _pieces(x: Array) -> Iterator[Array]:
    """The rows of x in float64, a few at a time: a large table of float32 is never there twice in float64."""
    xp = host().xp
    for start in range(0, len(x), 1024):
        yield xp.astype(x[start : start + 1024], xp.float64)


def encode_target(values: Array, name: str, task: str | None = None, class_names: tuple[str, ...] = ()) -> Target:
    """A target column as class numbers 0 ... k-1, or as numbers.

    Args:
        values: (samples,), numbers or text.
        name: the column, for errors.
        task: "classification" or "regression"; without one, text and whole numbers with few different values are
            classes, everything else is a regression.
        class_names: the names of the classes where `values` holds their numbers already.

    Raises:
        DataError: there is one class only, a regression's target is text or constant, or a value is not finite.
    """
    xp = host().xp
    text = values.dtype.kind == "U"
    if task == "regression" and text:
        raise DataError(f"the target {name!r} holds text such as {str(values[0])!r}; a regression wants numbers")
    if not text and not xp.isfinite(values).all():
        row = int((~xp.isfinite(values)).argmax())
        raise DataError(f"the target {name!r} is {values[row]} in row {row + 1}")
    if text and task is None:
        _refuse_mixture(values, name)
    different, numbers = xp.unique(values, return_inverse=True)
    if task is None:
        whole = text or bool((different == xp.floor(different)).all())
        few = len(different) <= FEW_CLASSES and 2 * len(different) <= len(values)
        task = "classification" if text or (whole and few) else "regression"
    if len(different) < 2:
        what = "one class" if task == "classification" else "one value"
        raise DataError(f"the target {name!r} has {what} only ({different[0]}): there is nothing to learn")
    if task == "regression":
        return Target(task, xp.astype(values, xp.float64))
    if class_names:
        return Target(task, xp.astype(values, xp.int64), class_names)
    return Target(task, xp.astype(numbers, xp.int64), tuple(_class_name(value) for value in different))


def split(target: Target, share: float, seed: int) -> tuple[Array, Array]:
    """(rows to train on, rows held out), in random order, the same for the same seed.

    For classes each gives about the same share of its samples, and keeps at least one to train on.

    Raises:
        DataError: one of the two parts would be empty.
    """
    xp = host().xp
    samples = len(target.values)
    order = random.permutation(seed, random.stream(random.SPLIT), 0, samples)
    if target.task == "classification":
        held_out = xp.zeros((samples,), dtype=xp.bool_)
        shuffled = target.values[order]
        # Cumulative counts, so that the parts of many small classes add up to the share of the whole.
        due = 0.0
        taken = 0
        for label in range(len(target.class_names)):
            places = xp.nonzero(shuffled == label)[0]
            due += share * len(places)
            count = max(0, min(round(due) - taken, len(places) - 1))
            held_out[places[:count]] = True
            taken += count
        training, validation = order[~held_out], order[held_out]
    else:
        count = round(share * samples)
        training, validation = order[count:], order[:count]
    if target.task == "classification" and len(target.class_names) == samples:
        raise DataError(
            f"each of the {samples} samples is of a class of its own, so that none can be held out; "
            "give more data, --task regression if the target is a number, or --validation 0"
        )
    if len(training) == 0 or len(validation) == 0:
        raise DataError(
            f"{samples} samples cannot be split with a share of {share:g} held out: "
            f"{len(training)} to train on, {len(validation)} held out; give more data or another --validation"
        )
    return training, validation


def _class_name(value: Any) -> str:
    """A class as text: 3.0 is "3"."""
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def _refuse_mixture(values: Array, name: str) -> None:
    """Raise DataError for a column of numbers in which some cell is text: a mistake more often than a class."""
    number = [_is_number(str(value)) for value in values]
    if any(number) and not all(number):
        row = number.index(False)
        raise DataError(
            f"the target {name!r} holds numbers, and {str(values[row])[:40]!r} in row {row + 1}; mend it, or give "
            "--task classification if these are names of classes"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
