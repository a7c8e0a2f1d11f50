"""SIGINT and SIGTERM: the first asks for a stop that loses nothing, a second one stops at once."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from kdcli.errors import Diagnostic, Interrupted
from kdcli.parallel import pulse

NOT_SAVED = "stopped at once: what came after the last checkpoint is not saved"

SAME_SECONDS = 1.0
"""A launcher passes on what the terminal has sent to its workers too: so close together it is one wish."""


class Interrupts:
    """Signals that came. signal_number: of the first, or None.

    Outside `noting` there is nothing to save, and a signal raises Interrupted on the spot; inside it is
    only noted, and the loop stops after a whole step. leaves: whether a second one ends the process; else it raises
    KeyboardInterrupt, as a caller in Python expects.
    """

    def __init__(self, *, leaves: bool = True) -> None:
        self.leaves = leaves
        self.signal_number: int | None = None
        self._noting = False
        self._came = 0.0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note signals inside the block instead of raising; one that nobody acted on is raised at its end."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False
        if self.signal_number is not None:
            raise nothing_to_save(self.signal_number)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        pulse.hear(number)
        if self.signal_number is not None:
            if now - self._came >= SAME_SECONDS or not hears_twice():
                if not self.leaves:
                    raise KeyboardInterrupt(NOT_SAVED)
                leave_at_once(number)
            return
        self.signal_number, self._came = number, now
        if not self._noting:
            raise nothing_to_save(number)


@contextmanager
def listening(*, leaves: bool = True) -> Iterator[Interrupts]:
    """Handle signals inside the block; the earlier handlers come back after it. leaves: see Interrupts.

    SIGHUP counts too, unless `nohup` has switched it off. Threads other than the main one hear nothing.
    """
    interrupts = Interrupts(leaves=leaves)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts._take) for number in heeded()}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heeded() -> list[signal.Signals]:
    """The signals that ask for a stop."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


def hears_twice() -> bool:
    """Whether a signal from the terminal comes here twice: once directly, once from the launcher."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getpgid(os.getppid()) == os.getpgrp()


def nothing_to_save(number: int) -> Interrupted:
    """Interrupted KD714 outside the loop: no step was under way."""
    return Interrupted(
        Diagnostic(
            code="KD714",
            severity="warning",
            message=f"stopped by {signal.Signals(number).name}; no step was under way",
            help="give the same command again; a run that has begun continues with `--resume`",
        ),
        number,
    )


def is_first() -> bool:
    """Whether this process is alone, or rank 0 of several."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def leave_at_once(number: int) -> None:
    """Exit at once; the first of several processes says so."""
    if is_first():
        os.write(sys.stderr.fileno(), f"{NOT_SAVED}\n".encode())  # print might be what was interrupted
    os._exit(128 + number)


def abandon_threads() -> None:
    """Let `leave` end the process although a thread is in a call that may never return."""
    _abandoned.set()


def leave(code: int) -> NoReturn:
    """Exit; without the exit hooks of libraries where a thread was abandoned, since they would wait for it."""
    pulse.leave(code)
    if not _abandoned.is_set():
        if _grouped.is_set():
            _codes.append(code)
        sys.exit(code)
    _end(code)


def end_after_hooks() -> None:
    """Let `leave` end a process that had a process group right after its exit hooks; call it before torch is imported.

    A thread of the group's library that comes back while the interpreter is taken down is unwound by it, and that
    aborts the process: "terminate called without an active exception", exit code 134.
    """
    # Exit hooks run in reverse order, so that the first one registered is the last.
    atexit.register(lambda: _end(_codes[-1]) if _codes else None)


def group_made() -> None:
    """Say that this process has a process group: see end_after_hooks."""
    _grouped.set()


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


_grouped = threading.Event()
_codes: list[int] = []
_abandoned = threading.Event()


def saved_at(number: int, step: int, command: str) -> Interrupted:
    """Interrupted KD714 in the loop, after the state was saved; command: what continues the run."""
    return Interrupted(
        Diagnostic(
            code="KD714",
            severity="warning",
            message=f"stopped by {signal.Signals(number).name} at step {step}; everything is saved",
            help=f"continue with `{command}`",
        ),
        number,
    )


def at_once(number: int, command: str) -> Interrupted:
    """Interrupted KD714 where a process was stuck and nothing could be saved; command: what continues the run."""
    return Interrupted(
        Diagnostic(
            code="KD714",
            severity="warning",
            message=f"stopped by {signal.Signals(number).name}; what came after the last checkpoint is not saved",
            help=f"continue with `{command}`",
        ),
        number,
    )
