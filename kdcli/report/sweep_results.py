"""What `kdcli sweep` shows: its cost, a line a trial, the table, the page sweep.html, the spec best.yaml."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdcli import __version__
from kdcli.report import html_elements as page
from kdcli.report.console import as_text, table
from kdcli.report.quantities import MISSING, duration, json_value, measure
from kdcli.spec.sweep import Choice, Range, Space, Values

WIDTH, HEIGHT, MARGIN = 320, 170, 34
"""Pixels of a plot, and of its margins."""


class Trial(Protocol):
    """A trial as `kdcli.sweep.study` stores it."""

    @property
    def number(self) -> int: ...
    @property
    def values(self) -> Values: ...
    @property
    def state(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def primary(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def error(self) -> str | None: ...
    @property
    def same_as(self) -> int | None: ...


class Plan(Protocol):
    """What was measured before the first trial (`kdcli.sweep.prepare.Measured`)."""

    @property
    def steps(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def views(self) -> int | None: ...
    @property
    def live(self) -> str | None: ...


class Progress(Protocol):
    """A study while it runs."""

    @property
    def limit(self) -> int: ...
    @property
    def best(self) -> Trial | None: ...
    def trials(self) -> Sequence[Trial]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """One set of values trained on all training data over seeds. values: of the last evaluation on the test data.

    rising: the same as numbers that rise as a student gets better.
    """

    name: str
    primary: str
    values: tuple[float, ...]
    rising: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def text(self) -> str:
        """Mean and standard deviation."""
        mean = measure(statistics.fmean(self.values))
        if len(self.values) < 2:
            return mean
        return f"{mean} ± {measure(statistics.stdev(self.values))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResults:
    """A sweep that has ended. importance: by parameter, how much its values decide. command: trains the best."""

    name: str
    folder: Path
    space: Space
    trials: tuple[Trial, ...]
    best: Trial
    importance: Mapping[str, float]
    seeded: tuple[Seeded, ...]
    plan: Plan
    share: float
    command: str
    spec_text: str = ""

    @property
    def ranked(self) -> list[Trial]:
        """Complete trials, the best first, then the stopped, then the failed."""
        order = {"complete": 0, "stopped": 1, "failed": 2}
        return sorted(
            self.trials,
            key=lambda one: (
                order.get(one.state, 3),
                -(one.value if one.value is not None else -math.inf),
                one.number,
            ),
        )


def value_text(value: Any) -> str:
    """A value of a parameter: a number in four digits, anything else as it is."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values_text(values: Values) -> str:
    """The values of a trial in a line; of a key its last word where that is enough to tell it apart."""
    names = short_names(list(values))
    return ", ".join(f"{names[name]} {value_text(value)}" for name, value in values.items())


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each key's last word, or the whole key where two end alike."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: word if last.count(word) == 1 else name for name, word in zip(names, last, strict=True)}


def cost_text(
    space: Space,
    limit: int,
    plan: Plan,
    *,
    folder: Path,
    share: float,
    halving: bool,
    seeds: int,
    default: bool,
    teachers: int,
) -> str:
    """What will be tried, on which data, and what it takes: printed before the first trial."""
    lines = [f"sweep in {folder}"]
    lines.append("the space" + (", kdcli's own since the spec has no `sweep`:" if default else ":"))
    for one in space.parameters:
        if isinstance(one, Choice):
            lines.append(f"  {one.name}: {', '.join(value_text(label) for label in one.labels)}")
        else:
            scale = ", logarithmic" if one.log else ""
            lines.append(f"  {one.name}: {value_text(one.low)} to {value_text(one.high)}{scale}")
    lines.append(
        f"measured on {plan.held:,} samples, {share:.0%} of the training data held out of the other {plan.samples:,};"
        " the test data is not looked at"
    )
    halved = "; those that lie behind are stopped early" if halving else ""
    lines.append(
        f"cost: {limit} trials of {plan.steps:,} steps each ({plan.epochs:,} epochs), the same for all{halved}"
    )
    if plan.views is not None:
        views = f"{plan.views} view{'s' if plan.views > 1 else ''}"
        once = f"teachers run once for all trials: {plan.samples:,} samples x {views} in {folder / 'cache'}"
        lines.append(
            once
            + (f" (augmentations come again after {plan.views} epochs: {plan.live})" if plan.live else "")
        )
    elif teachers:
        lines.append(f"teachers run in every trial: {plan.live or 'their outputs are not cached'}")
    if seeds:
        lines.append(
            f"then the best values and the spec as written, {seeds} seed{'s' if seeds > 1 else ''} each, on all"
            " training data, measured on the test data"
        )
    return "\n".join(lines)


