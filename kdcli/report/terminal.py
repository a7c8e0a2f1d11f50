"""What a training shows on standard error, record by record.

On a terminal a bar for the epoch under way, drawn at most ten times a second, and tables; elsewhere plain
lines. A terminal that goes away (a closed pipe, a hung-up line) ends the drawing, never the training.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

from kdcli.records import Finished, Record
from kdcli.report.console import is_terminal, write
from kdcli.report.lines import Lines
from kdcli.report.screen import Screen


class Terminal:
    """Consumes records: `with Terminal(spec="cfg.yaml") as terminal: for r in records: terminal.show(r)`.

    spec: how the user named the spec (a path, or a list with its overrides), for the command to go on with;
    quiet: only warnings and the last line.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        spec: str | Sequence[str] | None = None,
        quiet: bool = False,
        width: int | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._spec = spec
        self._quiet = quiet
        self._lines = Lines(clock)
        live = is_terminal(self._stream) if live is None else live
        self._screen = Screen(self._stream, width=width, clock=clock) if live and not quiet else None
        self._gone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guarded(lambda: self._screen.close() if self._screen else None)

    def show(self, record: Record) -> None:
        """Draw or print one record."""
        self._guarded(lambda: self._show(record))

    def _show(self, record: Record) -> None:
        if self._screen is not None:
            self._screen.show(record)
        elif not self._quiet or getattr(record, "level", None) == "warning":
            text = self._lines.of(record)
            if text:
                write(text, self._stream)
        if isinstance(record, Finished):
            write(farewell(record, self._spec) + "\n", self._stream)

    def _guarded(self, draw: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            draw()
        except (OSError, ValueError):  # BrokenPipeError, EIO after a hang-up, a closed file
            self._gone = True
            if self._screen is not None:
                with suppress(OSError, ValueError):
                    self._screen.abandon()


def farewell(finished: Finished, spec: str | Sequence[str] | None = None) -> str:
    """Where the student lies and the next command, in one line."""
    named = spec or str(finished.run_dir / "spec.resolved.yaml")
    command = shlex.join(["kdcli", "eval", *([named] if isinstance(named, str) else named)])
    student = finished.student_path
    where = f"run: {finished.run_dir}" if student is None else f"student: {student}"
    return f"{where} · next: {command}"
