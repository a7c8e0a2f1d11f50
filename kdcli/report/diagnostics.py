"""Diagnostics in the formats of `validate --format`: text, concise, json, github, sarif."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from rich.text import Text

from kdcli import __version__
from kdcli.codes import CODES
from kdcli.disk import real_path, seen, seen_file
from kdcli.errors import Diagnostic, Span, SpecPath
from kdcli.report.console import as_text, display_width, printable, wrapped

DiagnosticFormat = Literal["text", "concise", "json", "github", "sarif"]
FORMATS: tuple[DiagnosticFormat, ...] = get_args(DiagnosticFormat)


MOST_SHOWN = {"text": 100, "concise": 1000, "json": 1000, "github": 1000, "sarif": 1000}
"""How many diagnostics each format shows of one command: whoever mends the first hundred has mended the rest."""

EXCERPT = 100
"""Cells of a line of the spec that are shown where nothing says how wide the screen is."""

MOST_EXCERPT = 1000
"""Of a longer line, formats for programs hold only what is marked."""

FAR = 8
"""A line so many times longer than its room is cut before its characters are measured."""

TAB_STOP = 4
CUT = "…"
STYLES = {"error": "bold red", "warning": "bold yellow"}
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(
    diagnostics: Sequence[Diagnostic],
    format: DiagnosticFormat = "text",
    *,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The diagnostics in one format, each file's by line, without repetitions; ends in a newline if not empty.

    colour and width (of the screen, None for a file or a pipe) matter to `text` only. Without diagnostics only `json`
    and `sarif` give text. Of very many the first are shown, errors before warnings, with how many are left out.
    """
    listed = ordered(diagnostics)
    shown, rest = parted(listed, MOST_SHOWN[format])
    if format == "text":
        return with_excerpts(shown, rest, colour=colour, width=width)
    if format == "concise":
        return concise(shown) + (f"and {count_line(rest)} more\n" if rest else "")
    if format == "json":
        return as_json(shown, rest)
    return {"github": github, "sarif": sarif}[format](shown)


def parted(listed: list[Diagnostic], most: int) -> tuple[list[Diagnostic], list[Diagnostic]]:
    """So many of the diagnostics, in their order, and the others; a warning never takes an error's place."""
    if len(listed) <= most:
        return listed, []
    by_weight = sorted(range(len(listed)), key=lambda place: listed[place].severity != "error")
    chosen = frozenset(by_weight[:most])
    rest = [diagnostic for place, diagnostic in enumerate(listed) if place not in chosen]
    return [listed[place] for place in sorted(chosen)], rest


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


