"""Tables of networks and their metrics: during a training, at its end, and of `kdcli eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli import __version__
from kdcli.records import Baseline, Comparison, Evaluation, Finished, Plan, rising
from kdcli.report.console import Cell, Column, as_text, printable, table
from kdcli.report.quantities import MISSING, count, difference, flops, json_value, measure, size

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
        ["latency, batch 1", *(f"{row.latency_ms_batch_1:.2f} ms" for row in rows)],
    ]
    sizes = {row.batch_size for row in rows}
    batch = f"latency, batch {next(iter(sizes))}" if len(sizes) == 1 else "latency, spec's batch"
    if sizes != {1}:
        lines.append([batch, *(f"{row.latency_ms_batch:.2f} ms" for row in rows)])
    for name in metric_names([row.agreement or {} for row in rows], ""):
        lines.append([f"with student: {name}", *(_measure((row.agreement or {}).get(name)) for row in rows)])
    return lines


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
    return (
        f"{student.network} has {_times(smaller, 'fewer', 'more')} parameters and is "
        f"{_times(faster, 'faster', 'slower')} at batch 1 than {teacher.network}"
    )


def _times(ratio: float, more: str, less: str) -> str:
    if 0.995 <= ratio < 1.005:
        return f"1x (not {more})"
    return f"{ratio:.2f}x {more}" if ratio > 1 else f"{1 / ratio:.2f}x {less}"


def _measure(value: float | None) -> str:
    return MISSING if value is None else measure(value)
