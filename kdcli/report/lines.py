"""A training told in plain lines: for logs, pipes and CI.

A line at the first step, at every epoch's end and at most nineteen in between, these no closer than five
seconds; after a minute of silence one more. What a line says depends on the records alone, but for speed and
time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Saved, Step
from kdcli.report.console import as_text, printable
from kdcli.report.epoch import EpochSoFar
from kdcli.report.plan import plan_summary
from kdcli.report.quantities import duration, measure
from kdcli.report.standings import Standings, finished_table

LINES_AN_EPOCH = 20
SPACING_SECONDS = 5.0
SILENCE_SECONDS = 60.0


class Lines:
    """Turns records into text, one call a record; most steps give none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoch = EpochSoFar()
        self._standings = Standings()
        self._printed_at: float | None = None

    def of(self, record: Record) -> str:
        """The text this record is worth, "" or lines with their newlines."""
        if isinstance(record, Step):
            return self._step(record)
        if isinstance(record, Evaluation):
            return self._evaluation(record)
        if isinstance(record, Saved):
            return f"saved {record.path}{' (best)' if record.best else ''}\n"
        if isinstance(record, Notice):
            return f"{'warning: ' if record.level == 'warning' else ''}{printable(record.message)}\n"
        if isinstance(record, Plan):
            self._epoch = EpochSoFar(processes=record.processes)
            self._standings = Standings(student=record.networks[0].name) if record.networks else Standings()
            return as_text(plan_summary(record)) + "\n"
        return self._finished(record)

    def _step(self, step: Step) -> str:
        self._epoch.take(step)
        if not self._due(step):
            return ""
        self._printed_at = self._clock()
        return f"{self._epoch.line()}  {self._epoch.speed_now()}  left {self._epoch.left()}\n"

    def _due(self, step: Step) -> bool:
        if self._printed_at is None or step.step_in_epoch >= step.steps_per_epoch:
            return True
        quiet = self._clock() - self._printed_at
        every = -(-step.steps_per_epoch // LINES_AN_EPOCH)
        return (step.step_in_epoch % every == 0 and quiet >= SPACING_SECONDS) or quiet >= SILENCE_SECONDS

    def _evaluation(self, evaluation: Evaluation) -> str:
        self._standings.take(evaluation)
        metrics = "  ".join(f"{name} {measure(value)}" for name, value in evaluation.metrics.items())
        best = "  (best)" if evaluation.best else ""
        name = printable(evaluation.network)
        return f"eval {name} at step {evaluation.step}: {metrics}{best}  in {duration(evaluation.seconds)}\n"

    def _finished(self, finished: Finished) -> str:
        table = as_text(finished_table(finished, student=self._standings.student))
        return f"\n{table}\nfinished {finished.step} steps in {duration(finished.seconds)}\n"
