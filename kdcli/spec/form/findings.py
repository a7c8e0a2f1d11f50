"""Findings: errors and warnings collected on the way through a text."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdcli.errors import Diagnostic, Span


@dataclass(slots=True)
class Findings:
    """A list that takes findings by their parts."""

    findings: list[Diagnostic] = field(default_factory=list)

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Something wrong."""
        self.findings.append(Diagnostic(code=code, message=message, span=span, help=help))

    def warn(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Something worth a warning."""
        finding = Diagnostic(code=code, message=message, span=span, help=help, severity="warning")
        self.findings.append(finding)
