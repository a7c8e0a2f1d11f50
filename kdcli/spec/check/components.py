"""Things chosen by `type` with `kwargs`, checked against the table they are chosen from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.check.arguments import check_arguments
from kdcli.spec.check.signatures import signature
from kdcli.spec.check.torch_names import HOOKS, OPTIMIZERS, SCHEDULERS
from kdcli.spec.plugins import is_own, lookup, suggest
from kdcli.spec.schema import Component
from kdcli.spec.tables import LossTable, Method, Table, Target, TaskRecord

__all__ = ["BOUND", "Tables", "check_against", "check_component", "suggest"]

BOUND: Mapping[str, tuple[str, ...]] = {
    "module": ("inplanes", "aligned"),
    "dataset": ("path", "places", "train", "image_reader", "transformer", "alignment", "aligned", "classes"),
    "image reader": ("path", "places"),
    "sampler": ("num_samples", "batch_size", "train", "seed", "rank", "world_size", "drop_last"),
    "evaluator": ("facts",),
    "adapter": ("student", "teacher"),
    "optimizer": ("params",),
    "scheduler": ("optimizer", "last_epoch"),
}
"""Positional parameters of own code that kdcli gives by name, by what the code is; others are the spec's."""


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
    plugins: Sequence[str],
    *,
    prefixes: Collection[str] = (),
    others: Collection[str] = (),
    hidden: Collection[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    help: str | None = None,
) -> Iterator[Diagnostic]:
    """Check one `type` with its `kwargs`: whether the name is known and the arguments fit.

    path: of the component. prefixes: names that begin so are looked at elsewhere. others: what may be written beside
    the table's names, for the nearest name. hidden: arguments that a spec cannot give. kwargs: in place of the
    component's. help: where there is no near name.
    """
    name = component.type
    if any(name.startswith(prefix) and len(name) > len(prefix) for prefix in prefixes) and not is_own(name):
        return
    where = (*path, "type")
    try:
        target = lookup(
            table, name, plugins, path=where, code=code, what=what, forgotten="KD309", others=others
        )
    except SpecError as error:
        for found in error.diagnostics:
            yield found if found.help or is_own(name) else replace(found, help=help)
        return
    if target is not None:
        given = component.kwargs if kwargs is None else kwargs
        yield from check_against(target, given, path, f"`{name}`", what, hidden)


def check_against(
    target: Target,
    kwargs: Mapping[str, Any],
    path: SpecPath,
    named: str,
    what: str,
    hidden: Collection[str] = (),
    given: Collection[str] = (),
) -> Iterator[Diagnostic]:
    """Check the `kwargs` below a path against a target's signature, where its source can be read.

    named: the target in messages. what: it is, a key of BOUND perhaps. hidden: arguments that a spec cannot give.
    given: arguments that come from elsewhere. Positional parameters of own code are the spec's too.
    """
    takes = signature(target)
    if takes is None:
        return
    where = (*path, "kwargs")
    if target.own:
        given = (*given, *BOUND.get(what, ()))
        yield from check_arguments(kwargs, takes, where, named, hidden=hidden, given=given, positional=True)
    else:
        yield from check_arguments(kwargs, takes, where, named, hidden=hidden, given=given)
