"""Everything that listens to a training: terminal, metrics.jsonl, train.log, loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Step
from kdcli.report.loggers.loggers import Loggers
from kdcli.report.metrics import MetricsWriter
from kdcli.report.terminal import Terminal
from kdcli.report.train_log import TrainLog

WriteUp = Callable[[bool], tuple[Sequence[Notice], Mapping[str, bytes]]]
"""Makes the report of a run that has just finished: what to tell; with True, pictures for the loggers too."""


class Recorder:
    """`with Recorder(...) as recorder: for record in train(run): recorder.take(record)`.

    spec: how the user named the spec, with overrides. write_up: called once the run's last numbers are
    on disk, before the last line is shown.
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
    ) -> None:
        self._terminal = Terminal(spec=spec, quiet=quiet)
        self._paths = (metrics, log)
        self._loggers = loggers
        self._write_up = write_up
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._terminal)
            self._metrics = stack.enter_context(MetricsWriter(self._paths[0]))
            self._log = stack.enter_context(TrainLog(self._paths[1]))
            stack.callback(lambda: self._tell(self._loggers.close()))
            self._tell(self._loggers.load())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def take(self, record: Record) -> None:
        """Show one record and write it down."""
        if isinstance(record, Plan):
            self._metrics.truncate_after(
                record.resumed_step, before_evaluation=record.resumed_before_evaluation
            )
        if isinstance(record, (Plan, Step, Evaluation, Finished)):
            self._metrics.write(record)
        self._tell(self._loggers.take(record))
        if isinstance(record, Finished) and self._write_up is not None:
            notices, pictures = self._write_up(bool(self._loggers))
            self._tell([*notices, *self._loggers.pictures(record.step, pictures)])
        self._show(record)

    def _tell(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self._show(notice)

    def _show(self, record: Record) -> None:
        self._terminal.show(record)
        self._log.show(record)
