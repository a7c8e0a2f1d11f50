"""Findings as GitHub workflow commands: annotations on the changed lines."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.errors import Diagnostic
from kdcli.report.diagnostics.concise import headline
from kdcli.report.diagnostics.order import file_of


def github(diagnostics: Sequence[Diagnostic]) -> str:
    """`::error file=...,line=...,col=...,endColumn=...,title=KD203::message` for each."""
    return "".join(_command(found) for found in diagnostics)


def _command(found: Diagnostic) -> str:
    properties: dict[str, str | int] = {}
    message = headline(found)
    span = found.span
    file = file_of(span) if span else None
    if span and file is not None:
        properties = {
            "file": file,
            "line": span.line,
            "endLine": span.line,
            "col": span.column,
            "endColumn": max(span.column, span.end_column - 1),
        }
        message = found.message
    if span and span.written:
        message += f"\nwritten here: {span.written.source}:{span.written.line}:{span.written.column}"
    if found.help:
        message += f"\nhelp: {found.help}"
    properties["title"] = f"kdcli {found.code}"
    listed = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    return f"::{found.severity} {listed}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
