"""A training as text: the summary of its plan, then plain lines for logs, pipes and CI.

A line at the first step, at every epoch's end and at most nineteen in between, these no closer than five
seconds; after a minute of silence one more. What a line says depends on the records alone, but for speed and
time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli.records import Baseline, Evaluation, Finished, Notice, Plan, Record, Saved, Step
from kdcli.report.console import HOW_TO_SEE_ALL, Column, Paragraph, as_text, printable, table
from kdcli.report.quantities import MISSING, count, duration, flops, measure, rate, speed
from kdcli.report.results_table import ResultsSoFar, finished_table

PULL = (
    "pull: how hard a term's gradient is on the student, to the task loss's 1; for 1: the `loss_weight` that gives\n"
    "it, of the job, or in a loss's `kwargs` where the job has several losses"
)
CONSTANT = (
    "constant: what the term costs where the student answers the teacher's mean at every place of every image;\n"
    "a term that stays there has taught nothing"
)

RECENT_SECONDS = 30.0
"""Speed and time left are measured over about this long."""

STEPS_KEPT = 3.0
"""Of the epochs before, speed and time left count so many steps."""

LINES_AN_EPOCH = 20
SPACING_SECONDS = 5.0
SILENCE_SECONDS = 60.0


def plan_text(plan: Plan, *, colour: bool = False, width: int | None = None) -> str:
    """The plan's summary as text; nothing wraps where there is no width."""
    return as_text(plan_summary(plan), colour=colour, width=width)


def plan_summary(plan: Plan, *, how_to_see_all: str = HOW_TO_SEE_ALL) -> RenderableType:
    """The plan's summary for a console: networks, pairs of layers, data, steps, learning rate."""
    parts: list[RenderableType] = [_headline(plan), Text(""), _networks(plan)]
    for network in plan.networks:
        if network.weights:
            parts.append(Text(f"weights of {network.name}: {printable(network.weights)}"))
        if network.input:
            parts.append(Text(f"pixels of {network.name}: {network.input}"))
    if plan.checked:
        parts.append(Text(plan.checked))
    if plan.pairs:
        parts += [Text(""), _pairs(plan, how_to_see_all)]
    if plan.pulls:
        parts.append(Paragraph(PULL))
    if plan.constants:
        parts.append(Paragraph(CONSTANT))
    parts += [Text(""), *map(Text, _schedule_lines(plan))]
    return Group(*parts)


def _schedule_lines(plan: Plan) -> list[str]:
    """A line each for data, steps, learning rate, and where a resumed run goes on."""
    global_batch = plan.batch_size * plan.processes
    batch = f"batch {plan.batch_size}"
    if plan.processes > 1:
        batch += f" x {plan.processes} processes = {global_batch}"
    unlabelled = "" if plan.labelled else " without labels"
    images = f"training images{unlabelled}"
    images = (
        f"number of {images} not known without the files"
        if plan.samples is None
        else f"{plan.samples:,} {images}"
    )
    left_out = "" if plan.labelled else "; the task's own loss is left out"
    lines = [
        f"data   {images}, {batch}{left_out}",
        f"steps  {_steps(plan)}",
        f"lr     {rate(plan.effective_lr)} effective",
    ]
    if plan.resumed_step and plan.total_steps is not None:
        lines.append(f"resume at step {plan.resumed_step:,} of {plan.total_steps:,}")
    return lines


def _steps(plan: Plan) -> str:
    if plan.total_steps is None:
        return "not known without the files: `validate --files` counts them"
    if not plan.steps_per_epoch:
        return f"{plan.total_steps:,}"
    epochs = plan.total_steps / plan.steps_per_epoch
    return f"{plan.total_steps:,} = {epochs:g} epoch{'' if epochs == 1 else 's'} x {plan.steps_per_epoch:,}"


def _headline(plan: Plan) -> Text:
    processes = f"{plan.processes} process{'' if plan.processes == 1 else 'es'}"
    return Text.assemble(
        (printable(plan.name), "bold"), f" · {plan.device} · {processes} · {plan.precision} · {plan.run_dir}"
    )


def _networks(plan: Plan) -> RenderableType:
    # A training that was proved before (--resume, several processes) has not counted them.
    counted = any(network.flops is not None for network in plan.networks)
    rows = [
        [
            network.name,
            count(network.parameters),
            *([flops(network.flops)] if counted else []),
            network.runs_until or "whole",
        ]
        for network in plan.networks
    ]
    size = "" if plan.flops_size is None else f" at {plan.flops_size[0]}x{plan.flops_size[1]}"
    return table(["network", ">parameters", *([f">FLOPs{size}"] if counted else []), "runs until"], rows)


def _pairs(plan: Plan, how_to_see_all: str) -> RenderableType:
    measured: dict[str, dict[str, str]] = {}
    if plan.pulls:
        measured["pull"] = {term: f"{pull:.2g}" for term, pull in plan.pulls.items()}
        measured["for 1"] = {term: f"{weight:.2g}" for term, weight in plan.even_weights.items()}
    if plan.constants:
        measured["constant"] = {term: measure(cost) for term, cost in plan.constants.items()}
    rows = [
        [
            pair.term,
            pair.student_layer,
            pair.student_shape,
            pair.adapter or MISSING,
            ": ".join(part for part in (pair.teacher, pair.teacher_layer) if part) or MISSING,
            pair.teacher_shape or MISSING,
            pair.loss,
            f"{pair.weight:g}",
            *(values.get(pair.term, MISSING) for values in measured.values()),
        ]
        for pair in plan.pairs
    ]
    columns: list[str | Column] = [
        "term",
        "student layer",
        Column("shape", whole=True, dropped=5),
        Column("adapter", dropped=4),
        "teacher layer",
        Column("shape", whole=True, dropped=5),
        Column("loss", dropped=2),
        Column("weight", right=True, dropped=1),
        *(Column(name, right=True, dropped=3 if name == "constant" else 0) for name in measured),
    ]
    return table(columns, rows, how_to_see_all=how_to_see_all)


