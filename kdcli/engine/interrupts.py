"""SIGINT and SIGTERM ask for a stop at the next whole step; a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """signal_number: the signal that came, or None."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_number = number


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Both signals are noted inside the block; the handlers before come back after it."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts._take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
