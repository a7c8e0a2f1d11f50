"""`key.path=value` arguments applied to the nodes of a spec, each with the argument as its span."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from kdcli.errors import Diagnostic, Span, SpecError, UsageError, cut_off, did_you_mean
from kdcli.spec.text.nodes import Entry, Mapping, Node, Scalar, Sequence
from kdcli.spec.text.source import compose


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One assignment: path, value, and the spans of both in the argument."""

    path: tuple[str, ...]
    value: Node
    source: str
    key_spans: tuple[Span, ...]

    def rest(self) -> Override:
        """The same override without its first key."""
        return replace(self, path=self.path[1:], key_spans=self.key_spans[1:])


def parse_assignment(assignment: str, number: int) -> Override:
    """Parse `net.backbone.kwargs.out_layers=[4]`; the value is YAML, and an empty one means 'not given'.

    number: which argument it is, from 1; it names the place in messages.
    """
    source = f"argument {number}"

    def span(start: int, end: int) -> Span:
        end = max(end, start + 1)
        return Span(source=source, line=1, column=start + 1, end_column=end + 1, excerpt=assignment)

    key, equals, text = assignment.partition("=")
    if not equals or not key.strip() or any(not part.strip() for part in key.split(".")):
        finding = Diagnostic(
            code="KD207",
            message=f"`{assignment}` is not `key.path=value`",
            help="for example `trainer.max_epoch=10` or `net.backbone.kwargs.out_layers=[4]`",
            span=span(0, len(assignment)),
        )
        raise UsageError(finding)
    offset = len(key) + 1
    one_line = not any(sign in text for sign in "\r\n\x85\u2028\u2029")
    composed = compose(" " * offset + text, source, shown=assignment if one_line else None)
    findings = list(composed.findings)
    if findings:
        raise SpecError(findings)
    value = composed.tree or Scalar(value=None, span=span(offset, len(assignment)))
    spans, start = [], 0
    for part in key.split("."):
        spans.append(span(start, start + len(part)))
        start += len(part) + 1
    path = tuple(part.strip() for part in key.split("."))
    return Override(path=path, value=value, source=source, key_spans=tuple(spans))


def is_argument(source: str) -> bool:
    """Whether the source of a span is an argument of the command line."""
    return re.fullmatch(r"argument \d+", source) is not None


def apply(node: Node | None, override: Override) -> Node:
    """The node with the override applied; missing mappings on the way are created.

    A key the language does not know is found later, like any key of the text, at the argument.
    Raises SpecError where the path cannot be followed.
    """
    if not override.path:
        if node is not None and node.anchor is not None:
            return replace(override.value, anchor=node.anchor)
        return override.value
    segment, span = override.path[0], override.key_spans[0]
    if node is None or (isinstance(node, Scalar) and node.value is None):
        node = Mapping(entries=(), span=span)
    if isinstance(node, Scalar):
        message = f"there is no `{segment}` to set here: {_value(node)} is not a mapping"
        raise SpecError(Diagnostic(code="KD209", message=message, span=span))
    if isinstance(node, Mapping):
        entry = node.find(segment)
        if entry is None and "type" in node.keys() and _names_whole_model(node, override):
            return apply(node, override.rest())
        value = apply(entry.value if entry else None, override.rest())
        written = entry is not None and len(override.path) > 1
        key_span = entry.key_span if entry is not None and written else span
        return node.with_entry(Entry(key=segment, key_span=key_span, value=value))
    index = _index(node, segment, span)
    value = apply(node.items[index], override.rest())
    return replace(node, items=(*node.items[:index], value, *node.items[index + 1 :]))


def _names_whole_model(node: Mapping, override: Override) -> bool:
    # net: {type: ..., kwargs: ...} is a network of one module, whose name is `model` unless given.
    name = node.get("name")
    own = name.value if isinstance(name, Scalar) else "model"
    return override.path[0] in (own, "0") and len(override.path) > 1 and override.path[1] in MODULE_KEYS


MODULE_KEYS = ("name", "type", "kwargs", "prev", "outputs")
"""What a module of a network says."""


def _index(node: Sequence, segment: str, span: Span) -> int:
    count = len(node.items)
    if segment.lstrip("-").isdigit() and segment.isascii() and len(segment) < 9:
        index = int(segment)
        if -count <= index < count:
            return index % count
        message = f"the list has {count} element{'s' if count != 1 else ''}, numbered from 0"
        raise SpecError(Diagnostic(code="KD209", message=message, span=span))
    for key in ("name", "type"):
        names = [_text(item, key) for item in node.items]
        if names.count(segment) == 1:
            return names.index(segment)
        if names.count(segment) > 1:
            places = ", ".join(str(i) for i, name in enumerate(names) if name == segment)
            message = f"several elements are called `{segment}`: use a number ({places})"
            raise SpecError(Diagnostic(code="KD209", message=message, span=span))
    known = [name for item in node.items for name in (_text(item, "name") or _text(item, "type"),) if name]
    help = did_you_mean(segment, known) or "name an element by its number, from 0"
    raise SpecError(
        Diagnostic(code="KD208", message=f"the list has no element `{segment}`", help=help, span=span)
    )


def _text(node: Node, key: str) -> str | None:
    value = node.get(key) if isinstance(node, Mapping) else None
    return str(value.value) if isinstance(value, Scalar) and value.value is not None else None


def _value(node: Scalar) -> str:
    text = node.text or str(node.value)
    return f"`{cut_off(text, 40)}`"
