"""Records of own losses and mimic methods: what a signature shows, and what is told of both."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from kdcli.errors import Diagnostic, SpecError, SpecPath
from kdcli.spec.check.resolve_jobs import check_method
from kdcli.spec.check.signatures import signature
from kdcli.spec.plugins import is_own
from kdcli.spec.schema import Job, Spec
from kdcli.spec.tables import Kind, Loss, Method, Target


def derived_loss(name: str) -> Loss:
    """The record of an own loss that has none, from its signature in the source; nothing is imported.

    It compares features where it takes a `teacher`, logits where it takes `teacher_logits`, and else needs no
    teacher. Its `T` softens; a `student` that is a Sequence or a list is the list of all features.
    """
    takes = signature(Target(name, own=True))
    if takes is None:
        return Loss(name, kind="feature", own=True)
    needs = takes.needs
    kind: Kind = "feature" if "teacher" in needs else "logit" if "teacher_logits" in needs else "teacher-free"
    called = takes.called if takes.kind == "class" else takes.positional
    student = called.get("student") or called.get("teacher")
    written = "" if student is None or student.annotation is None else ast.unparse(student.annotation)
    lists = written.split("[")[0].split(".")[-1] in ("Sequence", "list", "tuple")
    return Loss(name, kind=kind, softened="T" in takes.kwargs, whole_list=lists, own=True)


def check_own_jobs(
    spec: Spec, loss_of: Callable[[str], Loss], method_of: Callable[[str], Method]
) -> Iterator[Diagnostic]:
    """What can be told of own losses and mimic methods once they are imported.

    loss_of, method_of: the records. KD350 where a record is wrong, KD319 and what `cfgs` may hold otherwise, and
    KD351, a warning, where there is no record and one is derived.
    """
    if spec.mimic is None or not spec.distils:
        return
    told: set[str] = set()
    for name, job in spec.mimic.jobs.items():
        path: SpecPath = ("mimic", "jobs", name)
        yield from _method(job, path, method_of)
        for key, loss in job.losses.items():
            if is_own(loss.type) and loss.type not in told:
                told.add(loss.type)
                yield from _loss(loss.type, (*path, "losses", key, "type"), loss_of)


def _method(job: Job, path: SpecPath, method_of: Callable[[str], Method]) -> Iterator[Diagnostic]:
    if not is_own(job.mimic_ins_type):
        return
    where = (*path, "mimic_ins_type")
    made = Target(job.mimic_ins_type).load()
    if not hasattr(made, "losses_of"):
        message = f"`{job.mimic_ins_type}` is no subclass of `Mimicker` (kdcli.distill.mimickers.mimicker)"
        yield Diagnostic(code="KD350", message=message, path=where)
        return
    try:
        record = method_of(job.mimic_ins_type)
    except SpecError as error:
        yield from (_at(found, where) for found in error.diagnostics)
        return
    yield from check_method(job, record, path)
    if not record.losses and not record.extra_losses:
        message = f"`{job.mimic_ins_type}` says no `kdcli_record`: it is taken as a method without losses of its own"
        help = "give the class `kdcli_record = Method(losses=..., options=...)` (kdcli.spec.tables)"
        yield Diagnostic(code="KD351", severity="warning", message=message, help=help, path=where)


def _loss(name: str, path: SpecPath, loss_of: Callable[[str], Loss]) -> Iterator[Diagnostic]:
    made = Target(name).load()
    if not callable(made):
        message = f"`{name}` is a `{type(made).__name__}`, not a loss function or class"
        yield Diagnostic(code="KD350", message=message, path=path)
        return
    try:
        record = loss_of(name)
    except SpecError as error:
        yield from (_at(found, path) for found in error.diagnostics)
        return
    if getattr(made, "kdcli_record", None) is None:
        over = "lists of features" if record.whole_list else "features of any layout"
        what = "over the logits" if record.kind == "logit" else f"over {over}"
        if record.kind == "teacher-free":
            what = "without a teacher"
        message = f"`{name}` says no `kdcli_record`: it is taken as a {record.kind} loss {what}"
        module, _, attribute = name.partition(":")
        help = (
            f"to say otherwise, write `{attribute}.kdcli_record = {{'kind': ..., 'takes': ...}}` in {module}"
        )
        yield Diagnostic(code="KD351", severity="warning", message=message, help=help, path=path)


def _at(found: Diagnostic, path: SpecPath) -> Diagnostic:
    return Diagnostic(code=found.code, message=found.message, help=found.help, path=path)
