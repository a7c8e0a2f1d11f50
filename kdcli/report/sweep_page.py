"""sweep.html: one self-contained page about a sweep, its plots drawn as small SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcli import __version__
from kdcli.report import html_elements as page
from kdcli.report.quantities import measure
from kdcli.report.sweep_results import (
    SweepResults,
    by_share,
    results_rows,
    value_text,
    values_text,
    verdict,
)
from kdcli.spec.sweep import Choice, Range

if TYPE_CHECKING:
    from kdcli.sweep.study import Trial

WIDTH, HEIGHT, MARGIN = 320, 170, 34
"""Pixels of a plot, and of its margins."""
TOP, BOTTOM, LEFT, RIGHT = 12, HEIGHT - MARGIN, MARGIN + 14, WIDTH - 10
"""Its axes."""


def sweep_page(results: SweepResults) -> str:
    """The HTML of sweep.html: nothing is fetched from anywhere."""
    columns, rows = results_rows(results)
    plots = [page.card(one.name, scatter(one, results)) for one in results.space.parameters]
    importance = bars(by_share(results.importance))
    body = [
        f"<h1>{page.text(results.name)}: sweep</h1>",
        page.paragraph(
            f"{len(results.trials)} trials of {results.plan.steps:,} steps, measured on {results.plan.held:,} samples "
            f"held out of the training data. kdcli {__version__}."
        ),
        page.section(
            "The best values",
            page.facts((name, value_text(value)) for name, value in results.best.values.items()),
            f"<p>{page.text(verdict(results))}</p>",
            _seed_table(results),
            f"<pre>{page.text(results.command)}</pre>",
        ),
        page.section(
            "What decides",
            page.cards(
                [
                    page.card("best so far, trial by trial", history(results)),
                    *([page.card("importance (PED-ANOVA)", importance)] if importance else []),
                    *plots,
                ]
            ),
            page.paragraph(
                "Full dots: whole trials; rings: trials that were stopped early, at their last evaluation."
            ),
        ),
        page.section("Trials", page.table(columns, rows)),
        page.section("The spec", page.folded("best.yaml", results.spec_text)),
    ]
    return page.page(f"{results.name}: sweep · kdcli", body)


def _seed_table(results: SweepResults) -> str:
    if not results.seeded:
        return ""
    seeds = sorted({seed for one in results.seeded for seed in (*one.seeds, *one.failed)})
    rows = []
    for one in results.seeded:
        cells = {
            **dict(zip(one.seeds, map(measure, one.values), strict=True)),
            **dict.fromkeys(one.failed, "failed"),
        }
        rows.append([one.name, *(cells[seed] for seed in seeds), one.text])
    return page.table(
        [f"{results.seeded[0].primary}, test data", *(f"seed {s}" for s in seeds), "mean"], rows
    )


def _shown(one: Trial) -> float | None:
    value = one.metrics.get(one.primary)
    return None if value is None or not math.isfinite(value) else value


def _frame(low: float, high: float, left: str, right: str, marks: Sequence[str]) -> str:
    """A plot: its axis from low to high, the words below it, the marks in it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="10" role="img">'
        f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="var(--soft)"/>'
        f'<text x="{LEFT - 4}" y="{TOP + 4}" text-anchor="end">{page.text(measure(high))}</text>'
        f'<text x="{LEFT - 4}" y="{BOTTOM}" text-anchor="end">{page.text(measure(low))}</text>'
        f'<text x="{LEFT}" y="{BOTTOM + 16}">{page.text(left)}</text>'
        f'<text x="{RIGHT}" y="{BOTTOM + 16}" text-anchor="end">{page.text(right)}</text>'
        + "".join(marks)
        + "</svg>"
    )


def _across(share: float) -> float:
    """Where a share of the width lies."""
    return LEFT + 8 + share * (RIGHT - LEFT - 16)


def _up(value: float, low: float, high: float) -> float:
    """Where a value lies on the axis from low to high."""
    return BOTTOM - (value - low) / ((high - low) or 1.0) * (BOTTOM - TOP)


def _spots(points: Sequence[tuple[float, float, Trial]], low: float, high: float) -> list[str]:
    """Marks of trials at (share of the width, value)."""
    marks = []
    for share, value, one in points:
        x, y = _across(share), _up(value, low, high)
        fill = "var(--accent)" if one.state == "complete" else "none"
        title = f"trial {one.number}: {values_text(one.values)}: {measure(value)}"
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="var(--accent)">'
            f"<title>{page.text(title)}</title></circle>"
        )
    return marks


def _bounds(results: SweepResults) -> tuple[float, float]:
    values = [value for one in results.trials if (value := _shown(one)) is not None]
    return (min(values), max(values)) if values else (0.0, 1.0)


def scatter(parameter: Choice | Range, results: SweepResults) -> str:
    """Each trial's metric over its value of one parameter."""
    low, high = _bounds(results)
    points = []
    for one in results.trials:
        value, metric = one.values.get(parameter.name), _shown(one)
        if parameter.name not in one.values or metric is None:
            continue
        if isinstance(parameter, Choice):
            share = (list(parameter.labels).index(value) + 0.5) / len(parameter.labels)
        else:
            assert isinstance(value, (int, float))
            ends = parameter.low, float(value), parameter.high
            a, b, c = map(math.log, ends) if parameter.log else ends
            share = (b - a) / (c - a)
        points.append((share, metric, one))
    if isinstance(parameter, Choice):
        marks = _spots(points, low, high)
        for place, label in enumerate(parameter.labels):
            x = _across((place + 0.5) / len(parameter.labels))
            words = value_text(label)
            short = words if len(words) <= 14 else words[:13] + "…"
            marks.append(
                f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{page.text(short)}'
                f"<title>{page.text(words)}</title></text>"
            )
        return _frame(low, high, "", "", marks)
    return _frame(low, high, value_text(parameter.low), value_text(parameter.high), _spots(points, low, high))


def history(results: SweepResults) -> str:
    """Each trial's metric in the order of the trials, and the best until then as a line."""
    low, high = _bounds(results)
    shown = [(one, value) for one in results.trials if (value := _shown(one)) is not None]
    count = max(len(results.trials) - 1, 1)
    marks = _spots([(one.number / count, value, one) for one, value in shown], low, high)
    best: Trial | None = None
    line = []
    for one, _ in shown:
        if one.state == "complete" and (best is None or (one.value or 0.0) > (best.value or 0.0)):
            best = one
        metric = None if best is None else _shown(best)
        if metric is not None:
            line.append(f"{_across(one.number / count):.1f},{_up(metric, low, high):.1f}")
    if line:
        marks.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="var(--soft)"/>')
    return _frame(low, high, "trial 0", f"trial {len(results.trials) - 1}", marks)


def bars(shares: Sequence[tuple[str, float]]) -> str:
    """Names with bars as long as their shares; "" without any."""
    if not shares:
        return ""
    rows = []
    for place, (name, share) in enumerate(shares):
        y = 6 + 34 * place
        rows.append(
            f'<text x="4" y="{y + 10}">{page.text(name)} {share:.0%}</text>'
            f'<rect x="4" y="{y + 14}" width="{max(1.0, share * (WIDTH - 8)):.1f}" height="10" fill="var(--accent)"/>'
        )
    height = 34 * len(shares) + 6
    return f'<svg viewBox="0 0 {WIDTH} {height}" font-size="11" role="img">{"".join(rows)}</svg>'
