"""A YAML document as frozen nodes that know where each key and value was written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from kdcli.errors import Span, cut_off

Plain = str | int | float | bool | None

# YAML 1.2 core schema; everything else that is written plainly is a string.
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
MOST_DIGITS = 1000


class NumberTooLong(ValueError):
    """Raised for an integer with more digits than anything in a spec can mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One value; `text` is the source text, `plain` whether it had no quotes."""

    value: Plain
    span: Span
    text: str = ""
    plain: bool = True
    anchor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    span: Span
    anchor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key of a mapping with its value."""

    key: str
    key_span: Span
    value: Node


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A mapping in written order.

    repeated: entries whose key stood there before. used: of a whole text, the anchors that an alias names.
    """

    entries: tuple[Entry, ...]
    span: Span
    anchor: str | None = None
    repeated: tuple[Entry, ...] = ()
    used: frozenset[str] = frozenset()

    @cached_property
    def _by_key(self) -> dict[str, Entry]:
        return {entry.key: entry for entry in reversed(self.entries)}

    def find(self, key: str) -> Entry | None:
        """The entry with this key."""
        return self._by_key.get(key)

    def get(self, key: str) -> Node | None:
        """The value under this key."""
        entry = self.find(key)
        return None if entry is None else entry.value

    def keys(self) -> list[str]:
        """All keys in order."""
        return [entry.key for entry in self.entries]

    def with_entry(self, new: Entry) -> Mapping:
        """This mapping with one entry replaced in its place, or added at the end."""
        if self.find(new.key) is None:
            return replace(self, entries=(*self.entries, new))
        return replace(self, entries=tuple(new if e.key == new.key else e for e in self.entries))

    def without(self, *keys: str) -> Mapping:
        """This mapping without some keys."""
        return replace(self, entries=tuple(e for e in self.entries if e.key not in keys))


Node = Scalar | Sequence | Mapping


def plain_value(text: str) -> Plain:
    """The value of an unquoted scalar by YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        if len(text) > MOST_DIGITS:
            raise NumberTooLong(text)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)
    if _FLOAT.fullmatch(text):
        return float(text)
    special = _SPECIAL.fullmatch(text)
    if special is None:
        return text
    if text.lower().endswith("nan"):
        return math.nan
    return -math.inf if special[1] == "-" else math.inf


def to_data(node: Node) -> Any:
    """The node as plain dicts, lists and scalars."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [to_data(item) for item in node.items]
    return {entry.key: to_data(entry.value) for entry in node.entries}


def used_at(node: Node, use: Span, keep: frozenset[str] = frozenset()) -> Node:
    """Copy of the node with `use` as its span; the old span is kept as `written`.

    keep: sources whose spans stay as they are (arguments: a finding there points at the argument).
    """

    def moved(span: Span) -> Span:
        if span.source in keep:
            return span
        return replace(use, written=span.written or span)

    if isinstance(node, Scalar):
        return replace(node, span=moved(node.span), anchor=None)
    if isinstance(node, Sequence):
        return replace(
            node,
            items=tuple(used_at(item, use, keep) for item in node.items),
            span=moved(node.span),
            anchor=None,
        )
    return replace(
        node,
        entries=tuple(
            Entry(key=e.key, key_span=moved(e.key_span), value=used_at(e.value, use, keep))
            for e in node.entries
        ),
        span=moved(node.span),
        anchor=None,
        repeated=(),
    )


def kind(node: Node) -> str:
    """The name of a node's kind in messages."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    return describe(node.value)


def describe(value: Any) -> str:
    """A value in plain words: "the text 'on'", "the number 3.5", "a list"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {cut_off(value, 40)!r}"
    if isinstance(value, (int, float)):
        return f"the number {cut_off(repr(value), 40)}"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list"


def leaves(data: Any, name: str = "", *, every_list: bool = False) -> Iterator[tuple[str, Any]]:
    """The values of plain data by dotted key, such as `trainer.optimizer.kwargs.lr`.

    A list of plain values is one value unless `every_list` is set; so is what is empty.
    """
    inner: dict[Any, Any] = {}
    if isinstance(data, dict):
        inner = data
    elif isinstance(data, list | tuple) and (
        every_list or any(isinstance(item, dict | list | tuple) for item in data)
    ):
        inner = dict(enumerate(data))
    if not inner:
        yield name, data
    for key, item in inner.items():
        yield from leaves(item, f"{name}.{key}" if name else str(key), every_list=every_list)
