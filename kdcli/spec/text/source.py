"""YAML text to nodes with spans, all findings collected, bounded in depth and size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import yaml

from kdcli.errors import Diagnostic, Span, SpecError
from kdcli.spec.text.nodes import Entry, Mapping, Node, NumberTooLong, Scalar, Sequence, plain_value, used_at

MAX_NODES = 100_000
_LOADER: Any = getattr(yaml, "CLoader", yaml.SafeLoader)
_CORE_TAGS = {
    f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")
}

Include = Callable[[str, Span, "Budget"], Node]


TORCHDISTILL_TAGS = ("!import_call", "!import_call_method", "!import_get", "!getattr", "!setattr", "!join")
"""Tags of another tool's files, which are sometimes tried here."""

MAX_CHARACTERS = 4_000_000
MAX_BYTES = 4 * MAX_CHARACTERS
"""More bytes than these are more characters, in UTF-8."""

MAX_DEPTH = 64

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PROPERTIES = re.compile(r"(?:[&!][^\s,\[\]{}]*\s+)+")


def decode(data: bytes, source: str) -> str:
    """Bytes of a spec as text; a byte that is not UTF-8 is a finding at its place, more than MAX_BYTES are one too."""
    if len(data) > MAX_BYTES:
        span = Span(source=source, line=1, column=1, end_column=2, excerpt="")
        message = f"the text has more than {MAX_CHARACTERS:,} characters"
        raise SpecError(Diagnostic(code="KD109", message=message, span=span, help="is this a spec?"))
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
        """The finding for a text that no parser should see: too long, or with control characters; else None."""
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
        """The finding for a syntax error that the parser reports, in plain words."""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        context = getattr(error, "context", None) or ""
        if mark is None:
            return Diagnostic(code="KD101", message=f"not YAML: {problem}", span=self.at(0, 0))
        line, column = mark.line, mark.column
        last = max((i for i, text in enumerate(self.lines) if text.strip()), default=0)
        if line > last:
            line, column = last, len(self.lines[last].rstrip())
        character = self.lines[line][column : column + 1]
        code, help = "KD101", None
        if (
            character == "\t"
            or "\t" in self.lines[line][: len(self.lines[line]) - len(self.lines[line].lstrip())]
        ):
            code, problem, help = "KD102", "a tab indents this line", "YAML is indented with spaces"
        elif "quoted scalar" in context and "end of stream" in problem:
            start = error.context_mark  # type: ignore[attr-defined]
            line, column, problem = start.line, start.column, "this quote is never closed"
        elif "quoted scalar" in context and ("escape" in problem or "hexdecimal" in problem):
            problem = "in double quotes a backslash begins an escape, as in `\\n`"
            help = "put it in single quotes, where a backslash is one: 'C:\\images\\train'"
        elif "mapping values are not allowed" in problem:
            problem, help = "a second `:` on this line", "quote the value, or start a new line"
        elif "cannot start any token" in problem:
            problem, help = f"no value can start with `{character}`", "put the value in quotes"
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


@dataclass(slots=True)
class Budget:
    """How many more nodes a text with its includes and aliases may expand to."""

    nodes: int = MAX_NODES

    def spend(self, count: int, span: Span) -> None:
        """Subtract nodes; raises for a text that needs more than are left."""
        self.nodes -= count
        if self.nodes < 0:
            raise _Stop(
                Diagnostic(
                    code="KD109",
                    message=f"the spec expands to more than {MAX_NODES:,} values",
                    help="aliases of aliases multiply: write the block once where it is needed",
                    span=span,
                )
            )