@dataclass(slots=True)
class EpochSoFar:
    """Mean losses and speed over the steps of the current epoch, and the time left."""

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

    def add(self, step: Step) -> None:
        """Add one step; the first of another epoch starts the means anew."""
        if self.last is not None and step.epoch != self.last.epoch:
            self.steps, self.images, self.seconds, self.total = 0, 0, 0.0, 0.0
            self.losses, self.counts = {}, {}
            # An epoch may be far quicker than the one before: once a cache is filled no teacher runs.
            kept = min(1.0, STEPS_KEPT / max(1.0, self._recent_steps))
            self._recent_steps, self._recent_images = kept * self._recent_steps, kept * self._recent_images
            self._recent_seconds *= kept
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
        """`task.ce 0.4120  job0.teacher0.kd 1.2000`: each part's mean over the steps that have it."""
        return "  ".join(self.part_fields())

    def part_fields(self) -> list[str]:
        """The same, a text for each part."""
        return [f"{name} {measure(self.losses[name] / self.counts[name])}" for name in self.losses]

    def position(self) -> str:
        """`epoch 3/60 [stage]`; the stage only where the run has stages."""
        assert self.last is not None
        step = self.last
        epochs = max(step.epoch + 1, -(-step.total_steps // max(1, step.steps_per_epoch)))
        stage = f" [{step.stage}]" if step.stage else ""
        return f"epoch {step.epoch + 1}/{epochs}{stage}"

    def speed_now(self) -> str:
        """`1,234 images/s` of all processes together, over about the last half minute."""
        return speed(self._recent_images * self.processes, self._recent_seconds)

    def speed_mean(self) -> str:
        """`1,234 images/s` of all processes together, over the epoch so far."""
        return speed(self.images * self.processes, self.seconds)

    def time_left(self) -> str:
        """`2 h 05 min`: how long the rest of the run takes at the speed of about the last half minute."""
        assert self.last is not None
        remaining = self.last.total_steps - self.last.step
        return duration(remaining * self._recent_seconds / max(1.0, self._recent_steps))

    def line(self) -> str:
        """The epoch so far in one line: steps, losses, learning rate."""
        return "  ".join(self.line_fields())

    def line_fields(self) -> list[str]:
        """The same in texts between which a line may end."""
        assert self.last is not None
        step = self.last
        steps = f"step {step.step_in_epoch}/{step.steps_per_epoch}"
        parts = self.part_fields() or [""]
        parts[0] = f"({parts[0]}"
        parts[-1] = f"{parts[-1]})"
        return [self.position(), steps, f"loss {measure(self.mean_total)}", *parts, f"lr {rate(step.lr)}"]


def finished_line(finished: Finished, resumed_step: int) -> str:
    """How many steps a run has, and in what time this process took those that it ran itself."""
    took = f"in {duration(finished.seconds)}"
    own = finished.step - resumed_step
    if own == finished.step:
        return f"finished {finished.step} steps {took}"
    return f"finished {finished.step} steps, {f'the last {own}' if own else 'none of them now'} {took}"


class PlainText:
    """Turns the records of a training into lines of text; most steps give none."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, baseline: Baseline | None = None
    ) -> None:
        self._clock = clock
        self._baseline = baseline
        self._epoch = EpochSoFar()
        self._results = ResultsSoFar()
        self._printed_at: float | None = None
        self._resumed = 0

    def of(self, record: Record) -> str:
        """The record as lines that end in newlines, or "" where none is due."""
        if isinstance(record, Step):
            return self._step(record)
        if isinstance(record, Evaluation):
            return self._evaluation(record)
        if isinstance(record, Saved):
            return f"saved {record.path}\n"
        if isinstance(record, Notice):
            return f"{'warning: ' if record.level == 'warning' else ''}{printable(record.message)}\n"
        if isinstance(record, Plan):
            self._epoch = EpochSoFar(processes=record.processes)
            self._results, self._resumed = ResultsSoFar.of(record), record.resumed_step
            return as_text(plan_summary(record)) + "\n"
        return self._finished(record)

    def _step(self, step: Step) -> str:
        self._epoch.add(step)
        if not self._due(step):
            return ""
        self._printed_at = self._clock()
        return f"{self._epoch.line()}  {self._epoch.speed_now()}  left {self._epoch.time_left()}\n"

    def _due(self, step: Step) -> bool:
        if self._printed_at is None or step.step_in_epoch >= step.steps_per_epoch:
            return True
        quiet = self._clock() - self._printed_at
        every = -(-step.steps_per_epoch // LINES_AN_EPOCH)
        return (step.step_in_epoch % every == 0 and quiet >= SPACING_SECONDS) or quiet >= SILENCE_SECONDS

    def _evaluation(self, evaluation: Evaluation) -> str:
        self._results.add(evaluation)
        metrics = "  ".join(f"{name} {measure(value)}" for name, value in evaluation.metrics.items())
        best = "  (best)" if evaluation.best else ""
        name = printable(evaluation.network)
        return f"eval {name} at step {evaluation.step}: {metrics}{best}  in {duration(evaluation.seconds)}\n"

    def _finished(self, finished: Finished) -> str:
        table = as_text(finished_table(finished, student=self._results.student, baseline=self._baseline))
        return f"\n{table}\n{finished_line(finished, self._resumed)}\n"
