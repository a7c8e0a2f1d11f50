"""Where the student stands: last, best, the teachers, and the distance to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.text import Text

from kdcli.records import Evaluation, Finished
from kdcli.report.quantities import MISSING, difference, measure
from kdcli.report.tables import Cell, table


@dataclass(slots=True)
class Standings:
    """The evaluations of a run so far, by network."""

    student: str = "student"
    primary: str = ""
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)

    def take(self, evaluation: Evaluation) -> None:
        """Remember one evaluation."""
        self.primary = evaluation.primary
        if evaluation.network != self.student:
            self.others[evaluation.network] = evaluation.metrics
            return
        self.last = evaluation.metrics
        if evaluation.best or not self.best:
            self.best = evaluation.metrics

    def draw(self) -> RenderableType:
        """One row each for the student now, its best, and every other network."""
        return _draw(self.student, self.primary, self.last, self.best, self.others, "now")


def finished_table(finished: Finished, *, student: str = "student") -> RenderableType:
    """The last table of a run, with what the student still lacks or already has over each teacher."""
    return _draw(student, finished.primary, finished.last, finished.best, finished.teachers, "last")


def metric_names(rows: Sequence[Mapping[str, float]], primary: str) -> list[str]:
    """Every metric of the rows in order of appearance, the primary one first."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name != primary)


def _draw(
    student: str,
    primary: str,
    last: Mapping[str, float],
    best: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]],
    now: str,
) -> RenderableType:
    named = [(f"{student} {now}", last), (f"{student} best", best), *others.items()]
    names = metric_names([metrics for _, metrics in named], primary)
    # The gain column compares the student's best with each of the others, in the metric that decides.
    gains = bool(others) and primary in best
    rows: list[list[Cell]] = []
    for index, (label, metrics) in enumerate(named):
        row: list[Cell] = [Text(label, style="bold") if index == 0 else label]
        row += [measure(metrics[name]) if name in metrics else MISSING for name in names]
        if gains:
            is_other = index > 1 and primary in metrics
            row.append(_gain(best[primary], metrics[primary]) if is_other else "")
        rows.append(row)
    header = ["network", *(f">{name}" for name in names)]
    return table([*header, f">gain ({primary})"] if gains else header, rows)


def _gain(student: float, other: float) -> Text:
    return Text(difference(student, other), style="green" if student >= other else "yellow")
