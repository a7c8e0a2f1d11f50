"""`kdcli compare --picture`: the primary metric of several runs over the steps, their spread as a band."""

from __future__ import annotations

import statistics
from pathlib import Path

from kdcli.disk import write_whole
from kdcli.errors import UsageError
from kdcli.report.charts import Axes, line_look, picture
from kdcli.report.compare.compare_runs import Group, RunComparison

FORMATS = ("svg", "png", "pdf")


def write_plot(compared: RunComparison, path: Path) -> Path:
    """Draw the groups' primary metric into a file that ends in .svg, .png or .pdf; returns its path."""
    format = path.suffix.lstrip(".").lower()
    if format not in FORMATS:
        raise UsageError.of(f"cannot draw into `{path.name}`", "name a file that ends in .svg, .png or .pdf")
    return write_whole(path, picture(lambda axes: _draw(axes, compared), format))


def _draw(axes: Axes, compared: RunComparison) -> None:
    for index, group in enumerate(compared.groups):
        steps, means, stds = _band(group, compared.primary)
        look = line_look(index)
        label = f"{group.name} ({len(group.runs)} runs)" if len(group.runs) > 1 else group.name
        axes.plot(steps, means, label=label, marker="." if len(steps) < 40 else None, **look)
        if any(stds):
            low = [mean - std for mean, std in zip(means, stds, strict=True)]
            high = [mean + std for mean, std in zip(means, stds, strict=True)]
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(compared.primary)
    axes.legend()


def _band(group: Group, primary: str) -> tuple[list[int], list[float], list[float]]:
    """Steps at which every run of the group was evaluated, with mean and standard deviation there."""
    series = [
        {
            one["step"]: float(one["metrics"][primary])
            for one in run.evaluations.get(run.student, ())
            if primary in one["metrics"]
        }
        for run in group.runs
    ]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    values = [[one[step] for one in series] for step in steps]
    means = [statistics.fmean(at) for at in values]
    return steps, means, [statistics.stdev(at) if len(at) > 1 else 0.0 for at in values]
