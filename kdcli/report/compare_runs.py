"""`kdcli compare RUN...`: runs side by side as table or picture, mean and spread over runs that differ only by seed.

Runs whose specs differ only in runtime.random_seed and in `saver` are one group, finished ones apart from
unfinished ones. Spread is the sample standard deviation over the runs of a group. A difference between two groups is
judged by the rule of `spread.py`, the sweep's too. Groups that were measured on other test data or by another metric
are not judged, and what else is not the same experiment (training data, student network, steps) is named.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from kdcli import __version__
from kdcli.disk import real_path, write_whole
from kdcli.errors import Diagnostic, KdError, UsageError
from kdcli.records import LOWER_IS_BETTER
from kdcli.report import html_elements as page
from kdcli.report.charts import Axes, line_look, matplotlib_is_there, picture, readable
from kdcli.report.console import as_text, table, wrapped_line
from kdcli.report.quantities import MISSING, decimals, json_value, measure, metric_words
from kdcli.report.recorded_run import RecordedRun, read_run
from kdcli.report.results_table import metric_names
from kdcli.report.run_identity import Difference, changed_keys, differences
from kdcli.report.spread import Judgement, Spread, by_seed, judged, spread_of

PICTURE_FORMATS = ("svg", "png", "pdf")
_SEED = re.compile(r"(?:[-_.]?seed[-_.]?|[-_.]s[-_.]?|[-_.])?\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that differ only by seed. last and best: by metric, over the runs that have it."""

    name: str
    runs: tuple[RecordedRun, ...]
    seeds: tuple[int | None, ...]
    finished: bool
    last: Mapping[str, Spread]
    best: Mapping[str, Spread]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a group compares with the first one, by the mean of the primary metric's best.

    judgement: None where the figures can't be compared. differs: in what it is not the same experiment. keys: where
    the specs differ.
    """

    name: str
    baseline: str
    judgement: Judgement | None
    differs: tuple[Difference, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """All groups in the order in which their runs were named, and each compared with the first."""

    primary: str
    groups: tuple[Group, ...]
    verdicts: tuple[Verdict, ...]


def compare_runs(folders: Sequence[Path]) -> RunComparison:
    """Read the runs and group them by seed; raises one KdError with a diagnostic for every bad folder."""
    runs: list[RecordedRun] = []
    bad: list[Diagnostic] = []
    named: dict[Path, Path] = {}
    for folder in folders:
        named.setdefault(real_path(folder), folder)
    for folder in named.values():
        try:
            runs.append(read_run(folder))
        except KdError as error:
            bad += error.diagnostics
    if bad:
        raise KdError(bad)
    folded: dict[str, list[RecordedRun]] = {}
    for run in runs:
        folded.setdefault(_identity(run), []).append(run)
    members = list(folded.values())
    groups = tuple(_group(name, runs) for name, runs in zip(_names(members), members, strict=True))
    primary = next((run.primary for run in runs if run.primary), "")
    verdicts = [_verdict(primary, groups[0], group) for group in groups[1:]] if groups else []
    return RunComparison(
        primary=primary, groups=groups, verdicts=tuple(verdict for verdict in verdicts if verdict)
    )


def seed_of(spec: Mapping[str, Any]) -> int | None:
    """The `runtime.random_seed` of a spec, None where it has none."""
    runtime = spec.get("runtime")
    seed = runtime.get("random_seed") if isinstance(runtime, Mapping) else None
    return seed if isinstance(seed, int) else None


def _identity(run: RecordedRun) -> str:
    """Equal for runs that differ by their seed alone: one spec, one teacher, the same images on both sides."""
    spec = {key: value for key, value in run.spec.items() if key != "saver"}
    if isinstance(spec.get("runtime"), Mapping):
        spec["runtime"] = {key: value for key, value in spec["runtime"].items() if key != "random_seed"}
    images = {side: sorted(names) for side, names in run.listings.items()}
    same = [spec, run.finished is not None, images, run.env.get("teachers")]
    return json.dumps(same, sort_keys=True, default=str)


def _group(name: str, runs: Sequence[RecordedRun]) -> Group:
    return Group(
        name=name,
        runs=tuple(runs),
        seeds=tuple(seed_of(run.spec) for run in runs),
        finished=all(run.finished is not None for run in runs),
        last=_spreads([(seed_of(run.spec), run.last) for run in runs]),
        best=_spreads([(seed_of(run.spec), run.best) for run in runs]),
    )


def _spreads(measured: Sequence[tuple[int | None, Mapping[str, float]]]) -> dict[str, Spread]:
    """Of each metric mean and spread over the seeds."""
    names = dict.fromkeys(name for _, metrics in measured for name in metrics)
    seeded = {
        name: by_seed([(seed, float(one[name])) for seed, one in measured if name in one]) for name in names
    }
    return {name: spread_of([value for _, value in values]) for name, values in seeded.items()}


def _names(groups: Sequence[Sequence[RecordedRun]]) -> list[str]:
    """A name for each group, with as many parent folders as tell it from the others."""
    names = [_name(runs, 1) for runs in groups]
    deepest = max((len(real_path(run.path).parts) for runs in groups for run in runs), default=1)
    for depth in range(2, deepest + 1):
        names = [
            _name(runs, depth) if names.count(name) > 1 else name
            for name, runs in zip(names, groups, strict=True)
        ]
    # A run `kd` beside the folded `kd_seed1` and `kd_seed2`.
    return [
        _and_more(runs, 1) if names.count(name) > 1 else name
        for name, runs in zip(names, groups, strict=True)
    ]


def _name(runs: Sequence[RecordedRun], depth: int) -> str:
    """`digits_kd` for digits_kd_seed1 and digits_kd_seed2; else the first name and how many more."""
    if len(runs) > 1:
        stems = {_SEED.sub("", _path(run, depth)).rstrip("/") for run in runs}
        if len(stems) == 1 and "" not in stems:
            return stems.pop()
    return _and_more(runs, depth)


def _and_more(runs: Sequence[RecordedRun], depth: int) -> str:
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return _path(runs[0], depth) + more


def _path(run: RecordedRun, depth: int) -> str:
    """The last parts of the folder's path."""
    return "/".join(real_path(run.path).parts[-depth:])


