"""Findings as people and machines read them: text, concise, json, github, sarif."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from kdcli.errors import Diagnostic
from kdcli.report.diagnostics.order import ordered

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
    found = ordered(diagnostics)
    if format == "text":
        from kdcli.report.diagnostics.text import text

        return text(found, colour=colour, width=width)
    if format == "concise":
        from kdcli.report.diagnostics.concise import concise

        return concise(found)
    if format == "json":
        from kdcli.report.diagnostics.json_format import as_json

        return as_json(found)
    if format == "github":
        from kdcli.report.diagnostics.github import github

        return github(found)
    from kdcli.report.diagnostics.sarif import sarif

    return sarif(found)


__all__ = ["FORMATS", "DiagnosticFormat", "render"]
