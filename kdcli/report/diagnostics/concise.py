"""Findings one a line, for editors and grep."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.errors import Diagnostic
from kdcli.report.console import printable
from kdcli.report.diagnostics.order import dotted


def concise(diagnostics: Sequence[Diagnostic]) -> str:
    """`path:line:col: error KD203: message` for each."""
    return "".join(f"{headline(found)}\n" for found in diagnostics)


def headline(found: Diagnostic) -> str:
    """The one line that says what and where."""
    return f"{place(found)}{found.severity} {found.code}: {tail(found)}"


def place(found: Diagnostic) -> str:
    """`path:line:col: `, or nothing."""
    span = found.span
    return f"{printable(span.source)}:{span.line}:{span.column}: " if span else ""


def tail(found: Diagnostic) -> str:
    """The message, with the path into the spec where no line is known."""
    message = printable(" ".join(found.message.split("\n")))
    unplaced = found.span is None and found.path
    return f"{message} (at {printable(dotted(found.path))})" if unplaced and found.path else message