def _verdict(primary: str, baseline: Group, group: Group) -> Verdict | None:
    differs = tuple(differences(baseline.runs[0], group.runs[0]))
    keys = tuple(changed_keys(baseline.runs[0], group.runs[0]))
    judgement = None
    if not any(one.fatal for one in differs):
        if primary not in baseline.best or primary not in group.best:
            return None
        judgement = judged(_seeded(group, primary), _seeded(baseline, primary))
    return Verdict(name=group.name, baseline=baseline.name, judgement=judgement, differs=differs, keys=keys)


def _seeded(group: Group, metric: str) -> list[tuple[int | None, float]]:
    """Each run's seed and the best of a metric, of those that have it."""
    return [
        (seed, float(run.best[metric]))
        for run, seed in zip(group.runs, group.seeds, strict=True)
        if metric in run.best
    ]


CompareFormat = Literal["text", "json", "csv", "md", "html"]


def compare_text(
    compared: RunComparison, format: CompareFormat = "text", *, colour: bool = False, width: int | None = None
) -> str:
    """The comparison as a table, JSON, CSV, Markdown or one HTML page (with curves where matplotlib is installed)."""
    if format == "json":
        return json.dumps(_plain(compared), indent=2, allow_nan=False) + "\n"
    if format == "csv":
        return _csv(compared)
    columns, rows = _columns(compared), [_row(compared, group) for group in compared.groups]
    sentences = [
        sentence
        for verdict in compared.verdicts
        for sentence in (verdict_sentence(verdict, compared.primary), *experiment_sentences(verdict))
    ]
    sentences += [*unequal_views(compared), *repeated_seeds(compared)]
    if format == "html":
        return _page(compared, rows, sentences)
    if format == "md":
        head = [
            "| " + " | ".join(columns) + " |",
            "| " + " | ".join(["---", *["---:"] * (len(columns) - 1)]) + " |",
        ]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([*head, *body, *(f"\n{sentence}" for sentence in sentences)]) + "\n"
    drawn = table([columns[0], *(f">{name}" for name in columns[1:])], rows)
    text = as_text(drawn, colour=colour, width=width)
    lines = [wrapped_line(sentence, width) for sentence in sentences]
    return text + "".join(f"\n{line}" for line in lines) + ("\n" if sentences else "")


