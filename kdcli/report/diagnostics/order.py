"""The order findings are told in, and how a place is spelled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdcli.errors import Diagnostic, Span, SpecPath


def ordered(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Without repetitions; files as they came, within a file by line; findings without a place stay first."""
    unique = list(dict.fromkeys(diagnostics))
    sources: dict[str, int] = {}
    for found in unique:
        sources.setdefault(_source(found), len(sources))

    def key(found: Diagnostic) -> tuple[int, int, int]:
        span = found.span
        return sources[_source(found)], span.line if span else 0, span.column if span else 0

    return sorted(unique, key=key)


def count_line(diagnostics: Sequence[Diagnostic]) -> str:
    """`2 errors, 1 warning`."""
    counts = Counter(found.severity for found in diagnostics)
    return ", ".join(
        f"{counts[severity]} {severity}{'' if counts[severity] == 1 else 's'}"
        for severity in ("error", "warning")
        if counts[severity]
    )


def dotted(path: SpecPath) -> str:
    """`mimic.jobs.job0.student.mimic_name[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def file_of(span: Span) -> str | None:
    """The file a span lies in, relative to the working directory where it is inside; None for standard input
    and arguments."""
    if not os.path.isfile(span.source):
        return None
    path = Path(span.source)
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return path.as_posix()
    return path.as_posix()


def _source(found: Diagnostic) -> str:
    return found.span.source if found.span else ""
