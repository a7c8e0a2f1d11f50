"""The jobs of `mimic` checked: methods, losses, adapters, and what each loss needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.check.arguments import check_arguments, check_type, choices_of
from kdcli.spec.check.components import Tables, check_component, suggest
from kdcli.spec.check.signatures import Signature, options_of, signature
from kdcli.spec.plugins import is_own, lookup, mixes_labels
from kdcli.spec.schema import Job, LossSpec, Spec
from kdcli.spec.tables import Loss, Method

CALLED_WITH = (
    *("student", "teacher", "mask", "student_logits", "teacher_logits", "teacher_weights"),
    *("labels", "mixed_labels", "indices", "step", "epoch"),
)
"""What the positional parameters of a loss may be called: each is bound by its name."""

MADE_FROM = (
    *("student_shape", "teacher_shape", "num_samples", "num_classes", "teacher_classifier", "teacher_norms"),
)
"""The same of the constructor of a loss that is a class."""


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
    name = job.mimic_ins_type
    own = is_own(name)
    try:
        where = (*path, "mimic_ins_type")
        found = lookup(
            tables.mimickers,
            name,
            tables.plugins,
            path=where,
            code="KD307",
            what="mimic method",
            forgotten="KD309",
        )
        # What a method of one's own takes is known once it is imported (check_own_jobs).
        method = None if own else found
    except SpecError as error:
        yield from error.diagnostics
    if method is not None:
        yield from check_method(job, method, path)
    if job.adapter is not None:
        yield from check_component(
            job.adapter, (*path, "adapter"), tables.adapters, "KD318", "adapter", tables.plugins
        )
    for loss in _losses(job, method, path):
        yield from _loss(spec, job, loss, tables, peers=own or (method is not None and method.peers))
    if not own and (method is None or method.paired):
        yield from _counts(job, path)


def check_method(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """What `cfgs` of a job holds against what its method takes; of own code also how layers are paired."""
    yield from _names(job, method, path)
    yield from _options(job, method, path)
    if method.own and method.paired:
        yield from _counts(job, path)


def _options(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """Options of a wrong type, out of their range or none of their choices; and those that are missing.

    One that is given nothing has its default.
    """
    what = f"`{job.mimic_ins_type}`"
    for option in options_of(method.options).values():
        value = job.options.get(option.name)
        if value is None:
            if option.required:
                message = f"{what} needs the option `{option.name}`"
                help = f"add `{option.name}` to `cfgs`" + (f": {option.meaning}" if option.meaning else "")
                yield Diagnostic(code="KD321", message=message, help=help, path=path, on_key=True)
            continue
        for found in check_type(option.name, value, option.annotation, (*path, "options"), what):
            of_choices = choices_of(option.annotation)
            if option.code is not None and (of_choices or found.code == "KD328"):
                found = replace(found, code=option.code)
            near = suggest(value, of_choices) if of_choices and isinstance(value, str) else None
            yield replace(found, help=found.help or near or option.meaning or None)


def _names(job: Job, method: Method, path: SpecPath) -> Iterator[Diagnostic]:
    """Findings for losses and options that the method does not have."""
    options = options_of(method.options)
    known = [*method.losses, *options]
    unknown: list[tuple[str, str]] = [("options", name) for name in job.options if name not in options]
    if not method.extra_losses:
        unknown += [("losses", name) for name in job.losses if name not in method.losses]
    for part, name in unknown:
        if part == "options" and name in method.losses:
            message = f"`{name}` is a loss of `{job.mimic_ins_type}`: a mapping with a `type`"
            form = f"write `{name}: {{type: ..., kwargs: {{...}}}}`"
            yield Diagnostic(code="KD319", message=message, help=form, path=(*path, part, name))
            continue
        what = "loss" if part == "losses" else "option"
        help = suggest(name, known)
        if part == "options" and method.extra_losses and help is None:
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
    own = {} if method is None else method.losses
    for name, loss in job.losses.items():
        default = own.get(name)
        same = default is not None and default.type == loss.type
        yield _Loss(loss, (*path, "losses", name), default.kwargs if same and default is not None else {})
    if method is None or (method.extra_losses and job.losses):
        return
    for name, default in own.items():
        if name not in job.losses:
            yield _Loss(LossSpec(type=default.type, kwargs=dict(default.kwargs)), (*path, "losses", name))


def _loss(spec: Spec, job: Job, loss: _Loss, tables: Tables, *, peers: bool) -> Iterator[Diagnostic]:
    name = loss.spec.type
    if loss.spec.adapter is not None:
        where = (*loss.path, "adapter")
        yield from check_component(
            loss.spec.adapter, where, tables.adapters, "KD318", "adapter", tables.plugins
        )
    try:
        record = lookup(
            tables.losses,
            name,
            tables.plugins,
            path=(*loss.path, "type"),
            code="KD306",
            what="loss",
            forgotten="KD309",
            own=lambda name: Loss(name, kind="feature", own=True),
        )
    except SpecError as error:
        for found in error.diagnostics:
            known = found.help or is_own(name)
            yield found if known else replace(found, help="`kdcli methods` lists them all")
        return
    takes = signature(record)
    if takes is None:
        return
    if record.own:
        yield from _unbound(name, takes, loss.path)
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
    if "labels" in takes.needs and batch_fn is not None and mixes_labels(batch_fn):
        message = f"`{name}` needs class indices, but `{batch_fn.type}` mixes the labels"
        help = "take `batch_fn` out, or choose a loss without labels such as kd_loss"
        yield Diagnostic(code="KD326", message=message, help=help, path=(*loss.path, "type"))


def _unbound(name: str, takes: Signature, path: SpecPath) -> Iterator[Diagnostic]:
    """KD352 for positional parameters of an own loss that kdcli has nothing for."""
    made = takes.kind == "class"
    for parameters, known in ((takes.positional if made else {}, MADE_FROM), (takes.called, CALLED_WITH)):
        for parameter in parameters.values():
            if parameter.required and parameter.name not in known:
                message = f"`{name}` takes `{parameter.name}` by position, which kdcli has nothing for"
                help = (
                    suggest(parameter.name, known)
                    or f"an option is keyword-only; bound are: {', '.join(known)}"
                )
                yield Diagnostic(code="KD352", message=message, help=help, path=(*path, "type"))


def _counts(job: Job, path: SpecPath) -> Iterator[Diagnostic]:
    """Check that student and teachers name equally many layers: they are paired in order."""
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
