"""A training told in plain lines: for logs, pipes and CI.

A line at the first step, at every epoch's end and at most nineteen in between, these no closer than five
seconds; after a minute of silence one more. What a line says depends on the records alone, but for speed and
time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kdcli.engine.records import Evaluation, Finished, Notice, Plan, Record, Saved, Step
from kdcli.report.console import as_text, printable
from kdcli.report.live.plan import plan_summary
from kdcli.report.quantities import duration, measure, rate, speed
from kdcli.report.results_table import Standings, finished_table

RECENT_SECONDS = 30.0
"""Speed and time left look back about this far."""


@dataclass(slots=True)
class EpochSoFar:
    """Sums over the steps of one epoch; taking in a step costs a few additions."""

    processes: int = 1
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    total: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    last: Step | None = None
    _recent_steps: float = 0.0
    _recent_images: float = 0.0
    _recent_seconds: float = 0.0

    def take(self, step: Step) -> None:
        """Add one step; a step of another epoch starts anew."""
        if self.last is not None and step.epoch != self.last.epoch:
            self.steps, self.images, self.seconds, self.total = 0, 0, 0.0, 0.0
            self.losses, self.counts = {}, {}
        self.last = step
        self.steps += 1
        self.images += step.images
        self.seconds += step.seconds
        self.total += step.total
        for name, value in step.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if self._recent_seconds > RECENT_SECONDS:
            self._recent_steps, self._recent_images = self._recent_steps / 2, self._recent_images / 2
            self._recent_seconds /= 2
        self._recent_steps += 1
        self._recent_images += step.images
        self._recent_seconds += step.seconds

    @property
    def mean_total(self) -> float:
        """The mean of the total loss over the epoch so far."""
        return self.total / self.steps if self.steps else 0.0

    def parts(self) -> str:
        """`task.ce 0.4120  job0.teacher0.kd 1.2000`: means over the steps in which each was in force."""
        return "  ".join(f"{name} {measure(self.losses[name] / self.counts[name])}" for name in self.losses)

    def where(self) -> str:
        """`epoch 3/60`, with the stage where the run has stages."""
        assert self.last is not None
        step = self.last
        epochs = max(step.epoch + 1, -(-step.total_steps // max(1, step.steps_per_epoch)))
        stage = f" [{step.stage}]" if step.stage else ""
        return f"epoch {step.epoch + 1}/{epochs}{stage}"

    def speed_now(self) -> str:
        """Images per second of all processes, over the last half minute or so."""
        return speed(self._recent_images * self.processes, self._recent_seconds)

    def speed_mean(self) -> str:
        """Images per second of all processes, over the epoch."""
        return speed(self.images * self.processes, self.seconds)

    def left(self) -> str:
        """The time the remaining steps of the run will take at the present speed."""
        assert self.last is not None
        remaining = self.last.total_steps - self.last.step
        return duration(remaining * self._recent_seconds / max(1.0, self._recent_steps))

    def line(self) -> str:
        """The epoch in one line."""
        assert self.last is not None
        step = self.last
        steps = f"step {step.step_in_epoch}/{step.steps_per_epoch}"
        loss = f"loss {measure(self.mean_total)}  ({self.parts()})"
        return f"{self.where()}  {steps}  {loss}  lr {rate(step.lr)}"


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
