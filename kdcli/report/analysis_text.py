"""What was measured of networks, as text: their layers, pairs of layers that fit, a profile of training steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import yaml
from rich.console import RenderableType
from rich.text import Text

from kdcli.engine.profile import Profile
from kdcli.report.console import Cell, as_text, printable, table
from kdcli.report.quantities import MISSING, count

STATUS_STYLES = {"once": "green", "several": "yellow", "changed in place": "yellow"}


class LayerRow(Protocol):
    """One layer.

    path: as `mimic_name` wants it; shape: with B for the batch, a list of shapes for a layer that gives
    several levels, None where there is no tensor; stride: of the input's height, None where it has none;
    flops_share: cumulative up to and with this layer, 0 to 1; status: once, several (times a forward),
    container, never runs, changed in place, channels last (which can't be mimicked); depth: of the path, from 0.
    A row may have `taps` too, a sequence: what `mimic_name` may say to get one feature, `path[i]` where the
    layer gives several.
    """

    @property
    def path(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> str | Sequence[str] | None: ...
    @property
    def stride(self) -> float | int | str | None: ...
    @property
    def parameters(self) -> int: ...
    @property
    def flops_share(self) -> float | None: ...
    @property
    def status(self) -> str: ...
    @property
    def depth(self) -> int: ...


def layers_text(
    rows: Sequence[LayerRow],
    format: Literal["table", "json", "yaml"] = "table",
    *,
    depth: int | None = None,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The rows down to `depth` (0: the outermost layers only). Without a width nothing is cut or wrapped."""
    shown = [row for row in rows if depth is None or row.depth <= depth]
    if format == "json":
        return json.dumps({"layers": [_plain(row) for row in shown]}, indent=2) + "\n"
    if format == "yaml":
        plain = {"layers": [_plain(row) for row in shown]}
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000)
        return text
    drawn = layers_table(shown)
    text = as_text(drawn, colour=colour) if width is None else as_text(drawn, colour=colour, width=width)
    hidden = len(rows) - len(shown)
    return text + (f"\n{hidden} deeper layers not shown: raise --depth\n" if hidden else "")


def networks_text(
    networks: Mapping[str, Sequence[LayerRow]],
    format: Literal["table", "json", "yaml"] = "table",
    *,
    depth: int | None = None,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """Several networks by name; json and yaml are one mapping of the name to what layers_text gives."""
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


def layers_table(rows: Sequence[LayerRow]) -> RenderableType:
    """One line a layer; paths are whole, so that they can be copied, and indented by depth."""
    lines: list[list[Cell]] = []
    for row in rows:
        lines.append(
            [
                Text("  " * row.depth + printable(row.path), style="" if _tappable(row) else "dim"),
                row.type,
                "\n".join(_shapes(row)) or MISSING,
                MISSING if row.stride is None else str(row.stride),
                count(row.parameters),
                MISSING if row.flops_share is None else f"{100 * row.flops_share:.1f} %",
                Text("\n".join([row.status, *_elements(row)]), style=STATUS_STYLES.get(row.status, "dim")),
            ]
        )
    columns = ["layer", "type", "shape", ">stride", ">parameters", ">FLOPs so far", "tap"]
    return table(columns, lines)


def _tappable(row: LayerRow) -> bool:
    return row.status in STATUS_STYLES


def _taps(row: LayerRow) -> list[str]:
    return list(getattr(row, "taps", ()))


def _elements(row: LayerRow) -> list[str]:
    """A line with the first and the last name where there are several."""
    taps = [printable(tap) for tap in _taps(row)]
    return [f"{taps[0]}{' ...' if len(taps) > 2 else ','} {taps[-1]}"] if len(taps) > 1 else []


def _shapes(row: LayerRow) -> list[str]:
    if row.shape is None:
        return []
    return [row.shape] if isinstance(row.shape, str) else list(row.shape)


def _plain(row: LayerRow) -> dict[str, Any]:
    shape = row.shape if row.shape is None or isinstance(row.shape, str) else list(row.shape)
    return {
        "path": row.path,
        "type": row.type,
        "shape": shape,
        "stride": row.stride,
        "parameters": row.parameters,
        "flops_share": row.flops_share,
        "status": row.status,
        "depth": row.depth,
        "taps": _taps(row),
    }


class PairRow(Protocol):
    """A student layer, a teacher layer and what joins them."""

    @property
    def student(self) -> LayerRow: ...
    @property
    def teacher(self) -> LayerRow: ...
    @property
    def adapter(self) -> str | None: ...


def pairs_text(
    pairs: Mapping[str, Sequence[PairRow]], block: str, *, colour: bool = False, width: int | None = None
) -> str:
    """A table a teacher, then the YAML to paste."""
    parts = []
    for teacher, found in pairs.items():
        rows = [
            [
                pair.student.path,
                _shape(pair.student),
                pair.adapter or MISSING,
                pair.teacher.path,
                _shape(pair.teacher),
            ]
            for pair in found
        ]
        columns = ["student layer", "shape", "adapter", f"{printable(teacher)} layer", "shape"]
        drawn = table(columns, rows)
        parts.append(
            as_text(drawn, colour=colour) if width is None else as_text(drawn, colour=colour, width=width)
        )
    return "\n".join([*parts, block])


def _shape(row: LayerRow) -> str:
    return row.shape if isinstance(row.shape, str) else MISSING


def profile_text(profile: Profile, processes: int = 1) -> str:
    """Two tables and where the trace lies."""
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
        short = name if len(name) <= 43 else name[:40] + "..."
        lines.append(f"{short:<44}{calls / profile.steps:>13.1f}{1e3 * seconds / profile.steps:>11.2f}")
    lines += ["", f"trace: {profile.trace} (open it in https://ui.perfetto.dev or chrome://tracing)"]
    return "\n".join(lines) + "\n"
