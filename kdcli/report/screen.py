"""A training drawn on a terminal: a live bar for the epoch, tables above it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdcli.records import Evaluation, Finished, Notice, Plan, Record, Saved, Step
from kdcli.report.console import console_for, printable
from kdcli.report.epoch import EpochSoFar
from kdcli.report.plan import plan_summary
from kdcli.report.quantities import duration, measure, rate
from kdcli.report.standings import Standings, finished_table

DRAW_SECONDS = 0.1


class Screen:
    """Draws records on a console; steps at most every 0.1 s and always the last of an epoch."""

    def __init__(
        self, stream: TextIO, *, width: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console: Console = console_for(stream, width)
        self._clock = clock
        self._epoch = EpochSoFar()
        self._standings = Standings()
        self._live: Live | None = None
        self._drawn_at = self._told_at = float("-inf")

    def show(self, record: Record) -> None:
        """Draw one record."""
        if isinstance(record, Step):
            self._step(record)
        elif isinstance(record, Evaluation):
            self._evaluation(record)
        elif isinstance(record, Notice):
            style = "yellow" if record.level == "warning" else "dim"
            prefix = "warning: " if record.level == "warning" else ""
            self._console.print(Text(prefix + printable(record.message), style=style))
        elif isinstance(record, Plan):
            self._epoch = EpochSoFar(processes=record.processes)
            self._standings = Standings(student=record.networks[0].name) if record.networks else Standings()
            self._console.print(plan_summary(record), Text(""))
        elif isinstance(record, Saved):
            if record.best:
                self._console.print(Text(f"saved {record.path} (best)", style="dim"), soft_wrap=True)
        else:
            self._finished(record)

    def close(self) -> None:
        """Take the bar away; the cursor comes back even when the drawing broke."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def abandon(self) -> None:
        """Draw no more: the terminal is gone."""
        self._console.quiet = True
        self.close()

    def _step(self, step: Step) -> None:
        self._epoch.take(step)
        now = self._clock()
        if step.step_in_epoch >= step.steps_per_epoch:
            self.close()
            # Epochs of a few milliseconds would flood the screen: their lines are rationed too.
            if now - self._told_at >= DRAW_SECONDS or step.step >= step.total_steps:
                self._told_at = now
                self._console.print(Text(f"{self._epoch.line()}  {self._epoch.speed_mean()}"))
            return
        if now - self._drawn_at < DRAW_SECONDS:
            return
        self._drawn_at = now
        if self._live is None:
            # What others print to standard error appears above the bar; standard output stays theirs.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()
        self._live.update(self._bar(), refresh=True)

    def _bar(self) -> RenderableType:
        step = self._epoch.last
        assert step is not None
        row = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None, None, None, None):
            row.add_column(no_wrap=True, ratio=ratio)
        row.add_row(
            Text(self._epoch.where(), style="bold"),
            ProgressBar(total=step.steps_per_epoch, completed=step.step_in_epoch),
            Text(f"{step.step_in_epoch}/{step.steps_per_epoch}"),
            Text(f"loss {measure(self._epoch.mean_total)}", style="bold"),
            Text(f"lr {rate(step.lr)}"),
            Text(self._epoch.speed_now()),
            Text(f"left {self._epoch.left()}"),
        )
        return Group(row, Text(f"  {self._epoch.parts()}", style="dim"))

    def _evaluation(self, evaluation: Evaluation) -> None:
        self._standings.take(evaluation)
        if evaluation.network != self._standings.student:
            values = "  ".join(f"{name} {measure(value)}" for name, value in evaluation.metrics.items())
            self._console.print(Text(f"{printable(evaluation.network)}: {values}"))
            return
        best = ", the best so far" if evaluation.best else ""
        took = duration(evaluation.seconds)
        title = f"step {evaluation.step}{best} (evaluated in {took})"
        self._console.print(Text(title, style="bold"), self._standings.draw(), Text(""))

    def _finished(self, finished: Finished) -> None:
        self.close()
        self._console.print(Text(""), finished_table(finished, student=self._standings.student))
        self._console.print(Text(f"finished {finished.step} steps in {duration(finished.seconds)}"))
