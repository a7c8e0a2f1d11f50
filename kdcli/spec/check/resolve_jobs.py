"""Resolving jobs: methods, losses, adapters, and what each loss asks of the job."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.check.arguments import check_arguments, check_type, type_of
from kdcli.spec.check.components import Tables, check_component, suggest
from kdcli.spec.check.signatures import Signature, signature
from kdcli.spec.schema import Job, LossSpec, Spec


@dataclass(frozen=True, slots=True)
class Method:
    """What a mimic method's class says of itself, read from its source.

    losses: its own losses, name to (type, default kwargs); None where they are not written as data.
    options: names of its options. types: of those options whose default shows one. extra: whether
    further losses may be named. paired: whether student and teachers name equally many layers. peers:
    whether its networks teach each other, without a teacher.
    """

    losses: Mapping[str, tuple[str | None, Mapping[str, Any]]] | None
    options: tuple[str, ...] | None
    types: Mapping[str, ast.expr]
    extra: bool
    paired: bool
    peers: bool


@dataclass(frozen=True, slots=True)
class _Loss:
    spec: LossSpec
    path: SpecPath
    defaults: Mapping[str, Any] = field(default_factory=dict)


def check_jobs(spec: Spec, tables: Tables) -> Iterator[Diagnostic]:
    """All findings about the jobs of `mimic`."""
    assert spec.mimic is not None
    for name, job in spec.mimic.jobs.items():
        yield from _job(spec, job, ("mimic", "jobs", name), tables)


def _job(spec: Spec, job: Job, path: SpecPath, tables: Tables) -> Iterator[Diagnostic]:
    method: Method | None = None
    if job.mimic_ins_type not in tables.mimickers:
        help = suggest(job.mimic_ins_type, list(tables.mimickers))
        message = f"no mimic method is called `{job.mimic_ins_type}`"
        yield Diagnostic(code="KD307", message=message, help=help, path=(*path, "mimic_ins_type"))
    else:
        method = method_of(signature(tables.mimickers[job.mimic_ins_type]))
    if method is not None:
        yield from _names(job, method, path)
        for name, value in job.options.items():
            if name in method.types and value is not None:
                what = f"`{job.mimic_ins_type}`"
                yield from check_type(name, value, method.types[name], (*path, "options"), what)
    if job.adapter is not None:
        yield from check_component(job.adapter, (*path, "adapter"), tables.adapters, "KD318", "adapter")
    for loss in _losses(job, method, path):
        yield from _loss(spec, job, loss, tables, peers=method is not None and method.peers)
    if method is None or method.paired:
        yield from _counts(job, path)


def method_of(source: Signature | None) -> Method | None:
    """What a method's class attributes say."""
    if source is None:
        return None
    options = _keys(source.constants.get("OPTIONS"))
    return Method(
        losses=_own_losses(source.constants.get("LOSSES")),
        options=options,
        types=_types(source.constants.get("OPTIONS"), options or ()),
        extra=bool(source.constant("EXTRA_LOSSES", False)),
        paired=bool(source.constant("PAIRED", True)),
        peers=bool(source.constant("PEERS", False)),
    )


def _keys(node: ast.expr | None) -> tuple[str, ...] | None:
    if not isinstance(node, ast.Dict):
        return None
    found = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return tuple(found) if len(found) == len(node.keys) else None


def _types(node: ast.expr | None, names: tuple[str, ...]) -> Mapping[str, ast.expr]:
    values = node.values if isinstance(node, ast.Dict) and names else []
    return {name: shown for name, value in zip(names, values, strict=True) if (shown := type_of(value))}


