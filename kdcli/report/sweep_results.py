"""What `kdcli sweep` says: its cost, a line a trial, the table, whether the best is better, the spec best.yaml."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import __version__
from kdcli.report.console import as_text, table
from kdcli.report.quantities import MISSING, counted, decimals, duration, json_value, measure
from kdcli.report.spread import judged
from kdcli.spec.sweep import Choice, Space, Values

if TYPE_CHECKING:
    from kdcli.sweep.prepare import Measured
    from kdcli.sweep.study import Study, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """One set of values trained on all training data over seeds. values: of the last evaluation on the test data.

    rising: the same as numbers that rise as a student gets better. failed: by seed, why it has no value.
    """

    name: str
    primary: str
    values: tuple[float, ...]
    rising: tuple[float, ...]
    seeds: tuple[int, ...]
    failed: Mapping[int, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Mean and standard deviation of the seeds that have a value."""
        if not self.values:
            return "nothing"
        mean = statistics.fmean(self.values)
        shown = measure(mean)
        if len(self.values) < 2:
            return shown
        spread = statistics.stdev(self.values)
        return f"{shown} ± {measure(spread) if 'e' in shown else f'{spread:.{decimals(mean)}f}'}"


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
    plan: Measured
    share: float
    command: str
    spec_text: str = ""

    @property
    def tied(self) -> list[int]:
        """The numbers of whole trials with other values that are as good as the best, which is the first of them."""
        return [
            one.number
            for one in self.trials
            if one.state == "complete"
            and one.same_as is None
            and one.number != self.best.number
            and one.value == self.best.value
        ]

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


FEW = 100
"""Held-out samples of which each is a point of an accuracy, or more."""


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


def _points(number: float) -> str:
    return "a point" if number == 1 else f"{number:.3g} points"


