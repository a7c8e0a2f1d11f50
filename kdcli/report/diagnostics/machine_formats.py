"""Diagnostics for programs: JSON, GitHub workflow commands, SARIF."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdcli import __version__
from kdcli.codes import CODES
from kdcli.errors import Diagnostic, Span
from kdcli.report.diagnostics.text import dotted, file_of, headline


def as_json(diagnostics: Sequence[Diagnostic]) -> str:
    """One JSON object, indented, ASCII only.

        {"kdcli": "0.2.0", "errors": 1, "warnings": 0, "diagnostics": [
            {"code": "KD203", "severity": "error", "message": ..., "help": ... | null, "path": ["net", 0] | null,
             "span": {"source", "line", "column", "end_column", "excerpt", "written": span | null} | null}]}

    Lines and columns count from 1 in code points; end_column is one past the end.
    """
    errors = sum(diagnostic.severity == "error" for diagnostic in diagnostics)
    document = {
        "kdcli": __version__,
        "errors": errors,
        "warnings": len(diagnostics) - errors,
        "diagnostics": [_json_object(diagnostic) for diagnostic in diagnostics],
    }
    return json.dumps(document, indent=2) + "\n"


def _json_object(diagnostic: Diagnostic) -> dict[str, Any]:
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "help": diagnostic.help,
        "path": None if diagnostic.path is None else list(diagnostic.path),
        "span": _span(diagnostic.span),
    }


def _span(span: Span | None) -> dict[str, Any] | None:
    if span is None:
        return None
    return {
        "source": span.source,
        "line": span.line,
        "column": span.column,
        "end_column": span.end_column,
        "excerpt": span.excerpt,
        "written": _span(span.written),
    }


def github(diagnostics: Sequence[Diagnostic]) -> str:
    """GitHub workflow commands, which annotate the lines of a pull request.

    `::error file=...,line=...,col=...,endColumn=...,title=KD203::message` for each diagnostic.
    """
    return "".join(_command(diagnostic) for diagnostic in diagnostics)


def _command(diagnostic: Diagnostic) -> str:
    properties: dict[str, str | int] = {}
    message = headline(diagnostic)
    span = diagnostic.span
    file = file_of(span) if span else None
    if span and file is not None:
        properties = {
            "file": file,
            "line": span.line,
            "endLine": span.line,
            "col": span.column,
            "endColumn": max(span.column, span.end_column - 1),
        }
        message = diagnostic.message
    if span and span.written:
        message += f"\nwritten here: {span.written.source}:{span.written.line}:{span.written.column}"
    if diagnostic.help:
        message += f"\nhelp: {diagnostic.help}"
    properties["title"] = f"kdcli {diagnostic.code}"
    listed = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    return f"::{diagnostic.severity} {listed}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(diagnostics: Sequence[Diagnostic]) -> str:
    """A SARIF 2.1.0 log for code scanning; its rules are the codes that occur, with their explanations.

    Columns are code points from 1, the end column one past the end (SARIF 3.30). Files in the working directory
    are relative to it; diagnostics from standard input or arguments carry their path into the spec as a logical
    location.
    """
    codes = list(dict.fromkeys(diagnostic.code for diagnostic in diagnostics))
    driver = {"name": "kdcli", "version": __version__, "rules": [_rule(code) for code in codes]}
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, codes.index(diagnostic.code)) for diagnostic in diagnostics],
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2) + "\n"


def _rule(code: str) -> dict[str, Any]:
    explanation = CODES.get(code)
    if explanation is None:
        return {"id": code}
    return {
        "id": code,
        "shortDescription": {"text": explanation.title},
        "fullDescription": {"text": explanation.why},
        "help": {"text": f"{explanation.why}\n\n{explanation.example}"},
    }


def _result(diagnostic: Diagnostic, rule: int) -> dict[str, Any]:
    message = f"{diagnostic.message}\nhelp: {diagnostic.help}" if diagnostic.help else diagnostic.message
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rule,
        "level": diagnostic.severity,
        "message": {"text": message},
    }
    location: dict[str, Any] = {}
    if diagnostic.span is not None:
        physical = _physical(diagnostic.span)
        if physical:
            location["physicalLocation"] = physical
        if diagnostic.span.written is not None:
            written = _physical(diagnostic.span.written)
            if written:
                note = {"message": {"text": "written here"}, "physicalLocation": written}
                result["relatedLocations"] = [note]
    if diagnostic.path:
        location["logicalLocations"] = [{"fullyQualifiedName": dotted(diagnostic.path)}]
    if location:
        result["locations"] = [location]
    return result


def _physical(span: Span) -> dict[str, Any] | None:
    file = file_of(span)
    if file is None:
        return None
    uri = Path(file).as_uri() if Path(file).is_absolute() else quote(file)
    region: dict[str, Any] = {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.line,
        "endColumn": max(span.column, span.end_column),
        "snippet": {"text": span.excerpt},
    }
    return {"artifactLocation": {"uri": uri}, "region": region}
