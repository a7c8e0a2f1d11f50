"""The canonical moving average: `ema` under `trainer`, wherever it was written."""

from __future__ import annotations

from dataclasses import replace

from kdcli.spec.form.findings import Findings
from kdcli.spec.text.nodes import Entry, Mapping, Node, Plain, Scalar, to_data

COUNTS = ("inner_T", "warmup")


def canonical_ema(spec: Mapping, found: Findings) -> Mapping:
    """The spec with the `ema` of its top level, where United-Perception has it, under `trainer`."""
    top, trainer = spec.find("ema"), spec.find("trainer")
    spec = spec.without("ema")
    if trainer is None or not isinstance(trainer.value, Mapping):
        return spec
    own = trainer.value.find("ema")
    if top is not None and own is not None and to_data(top.value) != to_data(own.value):
        first, second = sorted((top, own), key=_order)
        here, there = second.key_span, first.key_span
        where = (
            f"in line {there.line}"
            if here.source == there.source
            else f"in {there.source}, line {there.line}"
        )
        message = "`ema` is given twice, at the top level and under `trainer`, with different values"
        found.error("KD225", message, here, f"keep one of them; the other is {where}")
    entry = top or own
    if entry is None:
        return spec
    settled = replace(entry, value=_from_one(entry.value, found))
    return spec.with_entry(replace(trainer, value=trainer.value.with_entry(settled)))


def _from_one(ema: Node, found: Findings) -> Node:
    """The average with its counts from 1."""
    kwargs = ema.find("kwargs") if isinstance(ema, Mapping) else None
    if not isinstance(ema, Mapping) or kwargs is None or not isinstance(kwargs.value, Mapping):
        return ema
    made = kwargs.value
    for key in COUNTS:
        entry = made.find(key)
        if entry is not None and isinstance(entry.value, Scalar) and _is_zero(entry.value.value):
            found.warn("KD619", f"`{key}: 0` is read as 1", entry.value.span, f"write `{key}: 1`")
            made = made.with_entry(replace(entry, value=replace(entry.value, value=1, text="1")))
    return ema.with_entry(replace(kwargs, value=made))


def _is_zero(value: Plain) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _order(entry: Entry) -> tuple[bool, str, int, int]:
    """Where an entry stands: the text in its order, then the arguments of the command line."""
    span = entry.key_span
    argument = span.source.startswith("argument ")
    return (argument, span.source if argument else "", span.line, span.column)
