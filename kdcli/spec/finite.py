"""Finite numbers: nothing can be computed with NaN, infinity or a whole number that 64 bits don't hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from kdcli.errors import Diagnostic, Span
from kdcli.spec.text.nodes import Mapping, Node, Scalar, Sequence, describe

MOST = 2**63 - 1
CODE = "KD223"


def check_finite(root: Mapping) -> Iterator[Diagnostic]:
    """A finding for every number that cannot be computed with, whatever key it stands under.

    root: the raw nodes, building blocks that nothing uses included. What aliases repeat is told once, where
    it is written.
    """
    told: set[tuple[str, int, int]] = set()
    for name, scalar in _scalars(root, ""):
        found = _finding(name, scalar)
        if found is not None and _written(scalar.span) not in told:
            told.add(_written(scalar.span))
            yield found


def told_once(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The findings less those about a number of which `check_finite` has told already."""
    findings = list(findings)
    told = {_written(one.span) for one in findings if one.code == CODE and one.span is not None}
    return [one for one in findings if one.code == CODE or one.span is None or _written(one.span) not in told]


def _finding(name: str, scalar: Scalar) -> Diagnostic | None:
    value, help = scalar.value, None
    if isinstance(value, float) and not math.isfinite(value):
        wanted = "a finite number"
        if any(sign.isdigit() for sign in scalar.text):
            help = f"`{scalar.text[:40]}` is beyond the largest number, 1.8e308; a name stands in quotes"
    elif isinstance(value, int) and not -MOST - 1 <= value <= MOST:
        bound = f"at most {MOST}" if value > 0 else f"at least {-MOST - 1}"
        wanted = f"a whole number that 64 bits hold ({bound})"
        help = "a name of digits stands in quotes"
    else:
        return None
    message = f"`{name}` must be {wanted}, got {describe(value)}"
    return Diagnostic(code=CODE, message=message, help=help, span=scalar.span)


def _scalars(node: Node, name: str) -> Iterator[tuple[str, Scalar]]:
    """Every scalar with the key that it stands under, and its place in a list: `std[0]`."""
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