def _own_losses(node: ast.expr | None) -> Mapping[str, tuple[str | None, Mapping[str, Any]]] | None:
    names = _keys(node)
    if names is None or not isinstance(node, ast.Dict):
        return None
    found: dict[str, tuple[str | None, Mapping[str, Any]]] = {}
    for name, value in zip(names, node.values, strict=True):
        keywords = {k.arg: k.value for k in value.keywords} if isinstance(value, ast.Call) else {}
        found[name] = (_literal(keywords.get("type")), _literal(keywords.get("kwargs")) or {})
    return found


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _names(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """Losses and options that the method does not have."""
    if method.losses is None or method.options is None:
        return
    known = [*method.losses, *method.options]
    unknown: list[tuple[str, str]] = [("options", name) for name in job.options if name not in method.options]
    if not method.extra:
        unknown += [("losses", name) for name in job.losses if name not in method.losses]
    for part, name in unknown:
        if part == "options" and name in method.losses:
            message = f"`{name}` is a loss of `{job.mimic_ins_type}`: a mapping with a `type`"
            form = f"write `{name}: {{type: ..., kwargs: {{...}}}}`"
            yield Diagnostic(code="KD319", message=message, help=form, path=(*path, part, name))
            continue
        what = "loss" if part == "losses" else "option"
        help = suggest(name, known)
        if part == "options" and method.extra and help is None:
            help = "a loss is a mapping with a `type`"
        yield Diagnostic(
            code="KD319",
            message=f"`{job.mimic_ins_type}` has no {what} `{name}`",
            help=help,
            path=(*path, part, name),
            on_key=True,
        )


def _losses(job: Job, method: Method | None, path: SpecPath) -> Iterator[_Loss]:
    """The losses given, and the method's own where none are."""
    own = {} if method is None or method.losses is None else dict(method.losses)
    for name, loss in job.losses.items():
        of_type, kwargs = own.get(name, (None, {}))
        yield _Loss(loss, (*path, "losses", name), kwargs if of_type == loss.type else {})
    if method is None or (method.extra and job.losses):
        return
    for name, (of_type, kwargs) in own.items():
        if name not in job.losses and of_type is not None:
            yield _Loss(LossSpec(type=of_type, kwargs=dict(kwargs)), (*path, "losses", name))


def _loss(spec: Spec, job: Job, loss: _Loss, tables: Tables, *, peers: bool) -> Iterator[Diagnostic]:
    name = loss.spec.type
    if loss.spec.adapter is not None:
        where = (*loss.path, "adapter")
        yield from check_component(loss.spec.adapter, where, tables.adapters, "KD318", "adapter")
    if name not in tables.losses:
        help = suggest(name, list(tables.losses)) or "`kdcli methods` lists them all"
        yield Diagnostic(
            code="KD306", message=f"no loss is called `{name}`", help=help, path=(*loss.path, "type")
        )
        return
    takes = signature(tables.losses[name])
    if takes is None:
        return
    given = set(loss.defaults)
    if loss.spec.temperature is not None or job.temperature is not None:
        given.add("T")
    where = (*loss.path, "kwargs")
    yield from check_arguments(loss.spec.kwargs, takes, where, f"`{name}`", given=given)
    if loss.spec.temperature is not None and "T" in loss.spec.kwargs:
        message = "`T` in `kwargs` and `temperature` are one argument, given twice"
        yield Diagnostic(
            code="KD323", message=message, help="keep one", path=(*loss.path, "temperature"), on_key=True
        )
    if "teacher" in takes.needs and not job.teachers and not peers:
        message = f"`{name}` compares with a teacher, but the job has none"
        help = "name one: `teacher0: {mimic_name: [...], teacher_weight: ...}`"
        yield Diagnostic(code="KD327", message=message, help=help, path=(*loss.path, "type"))
    batch_fn = spec.dataset.train.dataloader.kwargs.batch_fn
    if "labels" in takes.needs and batch_fn is not None:
        message = f"`{name}` needs class indices, but `{batch_fn.type}` mixes the labels"
        help = "take `batch_fn` out, or choose a loss without labels such as kd_loss"
        yield Diagnostic(code="KD326", message=message, help=help, path=(*loss.path, "type"))


def _counts(job: Job, path: SpecPath) -> Iterator[Diagnostic]:
    """Layers are paired in order: as many in the student as in each teacher."""
    students = len(job.student.mimic_name)
    for name, teacher in job.teachers.items():
        count = len(teacher.mimic_name)
        if count != students:
            layers = f"{count} layer{'s' if count != 1 else ''}"
            yield Diagnostic(
                code="KD302",
                message=f"`{name}` names {layers}, the student {students}",
                help="layers are paired in order: name equally many in both",
                path=(*path, "teachers", name, "mimic_name"),
                on_key=True,
            )
