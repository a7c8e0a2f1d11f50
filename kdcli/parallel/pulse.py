"""A worker's pulse: what it is doing, and when its main thread last ran a line of Python, for its launcher to read.

A process in a call that never returns, or one that the system has stopped, has none.
"""

from __future__ import annotations

import _thread
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from kdcli.failures import doing

STUCK_SECONDS = 6.0
"""One without a pulse for so long is stuck, in a run that is to stop. A step may take thrice the longest."""

BETWEEN_SECONDS = 60.0
"""Between two steps: whoever waits for data runs some Python every few seconds, and a device may have work queued."""

UNHURRIED_SECONDS = 600.0
"""So long may the system or a library be busy with what is no training step: torch.compile and cuDNN's benchmark in the
first one, an evaluation, a checkpoint."""

BEAT_SECONDS = 0.5
PING = signal.SIGURG
"""Never sent: `interrupt_main` has the main thread run its handler between two lines of Python."""

_RECORD = struct.Struct("<qqqdd??6x")
_TEXT_BYTES = 200
_SIZE = _RECORD.size + _TEXT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a worker last said of itself. Times are those of `time.monotonic`, one clock for the whole machine.

    asked: the signal that it has heard, or 0. left: its exit code plus 1, 0 while it runs. moved: when its main thread
    last ran a line of Python or began something. patience: the seconds that it may be without a pulse. waits: for other
    processes. saves: it writes a checkpoint.
    """

    rank: int
    pid: int
    text: str
    asked: int
    left: int
    moved: float
    patience: float
    waits: bool
    saves: bool


class Pulse:
    """What a worker says of itself in a file that its launcher reads; only the main thread writes it."""

    def __init__(self, path: Path, rank: int) -> None:
        self.pid, self.rank = os.getpid(), rank
        self._asked = self._left = 0
        self._patience, self._waits, self._saves = UNHURRIED_SECONDS, False, False
        self._last_step = 0.0
        self._longest: float | None = None
        self._under_way: list[doing] = []
        # A file of its own until it is whole: the pulse of the process before a restart may still be looked at.
        made = path.with_suffix(f".{self.pid}")
        made.write_bytes(bytes(_SIZE))
        with made.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._show("starting")
        made.replace(path)

    def follow(self, block: doing, begins: bool) -> None:
        """Hear of a `doing` block that begins or ends."""
        if threading.current_thread() is not threading.main_thread():
            return
        if begins:
            self._under_way.append(block)
        elif block in self._under_way:
            self._under_way.remove(block)
        self._show(", ".join(one.text for one in self._under_way[-2:]))

    def beat(self) -> None:
        """Say that the main thread runs Python."""
        self._write()

    def hear(self, number: int) -> None:
        """Say that a signal was heard."""
        self._asked = number
        self._write()

    def leave(self, code: int) -> None:
        """Say that this process is about to end with an exit code."""
        self._left = code + 1
        self._write()

    def step(self) -> None:
        """Say that a training step begins. From the second one of a row on it is known how long one takes."""
        now = time.monotonic()
        if self._last_step:
            self._longest = max(self._longest or 0.0, now - self._last_step)
        if self._longest is not None:
            self._patience = max(STUCK_SECONDS, 3 * self._longest)
        self._last_step = now
        self._write()

    def between_steps(self) -> None:
        """Say that a step has ended, and that the next batch is waited for."""
        self._patience = max(self._patience, BETWEEN_SECONDS)
        self._write()

    def no_step(self) -> None:
        """Say that no step of this row follows: what comes next may take any time."""
        self._last_step, self._longest, self._patience = 0.0, None, UNHURRIED_SECONDS
        self._write()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A `with` block that waits for the other processes."""
        before, self._waits = self._waits, True
        self._write()
        try:
            yield
        finally:
            self._waits = before
            self._write()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A `with` block that writes a checkpoint."""
        before = self._patience, self._saves
        self._patience, self._saves = UNHURRIED_SECONDS, True
        try:
            with doing("saving a checkpoint"):
                yield
        finally:
            self._patience, self._saves = before
            self._last_step = 0.0  # this was no part of a step
            self._write()

    def _show(self, text: str) -> None:
        line = text.encode()[:_TEXT_BYTES]
        self._memory[_RECORD.size :] = line.ljust(_TEXT_BYTES, b"\0")
        self._write()

    def _write(self) -> None:
        fields = (self.pid, self.rank, self._asked << 16 | self._left, time.monotonic(), self._patience)
        _RECORD.pack_into(self._memory, 0, *fields, self._waits, self._saves)


def read(path: Path) -> State | None:
    """The state in a pulse's file; None where there is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    pid, rank, numbers, moved, patience, waits, saves = _RECORD.unpack_from(content)
    return State(
        rank=rank,
        pid=pid,
        text=content[_RECORD.size :].rstrip(b"\0").decode(errors="ignore"),
        asked=numbers >> 16,
        left=numbers & 0xFFFF,
        moved=moved,
        patience=patience,
        waits=waits,
        saves=saves,
    )


def pulse_path(folder: Path, local_rank: int) -> Path:
    """The file of a worker's pulse in its launcher's folder."""
    return folder / f"pulse_{local_rank}"


pulse: Pulse | None = None
"""This process's, where kdcli's launcher has started it."""


def stop_pulse() -> None:
    """Keep no pulse any more: in a forked process (a data worker) it would be its parent's."""
    global pulse
    pulse = doing.listener = None


os.register_at_fork(after_in_child=stop_pulse)


def keep_pulse(path: Path, rank: int) -> None:
    """Keep this process's pulse in a file from now on; to be called in the main thread."""
    global pulse
    made = pulse = Pulse(path, rank)
    doing.listener = made.follow
    signal.signal(PING, lambda _number, _frame: made.beat())

    def ask() -> None:
        while pulse is made:
            _thread.interrupt_main(PING)
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=ask, name="kdcli-pulse", daemon=True).start()


def hear(number: int) -> None:
    """Tell the launcher that a signal was heard here."""
    if pulse is not None:
        pulse.hear(number)


def leave(code: int) -> None:
    """Tell the launcher that this process is about to end with an exit code."""
    if pulse is not None:
        pulse.leave(code)


def begin_step() -> None:
    """Tell the launcher that a training step begins."""
    if pulse is not None:
        pulse.step()


def end_step() -> None:
    """Tell the launcher that a training step has ended."""
    if pulse is not None:
        pulse.between_steps()


def end_steps() -> None:
    """Tell the launcher that something else than a training step comes next."""
    if pulse is not None:
        pulse.no_step()


def waiting_for_others() -> AbstractContextManager[None]:
    """A `with` block that waits for the other processes."""
    return nullcontext() if pulse is None else pulse.waiting()


def saving() -> AbstractContextManager[None]:
    """A `with` block that writes a checkpoint: it may end although another process died."""
    return nullcontext() if pulse is None else pulse.saving()
