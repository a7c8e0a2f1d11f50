"""Every word that `kdcli explain` knows: codes, keys, types and their arguments; torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from kdcli.codes import CODES
from kdcli.optimizers import OPTIMIZER_TARGETS, SCHEDULER_TARGETS
from kdcli.reference.keys import argument_meaning, argument_meanings, described, key_pages
from kdcli.reference.tables import tables
from kdcli.spec.check.signatures import Signature, signature
from kdcli.spec.tables import SAME_OPTIMIZERS, Target

KINDS: Mapping[str, str] = {
    "losses": "loss",
    "mimickers": "mimic method",
    "modules": "module",
    "adapters": "adapter",
    "datasets": "dataset",
    "transforms": "transform",
    "batch_fns": "batch function",
    "image_readers": "image reader",
    "samplers": "sampler",
    "evaluators": "evaluator",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
}
"""The tables of names, and what one of their types is called."""

TORCH = {"optimizers": "torch.optim", "schedulers": "torch.optim.lr_scheduler"}
"""Where torch's own types of a table are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentPage:
    """One argument of a type in words. default: None where it is required."""

    name: str
    takes: str
    default: object
    required: bool
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypePage:
    """One type of a table in words, from its docstring. source: where torch says more."""

    kind: str
    name: str
    summary: str = ""
    details: str = ""
    arguments: tuple[ArgumentPage, ...] = ()
    source: str | None = None


FREEZE = "freeze_patterns"
SELF_PAGE = TypePage(
    kind="module",
    name="self",
    summary="No module: it freezes parts of the network that it stands in.",
    details="Written behind the modules of `net`, without a name: "
    "`net: [{name: model, type: timm.resnet18, kwargs: {num_classes: 8}}, {type: self, kwargs: {freeze_patterns: "
    "[model.conv1, model.layer1]}}]`. What is frozen gets no gradient and stays in eval mode, BatchNorm's statistics "
    "too. Stages (`kdcli explain mimic.stages`) freeze for a part of the run.",
    arguments=(
        ArgumentPage(
            name=FREEZE,
            takes="list[str]",
            default=None,
            required=False,
            meaning="Beginnings of layers' paths, `model.layer1`, or `r:` and a regular expression that is found "
            "anywhere in a path: all such layers are frozen.",
        ),
    ),
)
"""What a network's list may hold beside the modules of the table."""


def subjects() -> dict[str, list[str]]:
    """All names by what they are called; of codes and keys the groups."""
    keys = [path for path in key_pages() if "." not in path]
    listed = {"code": sorted(CODES), "key": keys}
    listed |= {called: sorted(getattr(tables(), table)) for table, called in KINDS.items()}
    listed[SELF_PAGE.kind].append(SELF_PAGE.name)
    return listed


def words() -> Iterator[str]:
    """Every word, as a shell completes it."""
    yield from CODES
    yield from key_pages()
    for table in KINDS:
        yield from getattr(tables(), table)
    yield SELF_PAGE.name


def types_named(name: str) -> list[TypePage]:
    """The types of this name, of whatever table."""
    if name == SELF_PAGE.name:
        return [SELF_PAGE]
    return [
        _type_page(table, called, name) for table, called in KINDS.items() if name in getattr(tables(), table)
    ]


def arguments_named(name: str) -> dict[str, list[tuple[str, str]]]:
    """By meaning, the types (what they are called, their name) that take an argument of this name."""
    found: dict[str, list[tuple[str, str]]] = {}
    argument = name.rpartition(".")[2]
    if argument == FREEZE:
        found[SELF_PAGE.arguments[0].meaning] = [(SELF_PAGE.kind, SELF_PAGE.name)]
    for table, called in KINDS.items():
        if table in TORCH:
            if meaning := argument_meanings(table).get(argument):
                found.setdefault(meaning, []).append((called, TORCH[table]))
            continue
        for type_name, target in getattr(tables(), table).items():
            takes = signature(target)
            if takes is not None and argument in takes.kwargs:
                meaning = argument_meaning(table, type_name, argument, takes)
                found.setdefault(meaning or "", []).append((called, type_name))
    return found


def argument_names() -> list[str]:
    """The names of all arguments that some type takes."""
    names: set[str] = {FREEZE}
    for table in KINDS:
        if table in TORCH:
            names.update(argument_meanings(table))
            continue
        for target in getattr(tables(), table).values():
            takes = signature(target)
            names.update(() if takes is None else takes.kwargs)
    return sorted(name for name in names if "." not in name)


def _type_page(table: str, called: str, name: str) -> TypePage:
    known: Mapping[str, Target] | Collection[str] = getattr(tables(), table)
    if isinstance(known, Mapping):
        takes = signature(known[name])
        if takes is None:
            return TypePage(kind=called, name=name)
        summary, _, details = (takes.doc or "").partition("\n\n")
        return TypePage(
            kind=called,
            name=name,
            summary=" ".join(summary.split()),
            details=details.strip(),
            arguments=tuple(_arguments(table, name, takes)),
        )
    same = SAME_OPTIMIZERS.get(name, name)
    own = {**OPTIMIZER_TARGETS, **SCHEDULER_TARGETS}.get(name)
    takes = signature(own or Target(f"{TORCH[table]}:{same}"))
    if takes is None:
        return TypePage(kind=called, name=name, source=f"{TORCH[table]}.{same}")
    summary, _, details = ((takes.doc or "") if own is not None else "").partition("\n\n")
    return TypePage(
        kind=called,
        name=name,
        summary=" ".join(summary.split()),
        details=details.strip(),
        arguments=tuple(_torch_arguments(table, takes)),
        source=None if own is not None else f"{TORCH[table]}.{same}",
    )


def _arguments(table: str, type_name: str, takes: Signature) -> Iterator[ArgumentPage]:
    for name, parameter in takes.kwargs.items():
        yield ArgumentPage(
            name=name,
            takes=parameter.type_text or "",
            default=parameter.default,
            required=parameter.required,
            meaning=argument_meaning(table, type_name, name, takes) or "",
        )


def _torch_arguments(table: str, takes: Signature) -> Iterator[ArgumentPage]:
    """The arguments of torch's type that kdcli knows, of kdcli's own type those that its docstring tells."""
    known = {**described(takes.doc), **argument_meanings(table)}
    for name, parameter in {**takes.positional, **takes.kwargs}.items():
        if name in known:
            yield ArgumentPage(
                name=name,
                takes=parameter.type_text or "",
                default=parameter.default,
                required=parameter.required,
                meaning=known[name],
            )
