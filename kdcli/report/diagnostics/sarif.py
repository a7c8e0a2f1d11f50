"""Findings as SARIF 2.1.0, for code scanning.

Columns are code points from 1, the end column one past the end (SARIF 3.30). Files in the working directory
are relative to it; findings from standard input or arguments carry their path into the spec as a logical
location.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdcli import __version__
from kdcli.codes import CODES
from kdcli.errors import Diagnostic, Span
from kdcli.report.diagnostics.order import dotted, file_of

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(diagnostics: Sequence[Diagnostic]) -> str:
    """One log with one run; its rules are the codes that were found, with their explanations."""
    codes = list(dict.fromkeys(found.code for found in diagnostics))
    driver = {"name": "kdcli", "version": __version__, "rules": [_rule(code) for code in codes]}
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(found, codes.index(found.code)) for found in diagnostics],
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


def _result(found: Diagnostic, rule: int) -> dict[str, Any]:
    message = f"{found.message}\nhelp: {found.help}" if found.help else found.message
    result: dict[str, Any] = {
        "ruleId": found.code,
        "ruleIndex": rule,
        "level": found.severity,
        "message": {"text": message},
    }
    location: dict[str, Any] = {}
    if found.span is not None:
        physical = _physical(found.span)
        if physical:
            location["physicalLocation"] = physical
        if found.span.written is not None:
            written = _physical(found.span.written)
            if written:
                note = {"message": {"text": "written here"}, "physicalLocation": written}
                result["relatedLocations"] = [note]
    if found.path:
        location["logicalLocations"] = [{"fullyQualifiedName": dotted(found.path)}]
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
