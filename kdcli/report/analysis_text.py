"""Text of `inspect-features` (layers, pairs of layers that fit) and of `train --profile`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import yaml
from rich.console import RenderableType
from rich.text import Text

from kdcli.errors import cut_off
from kdcli.report.console import Cell, Column, as_text, printable, table
from kdcli.report.quantities import MISSING, count

if TYPE_CHECKING:  # these import torch
    from kdcli.analysis.layers import Layer
    from kdcli.analysis.pairs import FittingPair
    from kdcli.training.profile import Profile

STATUS_STYLES = {"once": "green", "several": "yellow", "changed in place": "yellow"}


def layers_text(
    rows: Sequence[Layer],
    format: Literal["table", "json", "yaml"] = "table",
    *,
    depth: int | None = None,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The layers of one network down to `depth` (0: the outermost only); without a width nothing wraps."""
    shown = [row for row in rows if depth is None or row.depth <= depth]
    if format == "json":
        return json.dumps({"layers": [_plain(row) for row in shown]}, indent=2) + "\n"
    if format == "yaml":
        plain = {"layers": [_plain(row) for row in shown]}
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000)
        return text
    drawn = _layers_table(shown)
    text = as_text(drawn, colour=colour, width=width)
    hidden = len(rows) - len(shown)
    return text + (f"\n{hidden} deeper layers not shown: raise --depth\n" if hidden else "")


def networks_text(
    networks: Mapping[str, Sequence[Layer]],
    format: Literal["table", "json", "yaml"] = "table",
    *,
    depth: int | None = None,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The layers of several networks; JSON and YAML map each name to what `layers_text` gives."""
    if format == "table":
        texts = [
            f"{printable(name)}\n{layers_text(rows, depth=depth, colour=colour, width=width)}"
            for name, rows in networks.items()
        ]
        return "\n".join(texts)
    documents = {
        name: {"layers": [_plain(row) for row in rows if depth is None or row.depth <= depth]}
        for name, rows in networks.items()
    }
    if format == "json":
        return json.dumps(documents, indent=2) + "\n"
    text: str = yaml.safe_dump(documents, sort_keys=False, allow_unicode=True, width=10_000)
    return text


def _layers_table(rows: Sequence[Layer]) -> RenderableType:
    """A table with a row for each layer; paths are whole, so that they can be copied, and indented by depth."""
    lines: list[list[Cell]] = []
    for row in rows:
        lines.append(
            [
                Text("  " * row.depth + printable(row.path), style="" if _tappable(row) else "dim"),
                row.type,
                "\n".join(_shapes(row)) or MISSING,
                row.layout or MISSING,
                MISSING if row.stride is None else str(row.stride),
                count(row.parameters),
                MISSING if row.flops_share is None else f"{100 * row.flops_share:.1f} %",
                Text("\n".join([row.status, *_elements(row)]), style=STATUS_STYLES.get(row.status, "dim")),
            ]
        )
    columns: list[str | Column] = [
        Column("layer", whole=True),
        Column("type", dropped=2),
        Column("shape", whole=True),
        Column("layout", dropped=4),
        Column("stride", right=True, dropped=1),
        Column("parameters", right=True, dropped=3),
        Column("FLOPs so far", right=True, dropped=5),
        "tap",
    ]
    return table(columns, lines)


def _tappable(row: Layer) -> bool:
    return row.status in STATUS_STYLES


def _elements(row: Layer) -> list[str]:
    """The first and the last tap of a layer that gives several features, in one line."""
    taps = [printable(tap) for tap in row.taps]
    return [f"{taps[0]}{' ...' if len(taps) > 2 else ','} {taps[-1]}"] if len(taps) > 1 else []


def _shapes(row: Layer) -> list[str]:
    if row.shape is None:
        return []
    return [row.shape] if isinstance(row.shape, str) else list(row.shape)


def _plain(row: Layer) -> dict[str, Any]:
    shape = row.shape if row.shape is None or isinstance(row.shape, str) else list(row.shape)
    return {
        "path": row.path,
        "type": row.type,
        "shape": shape,
        "layout": row.layout,
        "stride": row.stride,
        "parameters": row.parameters,
        "flops_share": row.flops_share,
        "status": row.status,
        "depth": row.depth,
        "taps": list(row.taps),
    }


def pairs_text(
    pairs: Mapping[str, Sequence[FittingPair]], block: str, *, colour: bool = False, width: int | None = None
) -> str:
    """For each teacher a table of layers that fit the student's, then the YAML block that joins them."""
    parts = []
    for teacher, fitting in pairs.items():
        rows = [
            [
                pair.student.path,
                _shape(pair.student),
                pair.adapter or MISSING,
                pair.teacher.path,
                _shape(pair.teacher),
            ]
            for pair in fitting
        ]
        columns: list[str | Column] = [
            "student layer",
            Column("shape", whole=True, dropped=2),
            Column("adapter", dropped=1),
            f"{printable(teacher)} layer",
            Column("shape", whole=True, dropped=2),
        ]
        parts.append(as_text(table(columns, rows), colour=colour, width=width))
    return "\n".join([*parts, block])


def _shape(row: Layer) -> str:
    return row.shape if isinstance(row.shape, str) else MISSING


def profile_text(profile: Profile, processes: int = 1) -> str:
    """Time of a training step by part and by operator, in two tables, and the trace's path."""
    rate = profile.images * processes / profile.seconds
    step = 1e3 * profile.seconds / profile.steps
    lines = [f"{profile.steps} steps, {step:.1f} ms each, {rate:,.0f} images/s", ""]
    lines.append(f"{'part':<18}{'ms a step':>10}{'share':>8}")
    for name, seconds in profile.parts.items():
        lines.append(
            f"{name:<18}{1e3 * seconds / profile.steps:>10.2f}{100 * seconds / profile.seconds:>7.1f}%"
        )
    lines += ["", f"{'operator':<44}{'calls a step':>13}{'ms a step':>11}"]
    for name, calls, seconds in profile.operators:
        lines.append(
            f"{cut_off(name, 43):<44}{calls / profile.steps:>13.1f}{1e3 * seconds / profile.steps:>11.2f}"
        )
    lines += ["", f"trace: {profile.trace} (open it in https://ui.perfetto.dev or chrome://tracing)"]
    return "\n".join(lines) + "\n"
