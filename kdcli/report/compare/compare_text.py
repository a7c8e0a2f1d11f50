"""A comparison of runs as text, JSON, CSV or Markdown."""

from __future__ import annotations

import csv
import json
import math
from io import StringIO
from typing import Any, Literal

from kdcli import __version__
from kdcli.report.compare.compare_runs import Group, RunComparison, Spread, Verdict
from kdcli.report.console import as_text
from kdcli.report.quantities import MISSING, measure
from kdcli.report.results_table import metric_names
from kdcli.report.tables import table

CompareFormat = Literal["text", "json", "csv", "md"]


def compare_text(
    compared: RunComparison, format: CompareFormat = "text", *, colour: bool = False, width: int | None = None
) -> str:
    """The comparison in one format."""
    if format == "json":
        return json.dumps(_plain(compared), indent=2, allow_nan=False) + "\n"
    if format == "csv":
        return _csv(compared)
    columns, rows = _columns(compared), [_row(compared, group) for group in compared.groups]
    sentences = [verdict_sentence(verdict, compared.primary) for verdict in compared.verdicts]
    if format == "md":
        head = [
            "| " + " | ".join(columns) + " |",
            "| " + " | ".join(["---", *["---:"] * (len(columns) - 1)]) + " |",
        ]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([*head, *body, *(f"\n{sentence}" for sentence in sentences)]) + "\n"
    drawn = table([columns[0], *(f">{name}" for name in columns[1:])], rows)
    text = as_text(drawn, colour=colour) if width is None else as_text(drawn, colour=colour, width=width)
    return text + "".join(f"\n{sentence}" for sentence in sentences) + ("\n" if sentences else "")


def verdict_sentence(verdict: Verdict, primary: str) -> str:
    """What the difference to the first group is worth."""
    size = f"{verdict.name} against {verdict.baseline}: best {primary} {verdict.difference:+.4g}"
    if verdict.spread is None:
        return f"{size}; one run each, so nobody knows whether it is luck"
    if verdict.within_spread:
        return f"{size}, smaller than the spread ({verdict.spread:.4g}): no difference shown"
    which = "better" if verdict.difference > 0 else "worse"
    return f"{size}, {which} by more than the spread ({verdict.spread:.4g})"


def _columns(compared: RunComparison) -> list[str]:
    best = [f"best {compared.primary}"] if compared.primary else []
    return ["run", "runs", *best, *(f"last {name}" for name in _names(compared)), "state"]


def _names(compared: RunComparison) -> list[str]:
    return metric_names([dict.fromkeys(group.last, 0.0) for group in compared.groups], compared.primary)


def _row(compared: RunComparison, group: Group) -> list[str]:
    best = [_shown(group.best.get(compared.primary))] if compared.primary else []
    state = "finished" if group.finished else _steps(group)
    last = [_shown(group.last.get(name)) for name in _names(compared)]
    return [group.name, str(len(group.runs)), *best, *last, state]


def _steps(group: Group) -> str:
    steps = [run.steps[-1]["step"] if run.steps else 0 for run in group.runs]
    return f"unfinished, step {min(steps)}"


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return MISSING
    if spread.std is None:
        return measure(spread.mean)
    places = 2 if abs(spread.mean) >= 10 else 4
    return f"{spread.mean:.{places}f} ± {spread.std:.{places}f}"


def _csv(compared: RunComparison) -> str:
    """A row for each group, metric and moment, with numbers in full."""
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
                "difference": _finite(verdict.difference),
                "spread": _finite(verdict.spread),
                "within_spread": verdict.within_spread,
            }
            for verdict in compared.verdicts
        ],
    }


def _plain_spread(spread: Spread) -> dict[str, Any]:
    values = [_finite(value) for value in spread.values]
    return {"mean": _finite(spread.mean), "std": _finite(spread.std), "values": values}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
