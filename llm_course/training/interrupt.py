"""SIGTERM and SIGINT: finish the update, save, then leave."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llm_course.training import parallel

# SIGTERM comes from a scheduler that wants the machine back, SIGINT from Ctrl-C or from the stop
# button of a notebook.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Notes a signal while training computes; a second one of its kind acts at once.

    Only the main thread can have signal handlers; elsewhere signals stay as they are.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self._before: dict[int, Any] = {}
        self._save: Callable[[], None] | None = None  # while the reader has the turn

    @contextmanager
    def caught(self) -> Iterator[None]:
        self._install()
        try:
            yield
        finally:
            for number in SIGNALS:
                self._give_back(number)
            if self.received:  # noted, but the reader left the loop first
                os.kill(os.getpid(), self.received)

    @contextmanager
    def lent(self, save: Callable[[], None]) -> Iterator[None]:
        """At a yield no update runs: a signal saves at once, and so does the end of the program.

        Then the reader gets Ctrl-C; SIGTERM waits for the end of the next update, or of the loop.
        Where other processes take part in a save, both wait.
        """
        if parallel.world_size() == 1:
            self._save = save
            atexit.register(save)
        try:
            yield
        finally:
            self._save = None
            atexit.unregister(save)
            self._install()  # Ctrl-C too, if the reader went on after one

    def leave_if_asked(self, save: Callable[[], None]) -> None:
        """After a signal to any process: save, and leave with status 143, or 130 as Python's own
        for a KeyboardInterrupt that nobody catches."""
        number = parallel.largest(self.received)
        if not number:
            return
        save()
        self.received = 0
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received == number, number
        save, self._save = self._save, None  # a second signal does not wait for the save
        if save is not None:
            save()
        if again or (save is not None and number == signal.SIGINT):
            self.received = 0
            self._give_back(number)
            os.kill(os.getpid(), number)

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number not in self._before:
                    self._before[number] = signal.signal(number, self._note)

    def _give_back(self, number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            before = self._before.pop(number, None)
            if before is not None:
                signal.signal(number, before)
