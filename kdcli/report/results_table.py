"""Tables of networks and their metrics: during a training, at its end, and of `kdcli eval`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli import __version__
from kdcli.records import LOWER_IS_BETTER, Baseline, Comparison, Evaluation, Finished, Plan, better, rising
from kdcli.report.console import Cell, Column, as_text, printable, table
from kdcli.report.quantities import (
    MISSING,
    count,
    difference,
    flops,
    json_value,
    measure,
    metric_words,
    size,
)

BASELINE = "baseline"


@dataclass(slots=True)
class ResultsSoFar:
    """Last and best metrics of the student, and last metrics of every other network, during a training.

    before: what teachers reached before the start, in the primary metric.
    """

    student: str = "student"
    primary: str = ""
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> ResultsSoFar:
        """Nothing yet but what the plan knows."""
        student = plan.networks[0].name if plan.networks else "student"
        return cls(student=student, primary=plan.primary, before=dict(plan.levels))

    def add(self, evaluation: Evaluation) -> None:
        """Add one evaluation of one network."""
        self.primary = evaluation.primary
        if evaluation.network != self.student:
            self.others[evaluation.network] = evaluation.metrics
            return
        self.last = evaluation.metrics
        if evaluation.best or not self.best:
            self.best = evaluation.metrics

    def levels(self) -> list[str]:
        """`top1:`, `teacher0 98.44`, `student 90.00`, `best 91.00`: where student and teachers are, for a line."""
        measured = {name: of[self.primary] for name, of in self.others.items() if self.primary in of}
        others = {**self.before, **measured}
        named = [f"{printable(name)} {measure(value)}" for name, value in others.items()]
        if self.primary in self.last:
            named.append(f"{self.student} {measure(self.last[self.primary])}")
        if self.primary in self.best:
            named.append(f"best {measure(self.best[self.primary])}")
        return [f"  {self.primary}:", *named] if named else []

    def draw(self) -> RenderableType:
        """Table of the metrics: a row for the student now, for its best, and for every other network."""
        return _draw(self.student, self.primary, self.last, self.best, self.others, "now")


def finished_table(
    finished: Finished, *, student: str = "student", baseline: Baseline | None = None
) -> RenderableType:
    """Table at the end of a training: the student's last and best metrics, how far from a teacher's, the baseline's."""
    drawn = _draw(
        student, finished.primary, finished.last, finished.best, finished.teachers, "last", baseline
    )
    if baseline is None:
        return drawn
    lines = baseline_lines(f"{student} last", finished.last, baseline.last, finished.primary, baseline)
    return Group(drawn, Text(""), *map(Text, lines))


def baseline_lines(
    student: str, reached: Mapping[str, float], alone: Mapping[str, float], primary: str, baseline: Baseline
) -> list[str]:
    """Where the baseline's figures come from, and how far the student is above it (or below) in the primary metric."""
    lines = [f"{BASELINE}: {baseline.source}"]
    if primary in reached and primary in alone:
        lines.append(
            f"{student} against {BASELINE}: {primary} {difference(reached[primary], alone[primary])}"
        )
    return lines


