"""The curves of a run: loss parts, learning rate, every metric with the teachers' levels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from kdcli.report.drawing import Axes, legend_above, line_look, svg
from kdcli.report.recorded_run import RecordedRun
from kdcli.report.results_table import metric_names

POINTS = 300
LINES = 8
_TASK = "total and task losses"
Series = tuple[list[float], list[float]]


def run_curves(run: RecordedRun) -> dict[str, str]:
    """Title to <svg>, in the order they should be shown."""
    charts: dict[str, str] = {}
    series = [record["metrics"] for record in run.evaluations.get(run.student, ())]
    for name in metric_names(series, run.primary):
        charts[name] = svg(partial(_metric, run=run, name=name), title=name)
    for title, lines in _losses(run.steps).items():
        charts[title] = svg(partial(_draw_losses, lines=lines), title=title, height=2.5 + 0.2 * len(lines))
    rates = [(record["step"], record["lr"]) for record in run.steps if "lr" in record]
    if rates:
        charts["learning rate"] = svg(partial(_rate, series=thinned(rates)), title="learning rate")
    return charts


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> Series:
    """At most `most` points: means of equal stretches; what is not finite leaves a gap."""
    every = max(1, math.ceil(len(points) / most))
    xs, ys = [], []
    for start in range(0, len(points), every):
        stretch = points[start : start + every]
        xs.append(sum(x for x, _ in stretch) / len(stretch))
        finite = [y for _, y in stretch if math.isfinite(y)]
        ys.append(sum(finite) / len(finite) if finite else math.nan)
    return xs, ys


def _losses(steps: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """Charts of at most eight lines: the total with the task's losses, then one for each job."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in steps:
        at = float(record["step"])
        if "total" in record:
            points.setdefault(_TASK, {}).setdefault("total", []).append((at, record["total"]))
        for name, value in record["losses"].items():
            group, _, rest = name.partition(".")
            of_task = group == "task" or not rest
            title, line = (_TASK, name) if of_task else (f"losses of {group}", rest)
            points.setdefault(title, {}).setdefault(line, []).append((at, float(value)))
    charts: dict[str, dict[str, Series]] = {}
    for title, lines in points.items():
        names = list(lines)
        for start in range(0, len(names), LINES):
            part = f"{title} ({start // LINES + 1})" if len(names) > LINES else title
            charts[part] = {name: thinned(lines[name]) for name in names[start : start + LINES]}
    return charts


def _draw_losses(axes: Axes, lines: Mapping[str, Series]) -> None:
    for index, (name, (xs, ys)) in enumerate(lines.items()):
        axes.plot(xs, ys, label=name, marker="." if len(xs) == 1 else None, **line_look(index))
    values = [y for _, ys in lines.values() for y in ys if math.isfinite(y)]
    if values and min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale("log")
        # Matplotlib's own labels here are mathematics, which is off for the sake of users' names.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    _finish(axes, list(lines))


def _rate(axes: Axes, series: Series) -> None:
    axes.plot(*series, marker="." if len(series[0]) == 1 else None, **line_look(0))
    top = max((rate for rate in series[1] if math.isfinite(rate)), default=0.0)
    axes.set_ylim(0, 1.08 * top or None)
    _finish(axes, [])


def _metric(axes: Axes, run: RecordedRun, name: str) -> None:
    records = [r for r in run.evaluations.get(run.student, ()) if name in r["metrics"]]
    points = [(float(record["step"]), float(record["metrics"][name])) for record in records]
    xs, ys = thinned(points)
    axes.plot(xs, ys, label=run.student, marker="." if len(xs) < 40 else None, **line_look(0))
    levels = {other: values[name] for other, values in run.teachers.items() if name in values}
    for index, (other, level) in enumerate(levels.items(), start=1):
        look = {**line_look(index), "linestyle": (0, (5, 2))}
        axes.axhline(level, label=other, linewidth=1.2, **look)
    _finish(axes, [run.student, *levels] if levels else [])


def _finish(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    if labels:
        legend_above(axes, labels)