class _Stop(Exception):
    """Raised where reading can't go on after a finding."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


@dataclass(slots=True)
class _Anchored:
    node: Node
    size: int
    height: int


@dataclass(frozen=True, slots=True)
class Composed:
    """The nodes of a text (None: empty or unreadable) and its syntax errors."""

    tree: Node | None
    findings: tuple[Diagnostic, ...]


def compose(
    text: str,
    source: str,
    *,
    include: Include | None = None,
    budget: Budget | None = None,
    top: Callable[[str, Node], Node] | None = None,
    keep: frozenset[str] = frozenset(),
    shown: str | None = None,
) -> Composed:
    """Read one YAML document.

    include: turns the text after `!include` into nodes. top: may replace the value of a top-level
    key before an alias can refer to it. keep: sources whose spans aliases leave alone. shown: the
    line that excerpts show instead of the text's own (arguments).
    """
    place = Text(text.removeprefix("\ufeff"), source, shown)
    return _Composer(place, include, budget or Budget(), top, keep).run()


@dataclass(slots=True)
class _Composer:
    place: Text
    include: Include | None
    budget: Budget
    top: Callable[[str, Node], Node] | None
    keep: frozenset[str]
    findings: list[Diagnostic] = field(default_factory=list)
    anchors: dict[str, _Anchored] = field(default_factory=dict)
    open_anchors: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    events: Iterator[Any] = field(default_factory=lambda: iter(()))

    def run(self) -> Composed:
        tree: Node | None = None
        unreadable = self.place.unreadable()
        if unreadable is not None:
            return Composed(None, (unreadable,))
        try:
            self.events = yaml.parse(self.place.text, Loader=_LOADER)
            tree = self._document()
        except _Stop as stop:
            self.findings.append(stop.diagnostic)
        except yaml.YAMLError as error:
            self.findings.append(self.place.syntax(error))
        if isinstance(tree, Mapping):
            tree = replace(tree, used=frozenset(self.used))
        return Composed(tree, tuple(self.findings))

    def _find(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.findings.append(Diagnostic(code=code, message=message, span=span, help=help))

    # events to nodes

    def _document(self) -> Node | None:
        tree: Node | None = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    span = self.place.event_span(event)
                    raise _Stop(
                        Diagnostic(
                            code="KD110",
                            message="a second YAML document starts here",
                            help="a spec is one document: remove the `---`",
                            span=span,
                        )
                    )
                tree, _ = self._node(next(self.events), 0)
        return tree

    def _node(self, event: Any, depth: int) -> tuple[Node, int]:
        """One node and its height."""
        span = self.place.event_span(event)
        if depth > MAX_DEPTH:
            raise _Stop(Diagnostic(code="KD108", message=f"nested deeper than {MAX_DEPTH} levels", span=span))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, span, depth)
        self.budget.spend(1, span)
        before = self.budget.nodes
        anchor = event.anchor
        if anchor is not None:
            self.open_anchors.add(anchor)
        node: Node
        height = 0
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, span)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._collection_tag(event, "seq")
            node, height = self._sequence(span, event, depth)
        else:
            self._collection_tag(event, "map")
            node, height = self._mapping(span, event, depth)
        if anchor is not None:
            self.open_anchors.discard(anchor)
            node = replace(node, anchor=anchor)
            self.anchors[anchor] = _Anchored(node, before - self.budget.nodes + 1, height)
        return node, height

    def _alias(self, name: str | None, span: Span, depth: int) -> tuple[Node, int]:
        assert name is not None
        nothing = Scalar(value=None, span=span)
        self.used.add(name)
        if name in self.open_anchors:
            self._find("KD107", f"alias `*{name}` stands inside its own anchor", span)
            return nothing, 0
        known = self.anchors.get(name)
        if known is None:
            close = ", ".join(f"`&{anchor}`" for anchor in list(self.anchors)[:12])
            help = f"an anchor is defined before it is used; known here: {close}" if close else None
            self._find("KD107", f"no anchor `&{name}` before this alias", span, help)
            return nothing, 0
        if depth + known.height > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels through this alias"
            raise _Stop(Diagnostic(code="KD108", message=message, span=span))
        self.budget.spend(known.size, span)
        return used_at(known.node, span, self.keep), known.height

    def _sequence(self, span: Span, start: Any, depth: int) -> tuple[Sequence, int]:
        items: list[Node] = []
        height = 0
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            item, below = self._node(event, depth + 1)
            items.append(item)
            height = max(height, below + 1)
        if start.flow_style:
            span = self.place.span(start.start_mark, event.end_mark)
        return Sequence(items=tuple(items), span=span), height

    def _mapping(self, span: Span, start: Any, depth: int) -> tuple[Mapping, int]:
        entries: dict[str, Entry] = {}
        merged: list[Entry] = []
        repeated: list[Entry] = []
        height = 0
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_node, _ = self._node(event, depth + 1)
            value, below = self._node(next(self.events), depth + 1)
            height = max(height, below + 1)
            if not isinstance(key_node, Scalar):
                self._find("KD111", "a key must be a name, not a list or a mapping", key_node.span)
                continue
            if key_node.plain and key_node.text == "<<":
                merged += self._merge(value)
                continue
            if key_node.text == "" and key_node.plain:
                self._find("KD111", "a key is missing before this `:`", key_node.span)
                continue
            if depth == 0 and self.top is not None:
                value = self._replace_top(key_node.text, value)
            entry = Entry(key=key_node.text, key_span=key_node.span, value=value)
            first = entries.get(entry.key)
            if first is None:
                entries[entry.key] = entry
            else:
                repeated.append(entry)
                if depth > 0:
                    self.findings.append(repeated_key(entry, first))
        for entry in merged:
            entries.setdefault(entry.key, entry)
        if start.flow_style:
            span = self.place.span(start.start_mark, event.end_mark)
        node = Mapping(entries=tuple(entries.values()), span=span, repeated=tuple(repeated))
        return node, height

    def _merge(self, value: Node) -> list[Entry]:
        sources = value.items if isinstance(value, Sequence) else (value,)
        entries: list[Entry] = []
        for source in sources:
            if isinstance(source, Mapping):
                entries += source.entries
            else:
                help = "write `<<: *name` where `&name` marks a mapping"
                self._find("KD112", "`<<` merges mappings only", source.span, help)
        return entries

    def _replace_top(self, key: str, value: Node) -> Node:
        assert self.top is not None
        new = self.top(key, value)
        if new is not value:
            for anchor, node, size, height in _anchored(new):
                self.anchors[anchor] = _Anchored(node, size, height)
        return new

    # scalars

    def _scalar(self, event: Any, span: Span) -> Node:
        text: str = event.value
        tag: str | None = event.tag
        if tag == "!include":
            if self.include is None:
                self._find("KD114", "`!include` cannot be used here", span)
                return Scalar(value=None, span=span, text=text)
            try:
                return self.include(text, span, self.budget)
            except SpecError as error:
                self.findings += error.diagnostics
                return Scalar(value=None, span=span, text=text)
        if tag is None or tag == "!":
            plain = bool(event.implicit[0]) and tag is None
            try:
                value = plain_value(text) if plain else text
            except NumberTooLong:
                self._find("KD118", "a number of so many digits", span, "quote it if it is a name")
                value = text
            return Scalar(value=value, span=span, text=text, plain=plain)
        name = _CORE_TAGS.get(tag)
        if name is None or name in ("map", "seq"):
            self._unknown_tag(tag, event)
            return Scalar(value=None, span=span, text=text)
        return Scalar(value=self._tagged(name, text, span), span=span, text=text, plain=False)

    def _tagged(self, name: str, text: str, span: Span) -> str | int | float | bool | None:
        if name == "str":
            return text
        try:
            value = plain_value(text)
        except NumberTooLong:
            value = text
        if name == "float" and type(value) is int and abs(value) < 10**300:
            value = float(value)
        expected = {"int": int, "float": float, "bool": bool, "null": type(None)}[name]
        if type(value) is not expected:
            self._find("KD118", f"`{text}` is not a value of `!!{name}`", span)
        return value

    def _collection_tag(self, event: Any, name: str) -> None:
        tuple_of = "tag:yaml.org,2002:python/tuple" if name == "seq" else None
        # A tuple is a list here: the tag says nothing else and runs nothing.
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{name}", tuple_of):
            self._unknown_tag(event.tag, event)

    def _unknown_tag(self, tag: str, event: Any) -> None:
        shown = tag.replace("tag:yaml.org,2002:", "!!")
        start = event.start_mark
        span = self.place.at(start.line, start.column, start.line, start.column + len(shown))
        help = "a spec is data: the only tags are `!include` and YAML's own (`!!str`, `!!int`, ...)"
        if tag in TORCHDISTILL_TAGS:
            help = "torchdistill's files run code. kdcli's language is United-Perception's: `kdcli init` lists samples"
        self._find("KD106", f"unknown tag `{shown}`", span, help)


def repeated_key(entry: Entry, first: Entry) -> Diagnostic:
    """The finding for a key that a mapping has twice."""
    return Diagnostic(
        code="KD105",
        message=f"`{entry.key}` stands here a second time",
        help=f"the first is in line {first.key_span.line}; keep one of them",
        span=entry.key_span,
    )


def _anchored(node: Node) -> list[tuple[str, Node, int, int]]:
    """Every anchored node below and at this one, with its size and height."""
    found: list[tuple[str, Node, int, int]] = []

    def walk(node: Node) -> tuple[int, int]:
        children = (
            ()
            if isinstance(node, Scalar)
            else node.items
            if isinstance(node, Sequence)
            else tuple(e.value for e in node.entries)
        )
        size, height = 1, 0
        for child in children:
            child_size, child_height = walk(child)
            size += child_size + isinstance(node, Mapping)
            height = max(height, child_height + 1)
        if node.anchor is not None:
            found.append((node.anchor, node, size, height))
        return size, height

    walk(node)
    return found
