"""Findings as people and machines read them: text, concise, json, github, sarif."""

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
    """The findings in one format, each file's by line, repetitions dropped; ends in a newline if not empty.

    colour and width matter to `text` only. Only `json` and `sarif` say something about no findings.
    """
    from kdcli.report.diagnostics.text import concise, ordered, text

    found = ordered(diagnostics)
    if format == "text":
        return text(found, colour=colour, width=width)
    if format == "concise":
        return concise(found)
    from kdcli.report.diagnostics.machine_formats import as_json, github, sarif

    return {"json": as_json, "github": github, "sarif": sarif}[format](found)


__all__ = ["FORMATS", "DiagnosticFormat", "render"]