def metric_names(rows: Sequence[Mapping[str, float]], primary: str) -> list[str]:
    """Names of all metrics in the rows: the primary one first, the others in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name != primary)


def result_rows(
    rows: Sequence[tuple[str, Mapping[str, float]]], primary: str, baseline: Baseline | None = None
) -> tuple[list[str], list[list[str]]]:
    """Names of the number columns and cells of a results table; the last column says how far a row is from a teacher.

    rows: labels with metrics: the student's last ones, its best ones, then the other networks'. The teacher is the one
    that is best in the primary metric, `to teacher` its figure taken from the row's: the student's and the baseline's.
    """
    names = metric_names([metrics for _, metrics in rows], primary)
    teachers = {label: metrics for label, metrics in rows[2:] if primary in metrics}
    best = max(teachers, key=lambda label: rising(primary, teachers[label]) or 0.0, default=None)
    alone = [] if baseline is None else [(BASELINE, baseline.last)]
    cells = []
    for index, (label, metrics) in enumerate([*rows[:2], *alone, *rows[2:]]):
        row = [label, *(measure(metrics[name]) if name in metrics else MISSING for name in names)]
        if best is not None:
            compared = index < 2 + len(alone) and primary in metrics
            row.append(difference(metrics[primary], teachers[best][primary]) if compared else "")
        cells.append(row)
    to_teacher = f"to {best}" if len(teachers) > 1 else "to teacher"
    return [*names, to_teacher] if best is not None else names, cells


def _draw(
    student: str,
    primary: str,
    last: Mapping[str, float],
    best: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]],
    latest: str,
    baseline: Baseline | None = None,
) -> RenderableType:
    named = [(f"{student} {latest}", last), (f"{student} best", best), *others.items()]
    columns, cells = result_rows(named, primary, baseline)
    rows: list[list[Cell]] = [list(row) for row in cells]
    rows[0][0] = Text(named[0][0], style="bold")
    # Of a detector's many metrics the last are left out first; the first one is the primary.
    shown = [
        Column(name, right=True, dropped=0 if index == 0 or name.startswith("to ") else 1 + index)
        for index, name in enumerate(columns)
    ]
    return table(["network", *shown], rows)


def eval_text(
    rows: Sequence[Comparison],
    format: Literal["text", "json"] = "text",
    *,
    primary: str = "",
    baseline: Baseline | None = None,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The result of `kdcli eval` as a table or as JSON. rows: the student's first, then each teacher's."""
    if format == "json":
        document = {
            "kdcli": __version__,
            "primary": primary or None,
            "networks": [json_value(asdict(row)) for row in rows],
        }
        if baseline is not None:
            document["baseline"] = json_value(asdict(baseline))
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    columns, cells = [row.network for row in rows], eval_rows(rows, primary=primary)
    sentences = [cost_sentence(rows)] if cost_sentence(rows) else []
    if baseline is not None and rows:
        # `eval` measures the best weights where the run kept them.
        alone = baseline.best or baseline.last
        columns.insert(1, BASELINE)
        for line in cells:
            line.insert(2, measure(alone[line[0]]) if line[0] in alone else MISSING)
        sentences += baseline_lines(rows[0].network, rows[0].metrics, alone, primary, baseline)
    drawn = table(["", *(f">{name}" for name in columns)], cells)
    both = Group(drawn, Text(""), *map(Text, sentences)) if sentences else drawn
    return as_text(both, colour=colour, width=width)


