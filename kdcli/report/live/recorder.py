"""Hands every record of a training to the terminal, metrics.jsonl, train.log and the loggers."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from kdcli.records import Alarm, Baseline, Evaluation, Finished, Notice, Plan, Record, Step
from kdcli.report.console import is_terminal, write
from kdcli.report.live.live_screen import LiveScreen
from kdcli.report.live.plain_text import PlainText
from kdcli.report.loggers.background import Loggers
from kdcli.report.run_files import MetricsWriter, TrainLog

WriteUp = Callable[[bool], tuple[Sequence[Notice], Mapping[str, bytes]]]
"""Writes the report of a run that has just finished. Returns notices and, if called with True, PNG by name."""


class Recorder:
    """Shows and stores a training's records: `with Recorder(...) as r: for record in train(run): r.take(record)`.

    terminal: whether anything is shown. spec: how the user named the spec, with overrides. write_up: called once the
    run's last numbers are on disk, before the training's last line is shown. then: what comes next, else the command
    that evaluates it. baseline: shown in the last table.
    """

    def __init__(
        self,
        *,
        metrics: Path,
        log: Path,
        spec: Sequence[str],
        quiet: bool,
        loggers: Loggers,
        write_up: WriteUp | None = None,
        then: str | None = None,
        baseline: Baseline | None = None,
        terminal: bool = True,
    ) -> None:
        shown = Terminal(spec=spec, quiet=quiet, then=then, baseline=baseline)
        self._terminal = shown if terminal else Nowhere()
        self._baseline = baseline
        self._paths = (metrics, log)
        self._loggers = loggers
        self._write_up = write_up
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._terminal)
            self._metrics = stack.enter_context(MetricsWriter(self._paths[0]))
            self._log = stack.enter_context(TrainLog(self._paths[1], baseline=self._baseline))
            stack.callback(lambda: self._show_all(self._loggers.close()))
            self._show_all(self._loggers.load())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def take(self, record: Record) -> None:
        """Show one record, write it to the run's files and hand it to the loggers."""
        if isinstance(record, Plan):
            self._metrics.truncate_after(
                record.resumed_step, before_evaluation=record.resumed_before_evaluation
            )
        if isinstance(record, (Plan, Step, Evaluation, Alarm, Finished)):
            self._metrics.write(record)
        self._show_all(self._loggers.take(record))
        if isinstance(record, Finished) and self._write_up is not None:
            notices, pictures = self._write_up(bool(self._loggers))
            self._show_all([*notices, *self._loggers.pictures(record.step, pictures)])
        self._show(record)

    def _show_all(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._show(notice)

    def _show(self, record: Record) -> None:
        self._terminal.show(record)
        self._log.show(record)


class Terminal:
    """Shows a training's records on standard error: live on a terminal, else as plain lines.

    A terminal that goes away (a closed pipe, a hung-up line) ends the drawing, never the training.

    spec: how the user named the spec (a path, or a list with its overrides), for the command shown at the end;
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
        then: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        baseline: Baseline | None = None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._spec, self._then = spec, then
        self._quiet = quiet
        self._lines = PlainText(clock, baseline=baseline)
        live = is_terminal(self._stream) if live is None else live
        self._screen = (
            LiveScreen(self._stream, width=width, clock=clock, baseline=baseline)
            if live and not quiet
            else None
        )
        self._gone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guarded(lambda: self._screen.close() if self._screen else None)

    def show(self, record: Record) -> None:
        """Show one record."""
        self._guarded(lambda: self._show(record))

    def _show(self, record: Record) -> None:
        if self._screen is not None:
            self._screen.show(record)
        elif not self._quiet or getattr(record, "level", None) == "warning":
            text = self._lines.of(record)
            if text:
                write(text, self._stream)
        if isinstance(record, Finished):
            write(last_line(record, self._spec, self._then) + "\n", self._stream)

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


class Nowhere(Terminal):
    """Shows nothing: a run of many, of which another speaks."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def show(self, record: Record) -> None:
        """Leave it to the run's files."""


def last_line(finished: Finished, spec: str | Sequence[str] | None = None, then: str | None = None) -> str:
    """Last line of a training: the student's file and what comes next, else the command that evaluates it."""
    named = spec or str(finished.run_dir / "spec.resolved.yaml")
    command = shlex.join(["kdcli", "eval", *([named] if isinstance(named, str) else named)])
    student = finished.student_path
    result = f"run: {finished.run_dir}" if student is None else f"student: {student}"
    return f"{result} · next: {then or command}"