def trial_line(trial: Trial, study: Progress) -> str:
    """One trial that has ended, and what is left."""
    metric = trial.metrics.get(trial.primary)
    shown = MISSING if metric is None else f"{trial.primary} {measure(metric)}"
    if trial.state == "failed":
        result = f"failed: {trial.error}"
    elif trial.same_as is not None:
        result = f"the same values as trial {trial.same_as}: {shown}"
    elif trial.state == "stopped":
        result = f"{shown} at step {trial.steps:,}, stopped"
    else:
        result = shown
    best = study.best
    suffix = ""
    if best is not None:
        suffix = " (the best so far)" if best.number == trial.number else f" (best: trial {best.number})"
    ended = study.trials()
    timed = [one.seconds for one in ended if one.state == "complete" and one.seconds and one.same_as is None]
    left = study.limit - len(ended)
    time = f", {duration(trial.seconds)}" if trial.seconds else ""
    if timed and left:
        time += f"; {left} left, {duration(statistics.fmean(timed) * left)} at most"
    return f"trial {trial.number}: {values_text(trial.values)}: {result}{suffix}{time}"


def verdict(results: SweepResults) -> str:
    """Whether the best values are better than the spec as written, beyond the spread over seeds."""
    if not results.seeded:
        return "not trained over seeds (`--seeds 0`): whether the best values are better on the test data is not known"
    best = results.seeded[0]
    where = f"on the test data, {len(best.seeds)} seed{'s' if len(best.seeds) > 1 else ''}: {best.primary}"
    if len(results.seeded) == 1:
        return (
            f"{where} {best.text}; the spec as written has these values already: the sweep found none better"
        )
    written = results.seeded[1]
    both = f"{where} {best.text} with the best values, {written.text} as written"
    if len(best.seeds) == 1:
        return f"{both}; one seed has no spread: try `--seeds 3`"
    if min(best.rising) > max(written.rising):
        return f"{both}; every seed of the best is above every seed as written: better beyond the spread"
    if max(best.rising) < min(written.rising):
        return f"{both}; every seed of the best is BELOW every seed as written: keep the spec as it is"
    return f"{both}; the two overlap: no gain beyond the spread over seeds"


