"""What a training shows: a bar on a terminal, plain lines elsewhere.

Nothing here reads the device, and the bar is drawn at most ten times a second, whatever the number of batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from xpnn.errors import ConfigError
from xpnn.training.history import show

_LINES = 100
"""A training of more epochs than this prints about so many lines, evenly spread."""
_SECONDS_BETWEEN_DRAWINGS = 0.1
_WIDE = 100
"""On a terminal with fewer columns than this, the lines leave out what would make most of them too long."""


class Progress:
    """Shows nothing: the base of the other two.

    Attributes:
        ticks: True if it wants to hear of each batch.
    """

    ticks = False

    def begin(self, first_epoch: int, last_epoch: int, samples: int) -> None:
        """The training begins: the numbers of its first and last epoch, and the samples of an epoch."""

    def batch_done(self, epoch: int, samples: int) -> None:
        """`samples` samples of the epoch are through."""

    def epoch_done(self, epoch: int, logs: Mapping[str, Any], seconds: float) -> None:
        """The epoch and its validation are through."""

    def end(self) -> None:
        """The training is over, in whichever way."""


class Lines(Progress):
    """One plain line for each epoch; of more than 100 epochs, the first, the last, and about 100 in all."""

    def begin(self, first_epoch: int, last_epoch: int, samples: int) -> None:
        self._first = first_epoch
        self._last = last_epoch
        self._every = max(1, -(-(last_epoch - first_epoch + 1) // _LINES))

    def epoch_done(self, epoch: int, logs: Mapping[str, Any], seconds: float) -> None:
        if epoch % self._every == 0 or epoch in (self._first, self._last):
            self.write(self.text(epoch, logs, seconds))

    def text(self, epoch: int, logs: Mapping[str, Any], seconds: float) -> str:
        """What is said about one epoch."""
        return line(epoch, self._last, logs, seconds)

    def write(self, text: str) -> None:
        """Print one line; at once, for whoever follows a log."""
        print(text, flush=True)


class Bar(Lines):
    """The lines, and below them a bar for the running epoch with rate, time left and the last epoch's loss."""

    ticks = True

    def begin(self, first_epoch: int, last_epoch: int, samples: int) -> None:
        super().begin(first_epoch, last_epoch, samples)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._samples = samples
        self._started = time.perf_counter()
        self._next = self._started + _SECONDS_BETWEEN_DRAWINGS
        self._numbers = ""
        self._wide = Console().width >= _WIDE
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("[cyan]{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[numbers]}"),
            # Room for the "^C" that a terminal shows: in a full line it would begin another one.
            console=Console(width=max(Console().width - 4, 20)),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(
            f"epoch {first_epoch}/{last_epoch}", total=samples, rate="", left="", numbers=""
        )
        self._bar.start()

    def batch_done(self, epoch: int, samples: int) -> None:
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN_DRAWINGS
        done = (epoch - self._first) * self._samples + samples
        every = (self._last - self._first + 1) * self._samples
        seconds = now - self._started
        self._bar.update(
            self._task,
            completed=samples,
            description=f"epoch {epoch}/{self._last}",
            rate=f"{done / seconds:,.0f} samples/s",
            left=f"{clock(seconds * (every - done) / done)} left",
            numbers=self._numbers,
        )
        self._bar.refresh()

    def epoch_done(self, epoch: int, logs: Mapping[str, Any], seconds: float) -> None:
        # They stand in the last line too, where there is no room for them in the bar.
        if self._wide:
            self._numbers = numbers({name: logs[name] for name in ("loss", "val_loss") if name in logs})
        super().epoch_done(epoch, logs, seconds)

    def text(self, epoch: int, logs: Mapping[str, Any], seconds: float) -> str:
        if self._wide:
            return super().text(epoch, logs, seconds)
        return line(epoch, self._last, logs, None, digits=3)

    def write(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        self._bar.stop()


def numbers(logs: Mapping[str, Any], digits: int = 4) -> str:
    """The numbers among loss and metrics, in one line."""
    shown = {name: show(value, digits) for name, value in logs.items() if isinstance(value, (int, float))}
    return "  ".join(f"{name} {text}" for name, text in shown.items())


def line(epoch: int, last_epoch: int, logs: Mapping[str, Any], seconds: float | None, digits: int = 4) -> str:
    """What is printed about one epoch; without its seconds if they are None."""
    width = len(str(last_epoch))
    text = f"epoch {epoch:{width}d}/{last_epoch}  {numbers(logs, digits)}"
    return text if seconds is None else f"{text}  {seconds:.2g} s"


def clock(seconds: float) -> str:
    """A time as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_for(verbose: Any) -> Progress:
    """What `fit(verbose=...)` asks for. Raises ConfigError if it is none of "auto", 0, 1 and 2 (or False, True)."""
    if verbose not in ("auto", 0, 1, 2):
        raise ConfigError(
            f'verbose={verbose!r}: "auto" or 1 shows a bar on a terminal and lines elsewhere, 2 lines, 0 nothing'
        )
    if verbose == 0 or sys.stdout is None:
        return Progress()
    return Bar() if verbose != 2 and _on_terminal() else Lines()


def _on_terminal() -> bool:
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    # A terminal that cannot move its cursor has no place for a bar.
    return not Console().is_dumb_terminal
