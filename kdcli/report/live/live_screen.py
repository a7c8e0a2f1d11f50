"""Live drawing on a terminal: a training with its progress bar and tables, and a bar for other long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdcli.records import Baseline, Evaluation, Finished, Notice, Plan, Record, Saved, Step
from kdcli.report.console import console_for, is_terminal, packed, printable
from kdcli.report.live.plain_text import EpochSoFar, finished_line, plan_summary
from kdcli.report.quantities import duration, measure, rate
from kdcli.report.results_table import ResultsSoFar, finished_table

DRAW_SECONDS = 0.1


class LiveScreen:
    """Draws the records of a training on a terminal: a bar for the epoch, at most every 0.1 s, below tables."""

    def __init__(
        self,
        stream: TextIO,
        *,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        baseline: Baseline | None = None,
    ) -> None:
        self._baseline = baseline
        self._console: Console = console_for(stream, width)
        self._clock = clock
        self._epoch = EpochSoFar()
        self._results = ResultsSoFar()
        self._resumed = 0
        self._live: Live | None = None
        self._drawn_at = self._line_printed_at = float("-inf")
        self._started_at = clock()

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
            self._results, self._resumed = ResultsSoFar.of(record), record.resumed_step
            self._console.print(plan_summary(record, how_to_see_all="train.log has all"), Text(""))
        elif not isinstance(record, Saved):
            self._finished(record)

    def close(self) -> None:
        """Remove the bar and show the cursor again, even after drawing has failed."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def abandon(self) -> None:
        """Stop drawing for good, for a terminal that is gone."""
        self._console.quiet = True
        self.close()

    def _step(self, step: Step) -> None:
        self._epoch.add(step)
        now = self._clock()
        if step.step_in_epoch >= step.steps_per_epoch:
            self.close()
            # Epochs of a few milliseconds would flood the screen: their lines are rationed too.
            if now - self._line_printed_at >= DRAW_SECONDS or step.step >= step.total_steps:
                self._line_printed_at = now
                fields = [*self._epoch.line_fields(), self._epoch.speed_mean()]
                self._console.print(Text(packed(fields, self._console.width)))
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
        for ratio in (None, 1, None, None, None):
            row.add_column(no_wrap=True, ratio=ratio)
        row.add_row(
            Text(self._epoch.position(), style="bold"),
            ProgressBar(total=step.steps_per_epoch, completed=step.step_in_epoch),
            Text(f"{step.step_in_epoch}/{step.steps_per_epoch}"),
            Text(f"elapsed {duration(self._clock() - self._started_at)}"),
            Text(f"left {self._epoch.time_left()}"),
        )
        width = self._console.width
        loss = f"loss {measure(self._epoch.mean_total)}"
        fields = [*self._epoch.part_fields(), f"lr {rate(step.lr)}", self._epoch.speed_now()]
        losses = Text(packed([f"  {loss}", *fields], width), style="dim")
        losses.stylize("not dim bold", 2, 2 + len(loss))
        levels = self._results.levels()
        return Group(row, losses, *([Text(packed(levels, width), style="dim")] if levels else []))

    def _evaluation(self, evaluation: Evaluation) -> None:
        self._results.add(evaluation)
        if evaluation.network != self._results.student:
            values = "  ".join(f"{name} {measure(value)}" for name, value in evaluation.metrics.items())
            self._console.print(Text(f"{printable(evaluation.network)}: {values}"))
            return
        best = ", the best so far" if evaluation.best else ""
        took = duration(evaluation.seconds)
        title = f"step {evaluation.step}{best} (evaluated in {took})"
        self._console.print(Text(title, style="bold"), self._results.draw(), Text(""))

    def _finished(self, finished: Finished) -> None:
        self.close()
        table = finished_table(finished, student=self._results.student, baseline=self._baseline)
        self._console.print(Text(""), table, Text(""))
        self._console.print(Text(finished_line(finished, self._resumed)))


@contextmanager
def progress(
    title: str, stream: TextIO | None = None, *, in_bytes: bool = False
) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar that is gone when the work is done: yields `update(done, total)`, or None without a terminal.

    The stream is standard error by default; the bar appears with the first update. in_bytes: what is counted are bytes.
    """
    stream = sys.stderr if stream is None else stream
    if not is_terminal(stream):
        yield None
        return
    counts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    bar = Progress(*columns, console=console_for(stream), transient=True)
    task = bar.add_task(escape(printable(title)), total=None)

    def update(done: int, total: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()


def progress_of_bytes(title: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """The same of a download."""
    return progress(title, in_bytes=True)
