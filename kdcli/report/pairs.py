"""Pairs of layers that fit, and the block that joins them, as `inspect-features --pairs` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kdcli.report.analysis_text import LayerRow
from kdcli.report.console import as_text, printable
from kdcli.report.quantities import MISSING
from kdcli.report.tables import table


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
