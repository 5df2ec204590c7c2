"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_INSISTENCE = 5
"""So many presses break even into a step, for a layer that never returns."""


class Interrupt:
    """A block in which the first Ctrl-C sets `wanted` instead of breaking into whatever runs; the second one breaks.

    Neither breaks into a training step, while `stepping` is True: a step that overwrites the state that it was given
    would leave none. A program that has a handler of its own keeps it; during a step it is called a little later, by
    `deliver`. Where Python does not let us listen (in another thread), nothing is changed.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.stepping = False
        self.deferred: tuple[int, FrameType | None] | None = None
        self._presses = 0
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        before = signal.getsignal(signal.SIGINT)
        if callable(before):
            try:
                signal.signal(signal.SIGINT, self._handle)
                self._before = before
            except ValueError:  # not the main thread
                pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def deliver(self) -> None:
        """Call the program's own handler, if it was to be called during the step."""
        if self.deferred is not None:
            given, self.deferred = self.deferred, None
            self._before(*given)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._presses += 1
        insists = self._presses >= _INSISTENCE
        if self._before is signal.default_int_handler:
            breaks = self.wanted and not self.stepping
            self.wanted = True
            if breaks or insists:
                raise KeyboardInterrupt
        elif self.stepping and not insists:
            self.deferred = (number, frame)
        else:
            self._before(number, frame)