def unequal_views(compared: RunComparison) -> list[str]:
    """A sentence where some runs saw each image in a few cached views and others in fresh ones each epoch."""
    views = {group.name: views_of(group.runs[0].spec) for group in compared.groups}
    if len(set(views.values())) < 2:
        return []
    fresh = [name for name, number in views.items() if number is None]
    parts = [f"{name} {number} cached" for name, number in views.items() if number is not None]
    parts += [f"{', '.join(fresh)} fresh ones in each epoch"] if fresh else []
    return [f"not equal: of each image's augmentations {'; '.join(parts)}"]


def repeated_seeds(compared: RunComparison) -> list[str]:
    """A sentence on each group in which a seed ran more than once."""
    lines = []
    for group in compared.groups:
        counts = Counter(seed for seed in group.seeds if seed is not None)
        again = [f"seed {seed} ran {count} times" for seed, count in counts.items() if count > 1]
        if again:
            lines.append(f"{group.name}: {', '.join(again)} and counts once, by the mean")
    return lines


def views_of(spec: Mapping[str, Any]) -> int | None:
    """How many views of each image a run's resolved spec caches; None without a cache, or without distilling."""
    runtime = spec.get("runtime")
    runner = runtime.get("runner") if isinstance(runtime, Mapping) else None
    if isinstance(runner, Mapping) and runner.get("type") == "base":
        return None
    waiting = [spec.get("mimic")]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, Mapping):
            continue
        cache = value.get("cache")
        if isinstance(cache, Mapping):
            views = cache.get("views", 1)
            return views if isinstance(views, int) else None
        waiting += value.values()
    return None


def verdict_sentence(verdict: Verdict, primary: str) -> str:
    """A sentence on the difference to the first group: its size, and whether it lies beyond the spread."""
    judgement = verdict.judgement
    if judgement is None:
        fatal = "; ".join(str(one) for one in verdict.differs if one.fatal)
        return f"{verdict.name} against {verdict.baseline}: not comparable; {fatal}"
    size = f"{verdict.name} against {verdict.baseline}: best {primary} {judgement.difference:+.4g}"
    if judgement.spread is None:
        return f"{size}; one run each, so nobody knows whether it is luck"
    seeds = f" ± {judgement.spread:.4g} seed by seed ({len(judgement.pairs)})" if judgement.pairs else ""
    if not judgement.shown:
        return f"{size}{seeds}: no difference beyond the spread"
    rises = judgement.difference > 0
    which = "better" if rises != (primary in LOWER_IS_BETTER) else "worse"
    if judgement.apart:
        return (
            f"{size}{seeds}, every run {'above' if rises else 'below'} every other: {which} beyond the spread"
        )
    return f"{size}{seeds}: {which} beyond the spread (Student's t at 95 %)"


def experiment_sentences(verdict: Verdict) -> list[str]:
    """What is not the same experiment, and where the specs differ, each a line below the verdict."""
    lines = []
    others = [str(one) for one in verdict.differs if not one.fatal]
    if others:
        lines.append(f"  not the same experiment: {'; '.join(others)}")
    if verdict.keys and verdict.judgement is not None:
        lines.append(f"  the specs differ in {', '.join(verdict.keys)}")
    return lines


