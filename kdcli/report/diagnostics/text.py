"""Diagnostics for people: one line each, or with the line of the spec and carets under what is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.text import Text

from kdcli.errors import Diagnostic, Span, SpecPath
from kdcli.report.console import as_text, display_width, printable


def ordered(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The diagnostics without repetitions: files in order of appearance, within a file by line."""
    unique = list(dict.fromkeys(diagnostics))
    sources: dict[str, int] = {}
    for diagnostic in unique:
        sources.setdefault(_source(diagnostic), len(sources))

    def key(diagnostic: Diagnostic) -> tuple[int, int, int]:
        span = diagnostic.span
        return sources[_source(diagnostic)], span.line if span else 0, span.column if span else 0

    return sorted(unique, key=key)


def count_line(diagnostics: Sequence[Diagnostic]) -> str:
    """How many there are of each severity: `2 errors, 1 warning`."""
    counts = Counter(diagnostic.severity for diagnostic in diagnostics)
    return ", ".join(
        f"{counts[severity]} {severity}{'' if counts[severity] == 1 else 's'}"
        for severity in ("error", "warning")
        if counts[severity]
    )


def dotted(path: SpecPath) -> str:
    """A path into the spec as text: `mimic.jobs.job0.student.mimic_name[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def file_of(span: Span) -> str | None:
    """The path of a span's file, relative to the working directory if it lies inside.

    None for standard input and arguments.
    """
    if not os.path.isfile(span.source):
        return None
    path = Path(span.source)
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return path.as_posix()
    return path.as_posix()


def _source(diagnostic: Diagnostic) -> str:
    return diagnostic.span.source if diagnostic.span else ""


def concise(diagnostics: Sequence[Diagnostic]) -> str:
    """A line for each diagnostic, for editors and grep: `path:line:col: error KD203: message`."""
    return "".join(f"{headline(diagnostic)}\n" for diagnostic in diagnostics)


def headline(diagnostic: Diagnostic) -> str:
    """A diagnostic in one line: `path:line:col: error KD203: message`."""
    return f"{place(diagnostic)}{diagnostic.severity} {diagnostic.code}: {tail(diagnostic)}"


def place(diagnostic: Diagnostic) -> str:
    """`path:line:col: ` of a diagnostic, or "" where no line is known."""
    span = diagnostic.span
    return f"{printable(span.source)}:{span.line}:{span.column}: " if span else ""


def tail(diagnostic: Diagnostic) -> str:
    """A diagnostic's message in one line, with the path into the spec where no line is known."""
    message = printable(" ".join(diagnostic.message.split("\n")))
    unplaced = diagnostic.span is None and diagnostic.path
    return f"{message} (at {printable(dotted(diagnostic.path))})" if unplaced and diagnostic.path else message


TAB_STOP = 4
CUT = "…"
STYLES = {"error": "bold red", "warning": "bold yellow"}


def text(diagnostics: Sequence[Diagnostic], *, colour: bool = False, width: int = 100) -> str:
    """The diagnostics with the lines of the spec, and how many there are; long lines are cut to `width`."""
    if not diagnostics:
        return ""
    if len(diagnostics) == 1:
        return as_text(Text("\n").join(_described(diagnostics[0], width)), colour=colour)
    lines = [line for diagnostic in diagnostics for line in [*_described(diagnostic, width), Text("")]]
    return as_text(Text("\n").join([*lines, Text(count_line(diagnostics))]), colour=colour)


def _described(diagnostic: Diagnostic, width: int) -> Iterator[Text]:
    style = STYLES[diagnostic.severity]
    yield Text.assemble(
        (place(diagnostic), "bold"),
        (f"{diagnostic.severity} {diagnostic.code}", style),
        f": {tail(diagnostic)}",
    )
    margin = _margin(diagnostic)
    if diagnostic.span is not None:
        yield from _excerpt(diagnostic.span, margin, width, style)
        written = diagnostic.span.written
        if written is not None:
            place_written = f"{printable(written.source)}:{written.line}:{written.column}"
            yield Text.assemble((f"  written here: {place_written}", "bold"))
            yield from _excerpt(written, margin, width, "bold blue")
    if diagnostic.help:
        first, *rest = diagnostic.help.split("\n")
        yield Text.assemble(("  help: ", "bold green"), printable(first))
        # What is meant to be pasted keeps its own indentation.
        yield from (Text("        " + printable(line)) for line in rest)


def _margin(diagnostic: Diagnostic) -> int:
    spans = [span for span in (diagnostic.span, diagnostic.span and diagnostic.span.written) if span]
    return max((len(str(span.line)) for span in spans), default=0)


def _excerpt(span: Span, margin: int, width: int, style: str) -> Iterator[Text]:
    before, marked, after = _window(span, max(20, width - margin - 5))
    line = f"{span.line:>{margin}}"
    yield Text.assemble((f"  {line} | ", "blue"), before + marked + after)
    carets = "^" * max(1, display_width(marked))
    yield Text.assemble((f"  {' ' * margin} | ", "blue"), " " * display_width(before), (carets, style))


def _window(span: Span, room: int) -> tuple[str, str, str]:
    """The line in three parts (before, marked, after), cut to `room` cells around the marked one."""
    excerpt = span.excerpt.rstrip("\r\n")
    start = min(max(0, span.column - 1), len(excerpt))
    end = min(max(start, span.end_column - 1), len(excerpt))
    before = _expanded(excerpt[:start], 0)
    marked = _expanded(excerpt[start:end], display_width(before))
    after = _expanded(excerpt[end:], display_width(before + marked)).rstrip()
    if display_width(before + marked + after) <= room:
        return before, marked, after
    marked = _cut_end(marked, room * 3 // 4)
    left = room - max(1, display_width(marked))
    # The part before gives way to at least a third of the rest, so that what follows stays readable too.
    before = _cut_start(before, left - min(display_width(after), left // 3))
    return before, marked, _cut_end(after, left - display_width(before))


def _expanded(part: str, column: int) -> str:
    """Tabs as spaces up to the next stop, counted from `column`; control characters made visible."""
    expanded = ""
    for char in part:
        if char == "\t":
            expanded += " " * (TAB_STOP - (column + display_width(expanded)) % TAB_STOP)
        else:
            expanded += printable(char)
    return expanded


def _cut_end(part: str, room: int) -> str:
    if display_width(part) <= room:
        return part
    while part and display_width(part) > room - 1:
        part = part[: min(len(part) - 1, room)]
    return part + CUT if room > 0 else ""


def _cut_start(part: str, room: int) -> str:
    if display_width(part) <= room:
        return part
    while part and display_width(part) > room - 1:
        part = part[max(1, len(part) - room) :]
    return CUT + part if room > 0 else ""
