"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupt:
    """A block in which the first Ctrl-C sets `wanted` instead of breaking into whatever runs; the second one breaks.

    So a training step is never left half done. Where Python does not let us listen (in another thread, or where the
    program has a handler of its own), nothing is changed.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._listening = False

    def __enter__(self) -> Interrupt:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, self._handle)
                self._listening = True
            except ValueError:  # not the main thread
                pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._listening = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
