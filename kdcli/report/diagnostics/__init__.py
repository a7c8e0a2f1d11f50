"""Diagnostics in the formats of `validate --format`: text, concise, json, github, sarif."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from kdcli.errors import Diagnostic

DiagnosticFormat = Literal["text", "concise", "json", "github", "sarif"]
FORMATS: tuple[DiagnosticFormat, ...] = get_args(DiagnosticFormat)


def render(
    diagnostics: Sequence[Diagnostic],
    format: DiagnosticFormat = "text",
    *,
    colour: bool = False,
    width: int = 100,
) -> str:
    """The diagnostics in one format, each file's by line, without repetitions; ends in a newline if not empty.

    colour and width matter to `text` only. Without diagnostics only `json` and `sarif` give text.
    """
    from kdcli.report.diagnostics.text import concise, ordered, text

    listed = ordered(diagnostics)
    if format == "text":
        return text(listed, colour=colour, width=width)
    if format == "concise":
        return concise(listed)
    from kdcli.report.diagnostics.machine_formats import as_json, github, sarif

    return {"json": as_json, "github": github, "sarif": sarif}[format](listed)


__all__ = ["FORMATS", "DiagnosticFormat", "render"]
