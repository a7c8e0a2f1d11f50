"""Text of `kdcli explain` (a code) and `kdcli methods` (losses and mimic methods)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli.codes import Explanation
from kdcli.losses.parts.describe import Description
from kdcli.reference.methods import MethodDescription
from kdcli.report.console import as_text, table


def explanation_text(code: str, explanation: Explanation, *, colour: bool = False) -> str:
    """What a code means: its title, the reason, an example."""
    head = Text.assemble((code, "bold"), f": {explanation.title}")
    example = "\n".join(f"  {line}" for line in explanation.example.split("\n"))
    return as_text(Text("\n\n").join([head, Text(explanation.why), Text(example)]), colour=colour)


def losses_text(
    kinds: Mapping[str, Sequence[Description]], methods: Sequence[MethodDescription], *, colour: bool = False
) -> str:
    """Tables of all losses by kind and of all mimic methods, a row each."""
    parts: list[RenderableType] = []
    for kind, losses in kinds.items():
        rows = [[one.name, one.summary, _source(one)] for one in losses]
        parts += [table([f"{kind} losses", "what it compares", "source"], rows), Text("")]
    rows = [[method.name, method.summary] for method in methods]
    parts += [table(["methods (`mimic_ins_type`)", "what it does"], rows), Text("")]
    parts.append(Text("`kdcli methods NAME` shows one of them, with its arguments and a block to paste"))
    return as_text(Group(*parts), colour=colour)


def loss_text(loss: Description, fragment: str, *, colour: bool = False) -> str:
    """One loss: what it computes, its arguments, what it needs, a block to paste."""
    parts: list[RenderableType] = [
        Text.assemble((loss.name, "bold"), f" · {loss.kind}"),
        Text(""),
        Text(loss.summary),
    ]
    if loss.details:
        parts += [Text(""), Text(loss.details)]
    parts.append(Text(""))
    if loss.needs:
        parts.append(Text(f"needs   {', '.join(loss.needs)}"))
    if loss.taps:
        parts.append(Text(f"layers  {loss.taps}"))
    if source := _source(loss, whole=True):
        parts.append(Text(f"source  {source}"))
    if loss.options:
        rows = [[option.name, option.annotation, _value(option.default)] for option in loss.options]
        parts += [Text(""), table(["kwargs", "type", "default"], rows)]
    parts += [Text(""), Text(fragment.rstrip())]
    return as_text(Group(*parts), colour=colour)


def method_text(method: MethodDescription, fragment: str, *, colour: bool = False) -> str:
    """One mimic method: what it does, its losses and options, a block to paste."""
    parts: list[RenderableType] = [Text(method.name, style="bold"), Text(""), Text(method.summary)]
    if method.details:
        parts += [Text(""), Text(method.details)]
    if method.record.losses:
        rows = [[name, loss.type] for name, loss in method.record.losses.items()]
        parts += [Text(""), table(["its losses (under `cfgs`)", "type"], rows)]
    if method.options:
        rows = [[one.name, one.type_text or "", _value(one.default), one.meaning] for one in method.options]
        parts += [Text(""), table(["its options (under `cfgs`)", "type", "default", "what it is"], rows)]
    if method.record.extra_losses:
        parts += [Text(""), Text("any loss of `kdcli methods` may stand under `cfgs`")]
    parts += [Text(""), Text(fragment.rstrip())]
    return as_text(Group(*parts), colour=colour)


def _value(value: object) -> str:
    """A default value as YAML writes it."""
    return json.dumps(value) if value is None or isinstance(value, (bool, list, dict)) else str(value)


def _source(loss: Description, *, whole: bool = False) -> str:
    arxiv = f"arXiv:{loss.arxiv}" if loss.arxiv else ""
    return ", ".join(part for part in (loss.paper, arxiv) if part) if whole or not arxiv else arxiv
