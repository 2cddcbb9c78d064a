"""SIGTERM and SIGINT: finish the update, save, then leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

# SIGTERM comes from a scheduler that wants the machine back, SIGINT from Ctrl-C or from the stop
# button of a notebook.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Notes a signal while training computes; a second one of its kind acts at once.

    Only the main thread can have signal handlers; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self._before: dict[int, Any] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        self._install(*SIGNALS)
        try:
            yield
        finally:
            self._give_back(*SIGNALS)
            if self.received:  # noted, but the reader left the loop first
                os.kill(os.getpid(), self.received)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """At a yield Ctrl-C belongs to the reader again; SIGTERM stays, or a save would be lost."""
        self._give_back(signal.SIGINT)
        try:
            yield
        finally:
            self._install(signal.SIGINT)

    def leave(self, number: int) -> NoReturn:
        """Exit status 130 (Python's own for an uncaught KeyboardInterrupt) or 143."""
        self.received = 0
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number:
            self._give_back(number)
            os.kill(os.getpid(), number)
        self.received = number

    def _install(self, *numbers: int) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                self._before[number] = signal.signal(number, self._note)

    def _give_back(self, *numbers: int) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before = self._before.pop(number, None)
                if before is not None:
                    signal.signal(number, before)