def eval_rows(rows: Sequence[Comparison], *, primary: str = "") -> list[list[str]]:
    """Cells of the table of `kdcli eval`: metrics, cost, agreement with the student; one column a network."""
    lines = [
        [name, *(_measure(row.metrics.get(name)) for row in rows)]
        for name in metric_names([row.metrics for row in rows], primary)
    ]
    lines += [
        ["parameters", *(count(row.parameters) for row in rows)],
        *_flops_lines(rows),
        ["file size", *(size(row.file_bytes) for row in rows)],
        ["CPU latency, batch 1", *(f"{row.latency_ms_batch_1:.2f} ms" for row in rows)],
    ]
    sizes = {row.batch_size for row in rows}
    batch = f"CPU latency, batch {next(iter(sizes))}" if len(sizes) == 1 else "CPU latency, spec's batch"
    if sizes != {1}:
        lines.append([batch, *(f"{row.latency_ms_batch:.2f} ms" for row in rows)])
    for name in metric_names([row.agreement or {} for row in rows], ""):
        lines.append([f"with student: {name}", *(_measure((row.agreement or {}).get(name)) for row in rows)])
    return lines


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A network in the table of a report. metrics: its best ones. row: its cost, where it was measured.

    last: its last metrics, where they may differ. timed: whether its latency was measured with the others'.
    """

    name: str
    metrics: Mapping[str, float]
    row: Comparison | None
    last: Mapping[str, float] = field(default_factory=dict)
    timed: bool = True


def result_lines(columns: Sequence[ResultColumn], primary: str) -> list[list[str]]:
    """Cells of a report's table, metrics in words: a line for each metric and cost, a column for each network.

    Parts of a mean (`explained_variance.<layer>`) are left out, and so are lines that no network fills.
    """
    lines = []
    for name in metric_names([column.metrics for column in columns], primary):
        if "." in name:
            continue
        lines.append([metric_words(name), *(_measure(column.metrics.get(name)) for column in columns)])
        if name == primary and any(_fell(column, name) for column in columns):
            last = [_measure(column.last.get(name)) if _fell(column, name) else "" for column in columns]
            lines.append(["the same at the last evaluation", *last])
    rows = [column.row for column in columns]
    known = [row for row in rows if row is not None]

    def line(name: str, show: Callable[[Comparison], str], *, timed: bool = False) -> list[str]:
        cells = [
            MISSING if column.row is None or (timed and not column.timed) else show(column.row)
            for column in columns
        ]
        return [name, *cells]

    if not known:
        return lines
    lines.append(line("parameters", lambda row: count(row.parameters)))
    for size_of_images in dict.fromkeys(_size(row) for row in known):
        at = "" if size_of_images is None else f" at {'x'.join(map(str, size_of_images))}"
        show = partial(_flops_at, size_of_images)
        lines.append(line(f"FLOPs{at}", show))
    lines.append(line("file size", lambda row: size(row.file_bytes)))
    lines.append(line("CPU latency, batch 1", lambda row: f"{row.latency_ms_batch_1:.2f} ms", timed=True))
    batches = {row.batch_size for row in known}
    if batches != {1}:
        batch = (
            f"CPU latency, batch {next(iter(batches))}" if len(batches) == 1 else "CPU latency, spec's batch"
        )
        lines.append(line(batch, lambda row: f"{row.latency_ms_batch:.2f} ms", timed=True))
    for name in metric_names([row.agreement or {} for row in known], ""):
        lines.append(line(metric_words(name), partial(_agreement, name)))
    return [cells for cells in lines if any(cell not in ("", MISSING) for cell in cells[1:])]


def _fell(column: ResultColumn, name: str) -> bool:
    return name in column.last and name in column.metrics and column.last[name] != column.metrics[name]


def _size(row: Comparison) -> tuple[int, ...] | None:
    return None if row.flops_size is None else tuple(row.flops_size)


def _flops_at(size_of_images: tuple[int, ...] | None, row: Comparison) -> str:
    return flops(row.flops) if _size(row) == size_of_images else MISSING


def _agreement(name: str, row: Comparison) -> str:
    return _measure((row.agreement or {}).get(name))


def _flops_lines(rows: Sequence[Comparison]) -> list[list[str]]:
    """A line of FLOPs for each size of images that they are counted on: networks may see images of unlike sizes."""
    sizes = dict.fromkeys(None if row.flops_size is None else tuple(row.flops_size) for row in rows)
    return [
        [
            "FLOPs" if size is None else f"FLOPs at {'x'.join(map(str, size))}",
            *(
                flops(row.flops) if size == (row.flops_size and tuple(row.flops_size)) else MISSING
                for row in rows
            ),
        ]
        for size in sizes
    ]


def cost_sentence(rows: Sequence[Comparison]) -> str:
    """`student has 4.20x fewer parameters and is 3.10x faster at batch 1 than teacher0`, the first teacher."""
    if len(rows) < 2:
        return ""
    student, teacher = rows[0], rows[1]
    if not student.parameters or not student.latency_ms_batch_1:
        return ""
    smaller = teacher.parameters / student.parameters
    faster = teacher.latency_ms_batch_1 / student.latency_ms_batch_1
    name = teacher.network
    if _equal(smaller):
        return f"{student.network} has as many parameters as {name} and is {_as_fast(faster, name)}"
    size = f"{student.network} has {_times(smaller, 'fewer', 'more')} parameters"
    if _equal(faster):
        return f"{size} than {name} and is {_as_fast(faster, name)}"
    return f"{size} and is {_as_fast(faster, name)}"


def _as_fast(ratio: float, name: str) -> str:
    if _equal(ratio):
        return f"as fast at batch 1 as {name}"
    return f"{_times(ratio, 'faster', 'slower')} at batch 1 than {name}"


def _equal(ratio: float) -> bool:
    return 0.995 <= ratio < 1.005


def _times(ratio: float, more: str, less: str) -> str:
    return f"{ratio:.2f}x {more}" if ratio > 1 else f"{1 / ratio:.2f}x {less}"


def headline(
    primary: str,
    student: Mapping[str, float],
    teachers: Mapping[str, Mapping[str, float]],
    rows: Sequence[Comparison] = (),
) -> str:
    """`The student reaches 97.1 of the teacher's 98.9 (top-1 accuracy, %): 32x fewer parameters, 2.5x faster.`

    student, teachers: metrics. rows: of `kdcli eval`, the student's first, for size and speed. Of several teachers
    the best one by the primary metric counts.
    """
    known = {name: metrics for name, metrics in teachers.items() if primary in metrics}
    teacher = max(known, key=lambda name: rising(primary, known[name]) or 0.0) if known else ""
    said = _quality(primary, student, known.get(teacher, {}), teacher if len(teachers) > 1 else "")
    costs = _costs(rows, teacher)
    if not said:
        return f"The student has {costs}." if costs else ""
    return f"{said}: {costs}." if costs else f"{said}."


def against_baseline(
    primary: str, student: Mapping[str, float], baseline: Mapping[str, float], name: str, *, alone: bool
) -> str:
    """`Trained alone (baseline b) it reaches 95.7, 1.4 less.`; "" where a figure is missing.

    alone: whether the baseline had no teacher.
    """
    if not all(primary in one and math.isfinite(one[primary]) for one in (student, baseline)):
        return ""
    own, other = student[primary], baseline[primary]
    left, right = _short(own, other)
    places = len(right.partition(".")[2])
    gap = f"{abs(own - other):.{places}f}" if left != right else ""
    less = f"{gap} less" if other < own else f"{gap} more"
    who = f"Trained alone ({name}) it reaches" if alone else f"The {name} reaches"
    return f"{who} {right}, {less}." if gap else f"{who} the same, {right}."


def _quality(primary: str, student: Mapping[str, float], teacher: Mapping[str, float], name: str) -> str:
    """How good the student is, beside the teacher where both have the metric."""
    if primary not in student or not math.isfinite(student[primary]):
        return ""
    own, words = student[primary], metric_words(primary)
    whose = f"{name}'s" if name else "the teacher's"
    if primary not in teacher or not math.isfinite(teacher[primary]):
        if primary == "explained_variance":
            return f"The student explains {100 * own:.1f} % of the variance of {whose} features"
        if primary == "agreement":
            return f"The student gives {name or 'the teacher'}'s class for {own:.1f} % of the images"
        return f"The student reaches {measure(own)} ({words})"
    left, right = _short(own, teacher[primary])
    if own == teacher[primary]:
        return f"The student reaches {whose} {right} ({words})"
    if better(primary, student, teacher):
        side = "below" if primary in LOWER_IS_BETTER else "above"
        return f"The student is better than its teacher: {left}, {side} {whose} {right} ({words})"
    return f"The student reaches {left} of {whose} {right} ({words})"


def _short(left: float, right: float) -> tuple[str, str]:
    """Two figures with as few decimals as tell them apart."""
    if max(abs(left), abs(right)) < 10:
        return measure(left), measure(right)
    places = 1 if f"{left:.1f}" != f"{right:.1f}" or left == right else 2
    return f"{left:.{places}f}", f"{right:.{places}f}"


def _costs(rows: Sequence[Comparison], teacher: str) -> str:
    """`32x fewer parameters, 2.5x faster`: the student's size and speed beside the teacher's."""
    others = [row for row in rows[1:] if not teacher or row.network == teacher]
    if not rows or not others or not rows[0].parameters or not rows[0].latency_ms_batch_1:
        return ""
    smaller = others[0].parameters / rows[0].parameters
    faster = others[0].latency_ms_batch_1 / rows[0].latency_ms_batch_1
    size = "as many parameters" if _equal(smaller) else f"{_factor(smaller, 'fewer', 'more')} parameters"
    # Two measurements of one network differ by some percent.
    speed = "about as fast" if 0.95 < faster < 1.05 else _factor(faster, "faster", "slower")
    return f"{size}, {speed}"


def _factor(ratio: float, more: str, less: str) -> str:
    """`32x fewer`, `2.5x more`, `1.03x more`."""
    value, word = (ratio, more) if ratio > 1 else (1 / ratio if ratio else math.inf, less)
    return f"{value:.0f}x {word}" if value >= 9.95 else f"{value:.{1 if value >= 1.1 else 2}f}x {word}"


def _measure(value: float | None) -> str:
    return MISSING if value is None else measure(value)
