"""Text: the lines of a spec, places in them, and what keeps a text from being read at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from kdcli.errors import Diagnostic, Span, SpecError

MAX_CHARACTERS = 4_000_000
MAX_DEPTH = 64

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PROPERTIES = re.compile(r"(?:[&!][^\s,\[\]{}]*\s+)+")


def decode(data: bytes, source: str) -> str:
    """Bytes of a spec as text; a byte that is not UTF-8 is a finding at its place."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        span = Span(source=source, line=1, column=1, end_column=2, excerpt="")
        raise SpecError(
            Diagnostic(code="KD103", message="the file is UTF-16", help="save it as UTF-8", span=span)
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        text = before + data[error.start :].decode("utf-8", "replace")
        lines = _BREAK.split(text)
        inside = _BREAK.split(before)
        line, column = len(inside), len(inside[-1]) + 1
        span = Span(source=source, line=line, column=column, end_column=column + 1, excerpt=lines[line - 1])
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise SpecError(
            Diagnostic(code="KD103", message=message, help="save the file as UTF-8", span=span)
        ) from None


@dataclass(frozen=True)
class Text:
    """A text and its name; `shown` is the line that excerpts show instead of its own."""

    text: str
    source: str
    shown: str | None = None

    @cached_property
    def lines(self) -> list[str]:
        """The lines as the parser counts them."""
        return _BREAK.split(self.text)

    def at(self, line: int, column: int, end_line: int | None = None, end_column: int = 0) -> Span:
        """A place by lines and columns from 0; what ends on another line is marked to this line's end."""
        line = min(line, len(self.lines) - 1)
        excerpt = self.lines[line]
        column = min(column, len(excerpt))
        if end_line == line and end_column > column:
            end = min(end_column, len(excerpt))
        else:
            end = len(excerpt.rstrip())
        return Span(
            source=self.source,
            line=line + 1,
            column=column + 1,
            end_column=max(end, column + 1) + 1,
            excerpt=self.shown if self.shown is not None else excerpt,
        )

    def span(self, start: Any, end: Any) -> Span:
        """The place between two marks of the parser."""
        line, column = start.line, start.column
        if line < len(self.lines) and self.lines[line][column : column + 1] in ("&", "!"):
            properties = _PROPERTIES.match(self.lines[line], column)
            if properties is not None and properties.end() < len(self.lines[line]):
                column = properties.end()
        return self.at(line, column, end.line, end.column)

    def event_span(self, event: Any) -> Span:
        """The place of a parser event, less its anchor and tag."""
        return self.span(event.start_mark, event.end_mark)

    def unreadable(self) -> Diagnostic | None:
        """What no parser should see: too much, or control characters."""
        if len(self.text) > MAX_CHARACTERS:
            message = f"the text has more than {MAX_CHARACTERS:,} characters"
            return Diagnostic(code="KD109", message=message, span=self.at(0, 0))
        bad = _CONTROL.search(self.text)
        if bad is None:
            return None
        before = _BREAK.split(self.text[: bad.start()])
        line, column = len(before) - 1, len(before[-1])
        message = f"control character U+{ord(bad[0]):04X}"
        span = self.at(line, column, line, column + 1)
        help = "delete it, or escape it in quotes"
        return Diagnostic(code="KD104", message=message, span=span, help=help)

    def syntax(self, error: yaml.YAMLError) -> Diagnostic:
        """The parser's complaint in plain words."""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        context = getattr(error, "context", None) or ""
        if mark is None:
            return Diagnostic(code="KD101", message=f"not YAML: {problem}", span=self.at(0, 0))
        line, column = mark.line, mark.column
        last = max((i for i, text in enumerate(self.lines) if text.strip()), default=0)
        if line > last:
            line, column = last, len(self.lines[last].rstrip())
        here = self.lines[line][column : column + 1]
        code, help = "KD101", None
        if here == "\t" or "\t" in self.lines[line][: len(self.lines[line]) - len(self.lines[line].lstrip())]:
            code, problem, help = "KD102", "a tab indents this line", "YAML is indented with spaces"
        elif "quoted scalar" in context and "end of stream" in problem:
            start = error.context_mark  # type: ignore[attr-defined]
            line, column, problem = start.line, start.column, "this quote is never closed"
        elif "mapping values are not allowed" in problem:
            problem, help = "a second `:` on this line", "quote the value, or start a new line"
        elif "cannot start any token" in problem:
            problem, help = f"no value can start with `{here}`", "put the value in quotes"
        elif "maximum nesting depth" in problem:  # libyaml's own limit, which it meets while it looks ahead
            code, problem = "KD108", f"nested deeper than {MAX_DEPTH} levels"
        elif "flow" in context:
            problem, help = "a `[` or `{` is not closed properly", "look for a missing comma or bracket"
            opened = getattr(error, "context_mark", None)
            at_end = column >= len(self.lines[line].rstrip())
            if opened is not None and (opened.line < line or at_end):
                help = f"{help}; noticed in line {line + 1}" if opened.line < line else help
                line, column = opened.line, opened.column
        elif "block" in context or "could not find expected ':'" in problem:
            problem, help = f"not YAML: {problem}", "check this line's indentation and its `key: value` form"
        else:
            problem = f"not YAML: {problem}"
        span = self.at(line, column, line, column + 1)
        return Diagnostic(code=code, message=problem, help=help, span=span)
