"""Which numbers are allowed: ranges written beside the types of arguments; no NaN, infinity or more than 64 bits."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from kdcli.errors import Diagnostic, Span
from kdcli.spec.text.nodes import Mapping, Node, Scalar, Sequence, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Bounds of a number, as `Annotated[float, Range(more_than=0)]` in the signature of the code that takes it."""

    more_than: float | None = None
    at_least: float | None = None
    less_than: float | None = None
    at_most: float | None = None
    weight: bool = False
    """Whether the number multiplies a loss: `allow_negative: true` of the spec lifts the bound of 0."""

    def __contains__(self, value: float) -> bool:
        return (
            (self.more_than is None or value > self.more_than)
            and (self.at_least is None or value >= self.at_least)
            and (self.less_than is None or value < self.less_than)
            and (self.at_most is None or value <= self.at_most)
        )

    @property
    def bounds(self) -> str:
        """The bounds in words: "at least 0 and less than 1"."""
        named = {
            "more than": self.more_than,
            "at least": self.at_least,
            "less than": self.less_than,
            "at most": self.at_most,
        }
        return " and ".join(f"{words} {bound:.12g}" for words, bound in named.items() if bound is not None)


Positive = Annotated[float, Range(more_than=0)]
"""A temperature, or an `eps` that keeps a denominator from 0."""

Count = Annotated[int, Range(at_least=1)]
"""How many of something without which there is nothing to compute."""

Share = Annotated[float, Range(at_least=0, at_most=1)]
"""A part of a whole, or a probability."""

Portion = Annotated[float, Range(more_than=0, at_most=1)]
"""A part of a whole that is not nothing: of an image's area."""

ShareBelowOne = Annotated[float, Range(at_least=0, less_than=1)]
"""A part of a whole of which something is left; a momentum."""

NonNegative = Annotated[float, Range(at_least=0)]
"""A margin, a weight decay: what may be switched off by 0."""

CountOrNone = Annotated[int, Range(at_least=0)]
"""How many of something, where 0 is none; an index."""

Temperature = Annotated[float, Range(more_than=0, at_most=10000)]
"""What logits are divided by before a softmax: beyond, all classes are equal to float32's precision."""

Width = Annotated[int, Range(at_least=1, at_most=1048576)]
"""How many channels or classes."""

Factor = Annotated[float, Range(more_than=0, at_most=1000)]
"""What a network's widths are multiplied by."""

Prior = Annotated[float, Range(more_than=0, less_than=1)]
"""The share of positives that a detector begins with."""

Focus = Annotated[float, Range(at_least=0, at_most=100)]
"""The power by which a focal loss weighs rows."""

Side = Annotated[int, Range(at_least=1, at_most=65536)]
"""A height or width in pixels."""

Border = Annotated[int, Range(at_least=0, at_most=65536)]
"""Pixels around an image."""

PixelValue = Annotated[float, Range(at_least=-1000000, at_most=1000000)]
"""The value of a pixel, in whatever unit."""

TaskWeight = Annotated[float, Range(more_than=0, at_most=1000000)]
"""What the loss of a task is multiplied by; `task_loss: false` leaves it out."""

Weight = Annotated[float, Range(at_least=0, weight=True)]
"""What a loss, or a part of one, is multiplied by."""


def parsed(hint: Any) -> ast.expr:
    """A type as code knows it, `Annotated[float, Range(...)]`, as the expression that a signature would hold."""
    return ast.parse(inspect.formatannotation(hint).replace("typing.", ""), mode="eval").body


def range_of(annotation: ast.expr) -> Range | None:
    """The range in an annotation `Annotated[<type>, Range(...)]`; None in any other."""
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.slice, ast.Tuple):
        return None
    for part in annotation.slice.elts[1:]:
        if isinstance(part, ast.Call) and ast.unparse(part.func).split(".")[-1] == Range.__name__:
            return Range(**{k.arg: ast.literal_eval(k.value) for k in part.keywords if k.arg is not None})
    return None


def ranged(annotation: ast.expr) -> ast.expr:
    """The type before the range in `Annotated[<type>, Range(...)]`."""
    assert isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)
    return annotation.slice.elts[0]


def shown(annotation: ast.expr) -> str:
    """An annotation as text, its ranges in words: `Sequence[float (more than 0)]`."""
    return ast.unparse(_InWords().visit(ast.parse(ast.unparse(annotation), mode="eval").body))


class _InWords(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        found = range_of(node)
        if found is None:
            self.generic_visit(node)
            return node
        return ast.Name(id=f"{ast.unparse(ranged(node))} ({found.bounds})", ctx=ast.Load())


MOST = 2**63 - 1
CODE = "KD223"


def check_finite(root: Mapping) -> Iterator[Diagnostic]:
    """A finding for every NaN, infinity and integer beyond 64 bits, under whatever key.

    root: the raw nodes, building blocks that nothing uses included. What aliases repeat is reported once, where
    it is written.
    """
    reported: set[tuple[str, int, int]] = set()
    for name, scalar in _scalars(root, ""):
        found = _finding(name, scalar)
        if found is not None and _written(scalar.span) not in reported:
            reported.add(_written(scalar.span))
            yield found


def without_reported_numbers(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Findings without those about a number that `check_finite` has reported already."""
    findings = list(findings)
    reported = {_written(one.span) for one in findings if one.code == CODE and one.span is not None}
    return [
        one for one in findings if one.code == CODE or one.span is None or _written(one.span) not in reported
    ]


def _finding(name: str, scalar: Scalar) -> Diagnostic | None:
    value, help = scalar.value, None
    if isinstance(value, float) and not math.isfinite(value):
        expected = "a finite number"
        if any(sign.isdigit() for sign in scalar.text):
            help = f"`{scalar.text[:40]}` is beyond the largest number, 1.8e308; a name stands in quotes"
    elif isinstance(value, int) and not -MOST - 1 <= value <= MOST:
        bound = f"at most {MOST}" if value > 0 else f"at least {-MOST - 1}"
        expected = f"a whole number that 64 bits hold ({bound})"
        help = "a name of digits stands in quotes"
    else:
        return None
    message = f"`{name}` must be {expected}, got {describe(value)}"
    return Diagnostic(code=CODE, message=message, help=help, span=scalar.span)


def _scalars(node: Node, name: str) -> Iterator[tuple[str, Scalar]]:
    """Every scalar with its key, and its index in a list: `std[0]`."""
    if isinstance(node, Scalar):
        yield name, node
    elif isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            yield from _scalars(item, f"{name}[{index}]")
    else:
        for entry in (*node.entries, *node.repeated):
            yield from _scalars(entry.value, entry.key)


def _written(span: Span) -> tuple[str, int, int]:
    place = span.written or span
    return place.source, place.line, place.column
