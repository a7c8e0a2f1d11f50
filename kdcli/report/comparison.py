"""`kdcli eval`: student and teachers side by side, quality and cost, as a table or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli import __version__
from kdcli.records import Comparison
from kdcli.report.console import as_text
from kdcli.report.quantities import MISSING, count, flops, measure, size
from kdcli.report.standings import metric_names
from kdcli.report.tables import table


def comparison_text(
    rows: Sequence[Comparison],
    format: Literal["text", "json"] = "text",
    *,
    primary: str = "",
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The rows, the student's first, in one format; JSON numbers that are not finite become null."""
    if format == "json":
        document = {"kdcli": __version__, "primary": primary or None, "networks": [_plain(r) for r in rows]}
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    drawn = comparison_table(rows, primary=primary)
    return as_text(drawn, colour=colour) if width is None else as_text(drawn, colour=colour, width=width)


def comparison_table(rows: Sequence[Comparison], *, primary: str = "") -> RenderableType:
    """The lines as a table, and what the student saves in words."""
    drawn = table(["", *(f">{row.network}" for row in rows)], comparison_lines(rows, primary=primary))
    remark = saving(rows)
    return Group(drawn, Text(""), Text(remark)) if remark else drawn


def comparison_lines(rows: Sequence[Comparison], *, primary: str = "") -> list[list[str]]:
    """Quality, cost, and how far each teacher and the student agree: a line a number, a column a network."""
    lines = [
        [name, *(_measure(row.metrics.get(name)) for row in rows)]
        for name in metric_names([row.metrics for row in rows], primary)
    ]
    lines += [
        ["parameters", *(count(row.parameters) for row in rows)],
        ["FLOPs", *(flops(row.flops) for row in rows)],
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


def saving(rows: Sequence[Comparison]) -> str:
    """`student is 4.2 times smaller and 3.1 times faster (batch 1) than teacher0`, for the first teacher."""
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


def _plain(row: Comparison) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(row).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