def _page(compared: RunComparison, rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """One HTML page: the table, what differs, and the curves of the metric that decides."""
    words = [page.paragraph(sentence.strip()) for sentence in sentences]
    columns = _columns(compared, metric_words)
    curves = ""
    if compared.primary and matplotlib_is_there():
        title = metric_words(compared.primary)
        drawn = readable(lambda axes: _draw(axes, compared), title=title, width=8.0, height=4.0)
        curves = page.card(title, drawn, wide=True)
    names = ", ".join(group.name for group in compared.groups)
    body = [
        f"<header><h1>{page.text(names)}</h1></header>",
        page.section("Runs", page.table(columns, rows, kind="result"), *words),
        page.section("Curves", curves),
    ]
    return page.page(f"{names} · kdcli", filter(None, body))


def _columns(compared: RunComparison, words: Callable[[str], str] = str) -> list[str]:
    """Names of the columns. words: for a metric."""
    best = [f"best {words(compared.primary)}"] if compared.primary else []
    return ["run", "runs", *best, *(f"last {words(name)}" for name in _metrics(compared)), "state"]


def _metrics(compared: RunComparison) -> list[str]:
    return metric_names([dict.fromkeys(group.last, 0.0) for group in compared.groups], compared.primary)


def _row(compared: RunComparison, group: Group) -> list[str]:
    best = [_shown(group.best.get(compared.primary))] if compared.primary else []
    state = "finished" if group.finished else _steps(group)
    last = [_shown(group.last.get(name)) for name in _metrics(compared)]
    return [group.name, str(len(group.runs)), *best, *last, state]


def _steps(group: Group) -> str:
    steps = [run.steps.last["step"] if run.steps.last else 0 for run in group.runs]
    return f"unfinished, step {min(steps)}"


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return MISSING
    if spread.std is None:
        return measure(spread.mean)
    places = decimals(spread.mean)
    return f"{spread.mean:.{places}f} ± {spread.std:.{places}f}"


def _csv(compared: RunComparison) -> str:
    """CSV with a row for each group, metric and moment (best or last), numbers in full."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "metric", "moment", "runs", "mean", "std", "finished"])
    for group in compared.groups:
        for moment, spreads in (("best", group.best), ("last", group.last)):
            for name, spread in spreads.items():
                std = "" if spread.std is None else repr(spread.std)
                finished = str(group.finished).lower()
                writer.writerow(
                    [group.name, name, moment, len(spread.values), repr(spread.mean), std, finished]
                )
    return buffer.getvalue()


def _plain(compared: RunComparison) -> dict[str, Any]:
    return {
        "kdcli": __version__,
        "primary": compared.primary or None,
        "groups": [
            {
                "name": group.name,
                "runs": [str(run.path) for run in group.runs],
                "seeds": list(group.seeds),
                "finished": group.finished,
                "last": {name: _plain_spread(spread) for name, spread in group.last.items()},
                "best": {name: _plain_spread(spread) for name, spread in group.best.items()},
            }
            for group in compared.groups
        ],
        "verdicts": [
            {
                "name": verdict.name,
                "baseline": verdict.baseline,
                "comparable": verdict.judgement is not None,
                **_plain_judgement(verdict.judgement),
                "differs": [
                    {"what": one.what, "baseline": one.baseline, "run": one.other} for one in verdict.differs
                ],
                "keys": list(verdict.keys),
            }
            for verdict in compared.verdicts
        ],
    }


def _plain_judgement(judgement: Judgement | None) -> dict[str, Any]:
    if judgement is None:
        return {"difference": None, "spread": None, "within_spread": None}
    return {
        "difference": json_value(judgement.difference),
        "spread": json_value(judgement.spread),
        "within_spread": None if judgement.shown is None else not judgement.shown,
        "by_seed": [json_value(pair) for pair in judgement.pairs],
        "apart": judgement.apart,
    }


def _plain_spread(spread: Spread) -> dict[str, Any]:
    values = [json_value(value) for value in spread.values]
    return {"mean": json_value(spread.mean), "std": json_value(spread.std), "values": values}


def write_plot(compared: RunComparison, path: Path) -> Path:
    """Draw the groups' primary metric into a file that ends in .svg, .png or .pdf; returns its path."""
    format = path.suffix.lstrip(".").lower()
    if format not in PICTURE_FORMATS:
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
