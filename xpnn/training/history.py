"""What happened in a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class History(Mapping[str, list[Any]]):
    """Name -> one value for each epoch: "loss", the metrics, and with validation data "val_loss" and theirs.

    >>> history["loss"]
    [0.71, 0.52, 0.44]

    Attributes:
        epochs: the number of each epoch; the first of a training is 1, and resuming goes on counting.
        seconds: how long each epoch took, validation included.
        interrupted: True if Ctrl-C ended the training.
        stopped: what ended it early: the callback's repr, or None.
    """

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.seconds: list[float] = []
        self.interrupted = False
        self.stopped: str | None = None
        self._values: dict[str, list[Any]] = {}

    def append(self, epoch: int, logs: Mapping[str, Any], seconds: float) -> None:
        """Add one epoch."""
        self.epochs.append(epoch)
        self.seconds.append(seconds)
        for name, value in logs.items():
            self._values.setdefault(name, []).append(value)

    def to_dict(self) -> dict[str, list[Any]]:
        """All of it as plain lists, "epoch" first; JSON can hold it."""
        return {"epoch": list(self.epochs), **{name: list(values) for name, values in self._values.items()}}

    def __getitem__(self, name: str) -> list[Any]:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"the history has no {name!r}; it has: {', '.join(self._values) or 'nothing'}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {show(values[-1])}" for name, values in self._values.items() if values)
        end = ", interrupted" if self.interrupted else ""
        return f"<history of {len(self.epochs)} epochs{end}{': last ' + last if last else ''}>"


def show(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits; anything else in full."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
