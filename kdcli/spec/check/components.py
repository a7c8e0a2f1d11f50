"""Components: one thing chosen by `type` with `kwargs`, against the table it is chosen from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdcli.errors import Diagnostic, SpecPath, did_you_mean
from kdcli.spec.check.arguments import check_arguments
from kdcli.spec.check.signatures import signature
from kdcli.spec.check.torch_names import HOOKS, OPTIMIZERS, SCHEDULERS
from kdcli.spec.schema import Component
from kdcli.spec.tables import LossTable, Method, Table, Target, TaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Every name that a spec may use; torch-free.

    evaluators: a table, or names alone. plugins: packages whose code the command line allows.
    """

    losses: LossTable = field(default_factory=dict)
    mimickers: Mapping[str, Method] = field(default_factory=dict)
    modules: Table = field(default_factory=dict)
    adapters: Table = field(default_factory=dict)
    datasets: Table = field(default_factory=dict)
    transforms: Table = field(default_factory=dict)
    batch_fns: Table = field(default_factory=dict)
    image_readers: Table = field(default_factory=dict)
    samplers: Table = field(default_factory=dict)
    evaluators: Table | Collection[str] = field(default_factory=dict)
    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    optimizers: Collection[str] = OPTIMIZERS
    schedulers: Collection[str] = SCHEDULERS
    hooks: Collection[str] = HOOKS
    plugins: Sequence[str] = ()


def check_component(
    component: Component | Any,
    path: SpecPath,
    table: Table | Collection[str],
    code: str,
    what: str,
    *,
    prefixes: Collection[str] = (),
    hidden: Collection[str] = (),
) -> Iterator[Diagnostic]:
    """One thing chosen by `type` with its `kwargs`: is the name known, do the arguments fit."""
    name = component.type
    if any(name.startswith(prefix) and len(name) > len(prefix) for prefix in prefixes):
        return
    if name not in table:
        help = suggest(name, [*table, *(f"{prefix}<name>" for prefix in prefixes)])
        message = f"no {what} is called `{name}`"
        yield Diagnostic(code=code, message=message, help=help, path=(*path, "type"))
        return
    if isinstance(table, Mapping):
        yield from check_against(table[name], component.kwargs, path, f"`{name}`", hidden)


def check_against(
    target: Target,
    kwargs: Mapping[str, Any],
    path: SpecPath,
    what: str,
    hidden: Collection[str] = (),
    given: Collection[str] = (),
) -> Iterator[Diagnostic]:
    """The `kwargs` below a path against a target's signature, where its source can be read."""
    takes = signature(target)
    if takes is None:
        return
    yield from check_arguments(kwargs, takes, (*path, "kwargs"), what, hidden=hidden, given=given)


def suggest(word: str, known: Sequence[str]) -> str | None:
    """The name that differs in case alone, else the nearest ones."""
    same = [name for name in known if name.casefold() == word.casefold()]
    return f"did you mean `{same[0]}`?" if same else did_you_mean(word, known)
