"""Notices on standard error of what has been waited for too long: who or what it is, and since when."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

FIRST_SECONDS = 30.0
"""A wait is told after so long, and again each time it has doubled."""

TICK_SECONDS = 0.25


class waiting:
    """A `with` block that waits: where it takes long, a notice names what it waits for.

    what: asked in another thread when the notice is due; None for a wait that others tell of. after: seconds.
    shared: whether `listener` hears of it. due: the seconds after which it is told next.
    """

    __slots__ = ("began", "due", "name", "shared", "what")

    def __init__(
        self, what: Callable[[], str | None], after: float | None = None, *, shared: bool = True
    ) -> None:
        self.what, self.shared = what, shared
        self.due = FIRST_SECONDS if after is None else after
        self.name: str | None = None

    def __enter__(self) -> None:
        self.began = time.monotonic()
        _watch.start()
        _watch.waits.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _watch.waits.discard(self)
        if self.name is not None:
            say(f"waited {time.monotonic() - self.began:.0f} s for {self.name}")
            if self.shared and listener is not None:
                listener(None)

    def tell(self, seconds: float) -> None:
        """Write what is waited for, and when to say so again."""
        self.due = 2 * seconds
        # What asks another process may fail in its own way: that must not end this thread.
        with contextlib.suppress(Exception):
            self.name = self.what()
            if self.name is not None:
                say(f"waiting for {self.name} ({seconds:.0f} s so far)")
                if self.shared and listener is not None:
                    listener(self.name)


class _Watch:
    """The waits under way, and the thread that looks at them."""

    def __init__(self) -> None:
        self.waits: set[waiting] = set()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, once in each process."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._look, name="kdcli-waiting", daemon=True)
            self.thread.start()

    def _look(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            for wait in tuple(self.waits):
                seconds = time.monotonic() - wait.began
                if seconds >= wait.due and wait in self.waits:
                    wait.tell(seconds)


_watch = _Watch()

listener: Callable[[str | None], None] | None = None
"""Hears what this process waits for alone: those who wait for it are told. None: the wait is over."""


def _forget() -> None:
    """In a forked process: no thread is running there."""
    global _watch, listener
    _watch, listener = _Watch(), None


os.register_at_fork(after_in_child=_forget)


def say(text: str) -> None:
    """Write a notice on standard error; with several processes it says whose it is."""
    rank = os.environ.get("RANK", "0")
    mine = "" if rank == "0" else f"process {rank}: "
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{mine}{text}\n")
        sys.stderr.flush()