def cost_text(
    space: Space,
    limit: int,
    plan: Measured,
    *,
    folder: Path,
    share: float,
    halving: bool,
    equal: str,
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
            scale += ", whole numbers" if one.whole else ""
            scale += "" if one.step is None else f", in steps of {value_text(one.step)}"
            lines.append(f"  {one.name}: {value_text(one.low)} to {value_text(one.high)}{scale}")
    lines.append(
        f"measured on {plan.held:,} samples of the training data, which are held out; trained on the other"
        f" {plan.samples:,}; the test data is not looked at"
    )
    if plan.held <= FEW:
        larger = min(0.5, 2 * FEW / (plan.held + plan.samples))
        more = f"; `--hold-out {larger:.2g}` holds out more" if larger > share else ""
        lines.append(
            f"warning: with {plan.held:,} held-out samples each is {_points(100 / plan.held)} of an accuracy, so"
            f" that trials lead by chance{more}"
        )
    halved = "; those that lie behind are stopped early" if halving and limit > 1 else ""
    alike = (
        "the same for all"
        if equal == "steps"
        else "fewer where a step costs more than one of the student alone"
    )
    lines.append(
        f"cost: {counted(limit, 'trial')} of {counted(plan.steps, 'step')} each ({counted(plan.epochs, 'epoch')}),"
        f" {alike}{halved}"
    )
    if plan.views is not None:
        views = counted(plan.views, "view")
        once = f"teachers run once for all trials: {plan.samples:,} samples x {views} in {folder / 'cache'}"
        lines.append(
            once
            + (f" (augmentations come again after {plan.views} epochs: {plan.live})" if plan.live else "")
        )
    elif teachers:
        lines.append(f"teachers run in every trial: {plan.live or 'their outputs are not cached'}")
    if seeds:
        lines.append(
            f"then the best values and the spec as written, {counted(seeds, 'seed')} each, on all"
            " training data, measured on the test data"
        )
    return "\n".join(lines)


def trial_line(trial: Trial, study: Study) -> str:
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


KEEP = "keep the spec as it is"


def verdict(results: SweepResults) -> str:
    """Whether the best values are better than the spec as written, beyond the spread over seeds."""
    if not results.seeded:
        return "not trained over seeds (`--seeds 0`): whether the best values are better on the test data is not known"
    best = results.seeded[0]
    if lost := [one for one in results.seeded if one.failed]:
        return _with_failures(results.seeded, lost)
    where = f"on the test data, {counted(len(best.seeds), 'seed')}: {best.primary}"
    if len(results.seeded) == 1:
        return (
            f"{where} {best.text}; the spec as written has these values already: the sweep found none better"
        )
    written = results.seeded[1]
    both = f"{where} {best.text} with the best values, {written.text} as written"
    if len(best.seeds) == 1:
        return f"{both}; one seed has no spread: try `--seeds 3`"
    judgement = judged(*(list(zip(one.seeds, one.rising, strict=True)) for one in (best, written)))
    better = judgement.difference > 0
    if judgement.apart and better:
        return f"{both}; every seed of the best is above every seed as written: better beyond the spread"
    if judgement.apart:
        return f"{both}; every seed of the best is BELOW every seed as written: {KEEP}"
    places = decimals(statistics.fmean(best.values))
    both += (
        f"; seed by seed better by {judgement.difference:.{places}f} ± {judgement.spread or 0.0:.{places}f}, at"
        f" {sum(pair > 0 for pair in judgement.pairs)} of {len(judgement.pairs)}"
    )
    if not judgement.beyond_chance:
        return f"{both}: no gain beyond the spread over seeds"
    if better:
        return f"{both}: better beyond the spread (Student's t at 95 %)"
    return f"{both}: WORSE beyond the spread (Student's t at 95 %): {KEEP}"


def _with_failures(seeded: Sequence[Seeded], lost: Sequence[Seeded]) -> str:
    """What is known where a seed has failed: no verdict, but what the others have and why one is missing."""
    names = {"best": "with the best values", "as written": "as written"}
    told = [
        f"{one.primary} {one.text} {names[one.name]} ({counted(len(one.seeds), 'seed')})"
        for one in seeded
        if one.values
    ]
    why = [f"{names[one.name]} seed {seed} failed: {one.failed[seed]}" for one in lost for seed in one.failed]
    return "; ".join([f"on the test data: {', '.join(told) or 'nothing'}", *why, "no verdict"])


def results_rows(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of trials, the best first."""
    names = [one.name for one in results.space.parameters]
    short = short_names(names)
    primary = results.best.primary
    by_cost = any(one.ratio is not None for one in results.trials)
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
                *([MISSING if one.ratio is None else f"{one.ratio:.2f}"] if by_cost else []),
                duration(one.seconds) if one.seconds else MISSING,
                state,
            ]
        )
    costs = ["cost of a step"] if by_cost else []
    return ["trial", *(short[name] for name in names), primary, "steps", *costs, "time", "state"], rows


def results_text(results: SweepResults, form: str) -> str:
    """The result for standard output: the table with what follows it, or JSON."""
    if form == "json":
        return json.dumps(json_value(_data(results)), indent=2) + "\n"
    columns, rows = results_rows(results)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in by_share(results.importance))
    failed = [one for one in results.trials if one.state == "failed"]
    said, tied = verdict(results), results.tied
    trials = f"trial{'s' if len(tied) > 1 else ''} {', '.join(map(str, tied))}"
    tie = f"; as good on the held-out images: {trials}" if tied else ""
    lines = [
        "",
        f"what decides (PED-ANOVA): {shares}" if shares else "",
        *(f"trial {one.number} failed: {one.error}" for one in failed),
        f"best: trial {results.best.number}, {values_text(results.best.values)}{tie}",
        said,
        f"page: {results.folder / 'sweep.html'}",
        f"spec: {results.folder / 'best.yaml'}",
        "" if said.endswith(KEEP) else f"train it: {results.command}",
    ]
    return as_text(table(columns, rows)) + "\n".join(line for line in lines if line) + "\n"


def by_share(importance: Mapping[str, float]) -> list[tuple[str, float]]:
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
                "cost_of_a_step": one.ratio,
                "same_as": one.same_as,
                "error": one.error,
                "run": str(results.folder / "trials" / f"{one.number:03}"),
            }
            for one in results.trials
        ],
        "best": {
            "number": results.best.number,
            "values": dict(results.best.values),
            "tied_with": results.tied,
        },
        "importance": dict(results.importance),
        "seeds": [
            {
                "name": one.name,
                "metric": one.primary,
                "seeds": list(one.seeds),
                "values": list(one.values),
                "failed": {str(seed): why for seed, why in one.failed.items()},
            }
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
