"""Text of `kdcli explain` (codes, keys, types, arguments) and `kdcli methods` (losses and mimic methods)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from kdcli.codes import Explanation
from kdcli.losses import loss_of
from kdcli.losses.parts.describe import Description
from kdcli.reference.keys import KeyPage, argument_meaning
from kdcli.reference.methods import MethodDescription
from kdcli.reference.words import TypePage
from kdcli.report.console import Column, as_text, table, wrapped_line
from kdcli.spec.check.signatures import signature

MANY = 4
"""Of so many keys of one name only the meanings are shown, not the whole pages."""


def explanation_text(
    code: str, explanation: Explanation, *, width: int | None = None, colour: bool = False
) -> str:
    """What a code means: its title, the reason, an example."""
    head = Text.assemble((code, "bold"), f": {explanation.title}")
    example = "\n".join(f"  {line}" for line in explanation.example.split("\n"))
    parts: list[RenderableType] = [head, Text(""), Text(explanation.why), Text(""), _verbatim(example)]
    return as_text(Group(*parts), width=width, colour=colour)


def subjects_text(
    subjects: Mapping[str, Sequence[str]], *, width: int | None = None, colour: bool = False
) -> str:
    """What `kdcli explain` can explain: all names by what they are; of the codes the first and the last."""
    parts: list[RenderableType] = []
    for called, names in subjects.items():
        shown = f"{names[0]} to {names[-1]}" if called == "code" else ", ".join(names)
        parts += [Text.assemble((f"{called} ({len(names)})", "bold")), Text(shown), Text("")]
    parts.append(Text("`kdcli explain WORD` explains one, or an argument, or a key below: trainer.ema"))
    return as_text(Group(*parts), width=width, colour=colour)


def samples_text(summaries: Mapping[str, str], width: int | None = None) -> str:
    """The samples with what each shows, a line each; on a screen the longer sentences go on below themselves."""
    indent = max(len(name) for name in summaries) + 2
    lines = [f"{name:<{indent}}{summary}" for name, summary in summaries.items()]
    return "".join(f"{wrapped_line(line, width, ' ' * indent)}\n" for line in lines)


def keys_text(pages: Sequence[KeyPage], *, width: int | None = None, colour: bool = False) -> str:
    """Keys of the language: meaning, what they take, default, an example; of many keys the meanings alone."""
    if len(pages) >= MANY:
        rows = [[page.path, page.meaning] for page in pages]
        return as_text(table(["key", "what it is"], rows), width=width, colour=colour)
    parts: list[RenderableType] = []
    for page in pages:
        parts += [Text("")] if parts else []
        parts += [Text.assemble((page.path, "bold"), " · key"), Text(""), Text(page.meaning), Text("")]
        if page.takes:
            parts.append(Text(f"takes    {page.takes}"))
        parts.append(Text(f"default  {page.default if page.default is not None else 'has to be given'}"))
        if page.keys:
            parts.append(Text(f"keys     {', '.join(page.keys)}"))
        if page.example:
            parts += [Text(""), _verbatim("\n".join(f"  {line}" for line in page.example.split("\n")))]
    return as_text(Group(*parts), width=width, colour=colour)


def type_text(page: TypePage, *, width: int | None = None, colour: bool = False) -> str:
    """A type of one of the tables: what it does, its arguments."""
    parts: list[RenderableType] = [Text.assemble((page.name, "bold"), f" · {page.kind}")]
    if page.source:
        parts += [Text(""), Text(f"{page.source}, as torch documents it")]
    if page.summary:
        parts += [Text(""), Text(page.summary)]
    if page.details:
        parts += [Text(""), Text(_reflowed(page.details, width))]
    if page.arguments:
        rows = [
            [one.name, one.takes, "has to be given" if one.required else _value(one.default), one.meaning]
            for one in page.arguments
        ]
        parts += [Text(""), table(["kwargs", "type", "default", "what it is"], rows)]
    return as_text(Group(*parts), width=width, colour=colour)


def arguments_text(
    word: str,
    meanings: Mapping[str, Sequence[tuple[str, str]]],
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """What an argument means, and which types take it."""
    parts: list[RenderableType] = [Text.assemble((word, "bold"), " · argument"), Text("")]
    rows = []
    for meaning, types in meanings.items():
        by_kind: dict[str, list[str]] = {}
        for kind, name in types:
            by_kind.setdefault(kind, []).append(name)
        named = "; ".join(f"{kind} {', '.join(names)}" for kind, names in by_kind.items())
        rows.append([meaning, named])
    parts.append(table(["what it is", "of"], rows))
    return as_text(Group(*parts), width=width, colour=colour)


def losses_text(
    kinds: Mapping[str, Sequence[Description]],
    methods: Sequence[MethodDescription],
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """Tables of all losses by kind and of all mimic methods, a row each."""
    parts: list[RenderableType] = []
    for kind, losses in kinds.items():
        rows = [[one.name, one.summary, _source(one)] for one in losses]
        parts += [table([f"{kind} losses", "what it compares", Column("source", dropped=1)], rows), Text("")]
    rows = [[method.name, method.summary] for method in methods]
    parts += [table(["methods (`mimic_ins_type`)", "what it does"], rows), Text("")]
    parts.append(Text("`kdcli methods NAME` shows one of them, with its arguments and a block to paste"))
    return as_text(Group(*parts), width=width, colour=colour)


def loss_text(loss: Description, fragment: str, *, width: int | None = None, colour: bool = False) -> str:
    """One loss: what it computes, its arguments, what it needs, a block to paste."""
    parts: list[RenderableType] = [
        Text.assemble((loss.name, "bold"), f" · {loss.kind}"),
        Text(""),
        Text(loss.summary),
    ]
    if loss.details:
        parts += [Text(""), Text(_reflowed(loss.details, width))]
    parts.append(Text(""))
    if loss.needs:
        parts.append(Text(f"needs   {', '.join(loss.needs)}"))
    if loss.taps:
        parts.append(Text(f"layers  {loss.taps}"))
    if loss_of(loss.name).mean_over_pairs:
        parts.append(Text("pairs   of several pairs of layers the mean; `over_pairs: sum` adds them up"))
    if source := _source(loss, whole=True):
        parts.append(Text(f"source  {source}"))
    if loss.options:
        takes = signature(loss_of(loss.name))
        rows = [
            [
                option.name,
                option.annotation,
                _value(option.default),
                (takes and argument_meaning("losses", loss.name, option.name, takes)) or "",
            ]
            for option in loss.options
        ]
        parts += [Text(""), table(["kwargs", "type", "default", "what it is"], rows)]
    parts += [Text(""), _verbatim(fragment.rstrip())]
    return as_text(Group(*parts), width=width, colour=colour)


def method_text(
    method: MethodDescription, fragment: str, *, width: int | None = None, colour: bool = False
) -> str:
    """One mimic method: what it does, its losses and options, a block to paste."""
    parts: list[RenderableType] = [Text(method.name, style="bold"), Text(""), Text(method.summary)]
    if method.details:
        parts += [Text(""), Text(_reflowed(method.details, width))]
    if method.record.losses:
        rows = [[name, loss.type] for name, loss in method.record.losses.items()]
        parts += [Text(""), table(["its losses (under `cfgs`)", "type"], rows)]
    if method.options:
        rows = [[one.name, one.type_text or "", _value(one.default), one.meaning] for one in method.options]
        parts += [Text(""), table(["its options (under `cfgs`)", "type", "default", "what it is"], rows)]
    if method.record.extra_losses:
        parts += [Text(""), Text("any loss of `kdcli methods` may stand under `cfgs`")]
    parts += [Text(""), _verbatim(fragment.rstrip())]
    return as_text(Group(*parts), width=width, colour=colour)


def _verbatim(text: str) -> Text:
    """Text to paste: its lines stay as they are on a narrow screen too."""
    return Text(text, no_wrap=True, overflow="ignore")


def _reflowed(text: str, width: int | None) -> str:
    """A docstring's paragraphs, on a screen without the line ends of the source."""
    if width is None:
        return text
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _value(value: object) -> str:
    """A default value as YAML writes it."""
    return json.dumps(value) if value is None or isinstance(value, (bool, list, dict)) else str(value)


def _source(loss: Description, *, whole: bool = False) -> str:
    arxiv = f"arXiv:{loss.arxiv}" if loss.arxiv else ""
    return ", ".join(part for part in (loss.paper, arxiv) if part) if whole or not arxiv else arxiv