def in_repository(span: Span) -> str | None:
    """As `file_of`, but relative to the root of the Git repository around the working directory, as hosts want it."""
    file = file_of(span)
    root = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if seen(folder / ".git")), None)
    if file is None or root is None:
        return file
    path = real_path(Path.cwd() / file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


def file_of(span: Span) -> str | None:
    """The path of a span's file, relative to the working directory if it lies inside.

    None for standard input and arguments.
    """
    if not seen_file(span.source):
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


# for people


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


def with_excerpts(
    diagnostics: Sequence[Diagnostic],
    rest: Sequence[Diagnostic] = (),
    *,
    colour: bool = False,
    width: int | None = None,
) -> str:
    """The diagnostics with the lines of the spec, and how many there are.

    width: of the screen: lines of the spec are cut to it, messages wrapped between words; None for a file or a pipe,
    where lines of the spec are cut to EXCERPT cells. rest: those that are only counted.
    """
    if not diagnostics:
        return ""
    if len(diagnostics) == 1:
        return as_text(Text("\n").join(_described(diagnostics[0], width)), colour=colour)
    lines = [line for diagnostic in diagnostics for line in [*_described(diagnostic, width), Text("")]]
    count = count_line([*diagnostics, *rest])
    shown = f" (the first {len(diagnostics)} are shown)" if rest else ""
    return as_text(Text("\n").join([*lines, Text(count + shown)]), colour=colour)


def _described(diagnostic: Diagnostic, screen: int | None) -> Iterator[Text]:
    style = STYLES[diagnostic.severity]
    width = EXCERPT if screen is None else screen
    head = Text.assemble(
        (place(diagnostic), "bold"),
        (f"{diagnostic.severity} {diagnostic.code}", style),
        f": {tail(diagnostic)}",
    )
    yield wrapped(head, screen, "    ")
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
        yield wrapped(Text.assemble(("  help: ", "bold green"), printable(first)), screen, " " * 8)
        # What is meant to be pasted keeps its own indentation.
        yield from (Text("        " + printable(line)) for line in rest)


def _margin(diagnostic: Diagnostic) -> int:
    spans = [span for span in (diagnostic.span, diagnostic.span and diagnostic.span.written) if span]
    return max((len(str(span.line)) for span in spans), default=0)


def _excerpt(span: Span, margin: int, width: int, style: str) -> Iterator[Text]:
    before, marked, after = _window(span, max(8, width - margin - 5))
    line = f"{span.line:>{margin}}"
    yield Text.assemble((f"  {line} | ", "blue"), before + marked + after)
    carets = "^" * max(1, display_width(marked))
    yield Text.assemble((f"  {' ' * margin} | ", "blue"), " " * display_width(before), (carets, style))


def _window(span: Span, room: int) -> tuple[str, str, str]:
    """The line in three parts (before, marked, after), cut to `room` cells around the marked one."""
    excerpt = span.excerpt.rstrip("\r\n")
    start = min(max(0, span.column - 1), len(excerpt))
    end = min(max(start, span.end_column - 1), len(excerpt))
    if len(excerpt) > FAR * room:
        # A line may have millions of characters; of those so far off none is shown.
        first, last = max(0, start - 2 * room), min(len(excerpt), end + 2 * room, start + 4 * room)
        excerpt, end, start = excerpt[first:last], min(end, last) - first, start - first
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


# for programs


def as_json(diagnostics: Sequence[Diagnostic], rest: Sequence[Diagnostic] = ()) -> str:
    """One JSON object, indented, ASCII only.

        {"kdcli": "0.2.0", "errors": 1, "warnings": 0, "diagnostics": [
            {"code": "KD203", "severity": "error", "message": ..., "help": ... | null, "path": ["net", 0] | null,
             "span": {"source", "line", "column", "end_column", "excerpt", "written": span | null} | null}]}

    Lines and columns count from 1 in code points; end_column is one past the end. `errors` and `warnings` count
    those of `rest` too, which are not listed.
    """
    errors = sum(diagnostic.severity == "error" for diagnostic in (*diagnostics, *rest))
    document = {
        "kdcli": __version__,
        "errors": errors,
        "warnings": len(diagnostics) + len(rest) - errors,
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
        "excerpt": _short(span),
        "written": _span(span.written),
    }


def _short(span: Span) -> str:
    """The line that a span is in; of a very long one only what is marked."""
    if len(span.excerpt) <= MOST_EXCERPT:
        return span.excerpt
    return span.excerpt[span.column - 1 : span.end_column - 1][:MOST_EXCERPT]


def github(diagnostics: Sequence[Diagnostic]) -> str:
    """GitHub workflow commands, which annotate the lines of a pull request.

    `::error file=...,line=...,col=...,endColumn=...,title=KD203::message` for each diagnostic.
    """
    return "".join(_command(diagnostic) for diagnostic in diagnostics)


def _command(diagnostic: Diagnostic) -> str:
    properties: dict[str, str | int] = {}
    message = headline(diagnostic)
    span = diagnostic.span
    file = in_repository(span) if span else None
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


def sarif(diagnostics: Sequence[Diagnostic]) -> str:
    """A SARIF 2.1.0 log for code scanning; its rules are the codes that occur, with their explanations.

    Columns are code points from 1, the end column one past the end (SARIF 3.30). Files in the repository of the
    working directory are relative to its root; diagnostics from standard input or arguments carry their path into
    the spec as a logical location.
    """
    codes = list(dict.fromkeys(diagnostic.code for diagnostic in diagnostics))
    driver = {"name": "kdcli", "version": __version__, "rules": [_rule(code) for code in codes]}
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, codes.index(diagnostic.code)) for diagnostic in diagnostics],
    }
    document = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
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
    file = in_repository(span)
    if file is None:
        return None
    uri = Path(file).as_uri() if Path(file).is_absolute() else quote(file)
    region: dict[str, Any] = {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.line,
        "endColumn": max(span.column, span.end_column),
        "snippet": {"text": _short(span)},
    }
    return {"artifactLocation": {"uri": uri}, "region": region}
