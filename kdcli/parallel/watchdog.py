"""The watchdog of several processes: once a run is to stop, a worker that is stuck is named and killed.

It is to stop after a signal, or when one of its processes has died. Before that nothing is judged: a process that
evaluates, decodes or saves for long is never killed while all goes well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kdcli.disk import process_facts
from kdcli.parallel.interrupts import SAME_SECONDS, heeded
from kdcli.parallel.pulse import STUCK_SECONDS, State, read
from kdcli.waiting import say

AT_ONCE_SECONDS = 2.0
"""After a second signal the workers have so long to leave by themselves."""

LEAVE_SECONDS = 12.0
"""After a death the other workers have so long to close what they have open; a checkpoint is written to its end."""

STOP_SECONDS = 14.0
"""Where one was stuck after a signal, the others have left so long after it."""

LEFT = {1, 131, 144}
"""What a worker says that leaves as it should, one more than its exit code: it has ended, or was interrupted."""

LOOK_SECONDS = 0.2


def stuck_after_signal(states: Sequence[State], asked_at: float, now: float, *, alone: bool) -> list[State]:
    """Those of the living workers that keep the run from stopping. alone: whether no worker runs on another machine."""
    silent = [one for one in states if now - max(one.moved, asked_at) > one.patience]
    # Who waits for others waits with reason, as long as one of them may come.
    return [one for one in silent if not one.waits] or (
        silent if alone and len(silent) == len(states) else []
    )


def stuck_after_death(states: Sequence[State], died_at: float, now: float) -> list[State]:
    """Those of the living workers that do not notice that another one died; a checkpoint may be written to its end."""
    return [
        one
        for one in states
        if now - max(one.moved, died_at) > (one.patience if one.saves else min(one.patience, STUCK_SECONDS))
    ]


class Watchdog:
    """Watches a launcher's workers from a thread, and kills those that are stuck once the run is to stop.

    paths: where they keep their pulses. alone: whether no worker runs on another machine. killed: those it had to kill.
    """

    def __init__(self, paths: Sequence[Path], *, alone: bool) -> None:
        self.paths, self.alone = paths, alone
        self.killed: list[State] = []
        self._asked_at: float | None = None
        self._again_at: float | None = None
        self._died_at: float | None = None
        self._leave_by = 0.0
        self._pids_then: frozenset[int] = frozenset()
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the block, which is to be entered in the main thread."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        # A signal is written there at once, although the main thread waits for the workers.
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(reading,), name="kdcli-watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self._over.set()
            thread.join()
            os.close(reading)
            os.close(writing)

    def _watch(self, signals: int) -> None:
        while not self._over.wait(LOOK_SECONDS):
            with contextlib.suppress(BlockingIOError):
                if set(os.read(signals, 64)) & {int(number) for number in heeded()}:
                    self.hear(time.monotonic())
            self.look(time.monotonic())

    def hear(self, now: float) -> None:
        """A signal has come to the launcher; a second one asks to leave at once."""
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > SAME_SECONDS and self._again_at is None:
            self._again_at = now

    def look(self, now: float) -> None:
        """Kill whoever is stuck by now."""
        states = [state for state in map(read, self.paths) if state is not None]
        pids = frozenset(state.pid for state in states)
        if self._died_at is not None and pids.isdisjoint(self._pids_then):
            # All have been started again; what those before were asked to do, or were killed for, is over.
            self._died_at = self._asked_at = self._again_at = None
            self.killed.clear()
        statuses = {state.pid: status_of(state.pid) for state in states}
        living = [state for state in states if statuses[state.pid] is not None]
        if self._died_at is None and any(state.left not in LEFT for state in states if state not in living):
            self._died_at, self._pids_then = now, pids
            asked = self._asked_at if self.killed else None
            self._leave_by = now + LEAVE_SECONDS if asked is None else max(asked + STOP_SECONDS, now + 3.0)
        if self._asked_at is None and self._died_at is None and any(state.asked for state in living):
            self._asked_at = now
        # What the system has stopped (SIGSTOP) computes nothing, whatever it was at.
        living = [replace(one, patience=STUCK_SECONDS) if statuses[one.pid] == "T" else one for one in living]
        stuck: list[State] = []
        if self._again_at is not None and now - self._again_at > AT_ONCE_SECONDS:
            stuck = living
        elif self._died_at is not None:
            old = [one for one in living if one.pid in self._pids_then]
            late = [one for one in old if now > self._leave_by and not one.saves]
            stuck = late or stuck_after_death(old, self._died_at, now)
        elif self._asked_at is not None:
            stuck = stuck_after_signal(living, self._asked_at, now, alone=self.alone)
        for state in stuck:
            say(f"KD817: {stuck_text(state, now)}")
            self.killed.append(state)
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGKILL)


def stuck_text(state: State, now: float) -> str:
    """Which process is stuck, in what and for how long, and that it is killed."""
    seconds = now - state.moved
    if seconds < STUCK_SECONDS:
        return f"process {state.rank} (pid {state.pid}) takes too long to leave: it is killed"
    what = f"waits for other processes in {state.text}" if state.waits else f"is stuck in {state.text}"
    return f"process {state.rank} (pid {state.pid}) {what}, without a move for {seconds:.0f} s: it is killed"


def status_of(pid: int) -> str | None:
    """A process's state as a letter of /proc (`T`: stopped), `""` where that is not known; None: it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    letter = "".join(process_facts(pid)[:1])
    return None if letter in ("Z", "X") else letter