def results_rows(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of trials, the best first."""
    names = [one.name for one in results.space.parameters]
    short = short_names(names)
    primary = results.best.primary
    rows = []
    for one in results.ranked:
        metric = one.metrics.get(one.primary)
        state = one.state if one.same_as is None else f"as trial {one.same_as}"
        rows.append(
            [
                f"{one.number:03}",
                *(value_text(one.values[name]) if name in one.values else MISSING for name in names),
                MISSING if metric is None else measure(metric),
                f"{one.steps:,}" if one.steps else MISSING,
                duration(one.seconds) if one.seconds else MISSING,
                state,
            ]
        )
    return ["trial", *(short[name] for name in names), primary, "steps", "time", "state"], rows


def results_text(results: SweepResults, form: str) -> str:
    """The result for standard output: the table with what follows it, or JSON."""
    if form == "json":
        return json.dumps(json_value(_data(results)), indent=2) + "\n"
    columns, rows = results_rows(results)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in _sorted(results.importance))
    failed = [one for one in results.trials if one.state == "failed"]
    lines = [
        "",
        f"what decides (PED-ANOVA): {shares}" if shares else "",
        *(f"trial {one.number} failed: {one.error}" for one in failed),
        f"best: trial {results.best.number}, {values_text(results.best.values)}",
        verdict(results),
        f"page: {results.folder / 'sweep.html'}",
        f"spec: {results.folder / 'best.yaml'}",
        f"train it: {results.command}",
    ]
    return as_text(table(columns, rows)) + "\n".join(line for line in lines if line) + "\n"


def _sorted(importance: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(importance.items(), key=lambda one: -one[1])


def _data(results: SweepResults) -> dict[str, Any]:
    return {
        "kdcli": __version__,
        "space": results.space.facts(),
        "hold_out": results.share,
        "trials": [
            {
                "number": one.number,
                "values": dict(one.values),
                "state": one.state,
                "metrics": dict(one.metrics),
                "steps": one.steps,
                "seconds": one.seconds,
                "same_as": one.same_as,
                "error": one.error,
                "run": str(results.folder / "trials" / f"{one.number:03}"),
            }
            for one in results.trials
        ],
        "best": {"number": results.best.number, "values": dict(results.best.values)},
        "importance": dict(results.importance),
        "seeds": [
            {"name": one.name, "metric": one.primary, "seeds": list(one.seeds), "values": list(one.values)}
            for one in results.seeded
        ],
        "verdict": verdict(results),
        "command": results.command,
    }


def best_yaml(results: SweepResults, resolved: str) -> str:
    """The best spec to paste, its evidence in comments."""
    best = results.best
    shown = measure(best.metrics[best.primary]) if best.primary in best.metrics else MISSING
    ended = [one for one in results.trials if one.state == "complete" and one.same_as is None]
    values = sorted(one.metrics[one.primary] for one in ended if one.primary in one.metrics)
    lines = [
        f"The best of {len(results.trials)} trials of `kdcli sweep {results.name}` (kdcli {__version__}):",
        *(f"  {name}: {value_text(value)}" for name, value in best.values.items()),
        f"trial {best.number}: {best.primary} {shown} on {results.plan.held:,} training samples held out"
        + (
            f"; the {len(values)} whole trials {measure(values[0])} to {measure(values[-1])}"
            if values
            else ""
        ),
        verdict(results),
        f"the same as a command: {results.command}",
    ]
    return "".join(f"# {line}\n" for line in lines) + resolved


# the page


def sweep_page(results: SweepResults) -> str:
    """The HTML of sweep.html: nothing is fetched from anywhere."""
    columns, rows = results_rows(results)
    plots = [page.card(one.name, scatter(one, results)) for one in results.space.parameters]
    importance = bars(_sorted(results.importance))
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
    seeds = results.seeded[0].seeds
    rows = [[one.name, *map(measure, one.values), one.text] for one in results.seeded]
    return page.table(
        [f"{results.seeded[0].primary}, test data", *(f"seed {s}" for s in seeds), "mean"], rows
    )


def _shown(one: Trial) -> float | None:
    value = one.metrics.get(one.primary)
    return None if value is None or not math.isfinite(value) else value


def _frame(low: float, high: float, left: str, right: str, marks: Sequence[str]) -> str:
    """A plot: its axis from low to high, the words below it, the marks in it."""
    top, bottom, x0, x1 = 12, HEIGHT - MARGIN, MARGIN + 14, WIDTH - 10
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="10" role="img">'
        f'<path d="M{x0} {top}V{bottom}H{x1}" fill="none" stroke="var(--soft)"/>'
        f'<text x="{x0 - 4}" y="{top + 4}" text-anchor="end">{page.text(measure(high))}</text>'
        f'<text x="{x0 - 4}" y="{bottom}" text-anchor="end">{page.text(measure(low))}</text>'
        f'<text x="{x0}" y="{bottom + 16}">{page.text(left)}</text>'
        f'<text x="{x1}" y="{bottom + 16}" text-anchor="end">{page.text(right)}</text>'
        + "".join(marks)
        + "</svg>"
    )


def _spots(points: Sequence[tuple[float, float, Trial]], low: float, high: float) -> list[str]:
    """Marks of trials at (share of the width, value)."""
    top, bottom, x0, x1 = 12, HEIGHT - MARGIN, MARGIN + 14, WIDTH - 10
    marks = []
    for share, value, one in points:
        x = x0 + 8 + share * (x1 - x0 - 16)
        y = bottom - (value - low) / ((high - low) or 1.0) * (bottom - top)
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
        x0, x1 = MARGIN + 14, WIDTH - 10
        for place, label in enumerate(parameter.labels):
            x = x0 + 8 + (place + 0.5) / len(parameter.labels) * (x1 - x0 - 16)
            words = value_text(label)
            short = words if len(words) <= 14 else words[:13] + "…"
            marks.append(
                f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{page.text(short)}'
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
    top, bottom, x0, x1 = 12, HEIGHT - MARGIN, MARGIN + 14, WIDTH - 10
    best: Trial | None = None
    line = []
    for one, _ in shown:
        if one.state == "complete" and (best is None or (one.value or 0.0) > (best.value or 0.0)):
            best = one
        metric = None if best is None else _shown(best)
        if metric is not None:
            x = x0 + 8 + one.number / count * (x1 - x0 - 16)
            y = bottom - (metric - low) / ((high - low) or 1.0) * (bottom - top)
            line.append(f"{x:.1f},{y:.1f}")
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
