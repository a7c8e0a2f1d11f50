"""Findings as one JSON object.

    {"kdcli": "0.2.0", "errors": 1, "warnings": 0, "diagnostics": [
        {"code": "KD203", "severity": "error", "message": ..., "help": ... | null, "path": ["net", 0] | null,
         "span": {"source", "line", "column", "end_column", "excerpt", "written": span | null} | null}]}

Lines and columns count from 1 in code points; end_column is one past the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kdcli import __version__
from kdcli.errors import Diagnostic, Span


def as_json(diagnostics: Sequence[Diagnostic]) -> str:
    """The object, indented, ASCII only."""
    errors = sum(found.severity == "error" for found in diagnostics)
    document = {
        "kdcli": __version__,
        "errors": errors,
        "warnings": len(diagnostics) - errors,
        "diagnostics": [_finding(found) for found in diagnostics],
    }
    return json.dumps(document, indent=2) + "\n"


def _finding(found: Diagnostic) -> dict[str, Any]:
    return {
        "code": found.code,
        "severity": found.severity,
        "message": found.message,
        "help": found.help,
        "path": None if found.path is None else list(found.path),
        "span": _span(found.span),
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
