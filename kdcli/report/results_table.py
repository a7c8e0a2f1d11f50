"""Tables of networks and their metrics: during a training, at its end, and of `kdcli eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli import __version__
from kdcli.records import Comparison, Evaluation, Finished
from kdcli.report.console import Cell, as_text, table
from kdcli.report.quantities import MISSING, count, difference, flops, json_value, measure, size


@dataclass(slots=True)
class ResultsSoFar:
    """Last and best metrics of the student, and last metrics of every other network, during a training."""

    student: str = "student"
    primary: str = ""
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, evaluation: Evaluation) -> None:
        """Add one evaluation of one network."""
        self.primary = evaluation.primary
        if evaluation.network != self.student:
            self.others[evaluation.network] = evaluation.metrics
            return
        self.last = evaluation.metrics
        if evaluation.best or not self.best:
            self.best = evaluation.metrics

    def draw(self) -> RenderableType:
        """Table of the metrics: a row for the student now, for its best, and for every other network."""
        return _draw(self.student, self.primary, self.last, self.best, self.others, "now")


def finished_table(finished: Finished, *, student: str = "student") -> RenderableType:
    """Table at the end of a training: the student's last and best metrics, and its gain over each teacher."""
    return _draw(student, finished.primary, finished.last, finished.best, finished.teachers, "last")


def metric_names(rows: Sequence[Mapping[str, float]], primary: str) -> list[str]:
    """Names of all metrics in the rows: the primary one first, the others in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name != primary)


def result_rows(
    rows: Sequence[tuple[str, Mapping[str, float]]], primary: str
) -> tuple[list[str], list[list[str]]]:
    """Names of the number columns and cells of a results table, with the student's gain over the others.

    rows: labels with metrics: the student's last ones, its best ones, then the other networks'. The gain compares
    the student's best with each of the others, in the primary metric.
    """
    names = metric_names([metrics for _, metrics in rows], primary)
    best = rows[1][1]
    gains = len(rows) > 2 and primary in best
    cells = []
    for index, (label, metrics) in enumerate(rows):
        row = [label, *(measure(metrics[name]) if name in metrics else MISSING for name in names)]
        if gains:
            has_gain = index > 1 and primary in metrics
            row.append(difference(best[primary], metrics[primary]) if has_gain else "")
        cells.append(row)
    return [*names, f"gain ({primary})"] if gains else names, cells


def _draw(
    student: str,
    primary: str,
    last: Mapping[str, float],
    best: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]],
    latest: str,
) -> RenderableType:
    named = [(f"{student} {latest}", last), (f"{student} best", best), *others.items()]
    columns, cells = result_rows(named, primary)
    rows: list[list[Cell]] = [list(row) for row in cells]
    rows[0][0] = Text(named[0][0], style="bold")
    for row, (_, metrics) in zip(rows[2:], named[2:], strict=True):
        if primary in best and primary in metrics:
            row[-1] = Text(str(row[-1]), style="green" if best[primary] >= metrics[primary] else "yellow")
    return table(["network", *(f">{name}" for name in columns)], rows)


def eval_text(
    rows: Sequence[Comparison],
    format: Literal["text", "json"] = "text",
    *,
    primary: str = "",
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
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    drawn = table(["", *(f">{row.network}" for row in rows)], eval_rows(rows, primary=primary))
    sentence = cost_sentence(rows)
    both = Group(drawn, Text(""), Text(sentence)) if sentence else drawn
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
