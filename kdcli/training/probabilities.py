"""Probabilities where logits are expected: found on a real batch before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import Mimicker
from kdcli.distill.module_search import maker_of
from kdcli.distill.taps import View
from kdcli.distill.teacher import is_logits
from kdcli.distill.terms import TapSide, Term
from kdcli.errors import Diagnostic, SpecPath
from kdcli.parallel.devices import to_device
from kdcli.records import Notice
from kdcli.training.run import Run
from kdcli.training.wiring import first_samples

SAMPLES = 64
TOLERANCE = 1e-3
SOFTMAX = (nn.Softmax, nn.LogSoftmax)


def doubtful_logits(run: Run) -> Iterator[Notice]:
    """Warn of each tap that gives probabilities to a loss on logits, and of a student that outputs them."""
    if run.task.matching is None:
        return
    batch = to_device(first_samples(next(run.train_loader.batches(0)), SAMPLES), run.processes.device)
    with restored_state(run.trainee), torch.no_grad():
        views = {name: teacher.whole_view(batch) for name, teacher in run.teachers.items()}
        run.trainee.train()  # what a peer shows, it shows in training
        student = run.trainee.view(batch)
    told: dict[str, Diagnostic] = {}
    for found in [*_taken(run, batch, student, views), *_classified(run, batch, student)]:
        told.setdefault(found.message, found)
    for found in told.values():
        span = run.parsed.locate(found).span
        place = "" if span is None else f" ({span.source}:{span.line})"
        yield Notice(message=f"{found.code}: {found.message}{place}; {found.help}", level="warning")


def are_probabilities(value: Any) -> bool:
    """Whether every row [K] lies in [0, 1] and sums to 1."""
    if not is_logits(value) or value.shape[1] < 2:
        return False
    rows = value.detach().float()
    inside = bool(((rows >= 0) & (rows <= 1)).all())
    return inside and bool(((rows.sum(1) - 1).abs() <= TOLERANCE).all())


def _taken(
    run: Run, batch: Mapping[str, Any], student: View, teachers: Mapping[str, View]
) -> Iterator[Diagnostic]:
    """The tensors that the losses on logits receive."""
    for job, mimicker in run.trainee.mimickers.items():
        assert isinstance(mimicker, Mimicker)
        for term in mimicker.modules():
            if not isinstance(term, Term):
                continue
            path: SpecPath = ("mimic", "jobs", job)
            pairs = term.pairs if term.record.kind == "logit" else ()
            sides: list[tuple[str | None, View, TapSide, SpecPath]]
            sides = [(None, student, pair.student, (*path, "student")) for pair in pairs]
            sides += [
                (term.teacher, teachers[term.teacher], pair.teacher, (*path, "teachers", term.teacher))
                for pair in pairs
                if term.teacher is not None and pair.teacher is not None
            ]
            for whose, view, side, where in sides:
                value = view.features.get(side.tap)
                if are_probabilities(value):
                    yield _told(run, batch, whose, side.tap, value, (*where, "mimic_name", side.number), term)
            yield from _beside(job, term, student, teachers)


def _beside(job: str, term: Term, student: View, teachers: Mapping[str, View]) -> Iterator[Diagnostic]:
    """The logits that a loss reads beside its features."""
    path: SpecPath = ("mimic", "jobs", job)
    sides: list[tuple[str, str, View, SpecPath]] = [
        ("student_logits", "the student", student, (*path, "student"))
    ]
    if term.teacher is not None:
        where = (*path, "teachers", term.teacher)
        sides.append(("teacher_logits", term.teacher, teachers[term.teacher], where))
    for argument, whose, view, where in sides:
        if argument in term.binding.inputs and are_probabilities(view.outputs.get("logits")):
            yield Diagnostic(
                code="KD626",
                severity="warning",
                message=f"{term.loss_type} reads the logits of {whose}, and these are probabilities",
                help="leave the softmax out of the network's forward",
                path=where,
            )


def _told(
    run: Run,
    batch: Mapping[str, Any],
    teacher: str | None,
    tap: str,
    value: Any,
    path: SpecPath,
    term: Term,
) -> Diagnostic:
    net, seen = _network(run, teacher, batch)
    layer = logits_layer(net, seen, tap, value)
    whose = "the student" if teacher is None else teacher
    return Diagnostic(
        code="KD626",
        severity="warning",
        message=f"`{tap}` of {whose} gives probabilities, and {term.loss_type} takes a softmax of them once more",
        help="name the layer before the softmax"
        + (f": `{layer}`" if layer is not None else ", or leave the softmax out of the network's forward"),
        path=path,
    )


def _classified(run: Run, batch: Mapping[str, Any], student: View) -> Iterator[Diagnostic]:
    """The student's output that the task's cross entropy reads."""
    task_loss = any(stage.active.task_loss for stage in run.stages)
    if not task_loss or not are_probabilities(student.outputs.get("logits")):
        return
    yield Diagnostic(
        code="KD626",
        severity="warning",
        message="`logits` of the student are probabilities, and cross entropy takes a softmax of them once more: "
        "it can't fall far",
        help="leave the softmax out of the student's forward",
        path=("net",),
    )


def _network(run: Run, teacher: str | None, batch: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
    if teacher is None:
        return run.student, batch
    return run.teachers[teacher].net, run.teachers[teacher].pixels_of(batch)


def logits_layer(net: nn.Module, batch: Mapping[str, Any], tap: str, value: Tensor) -> str | None:
    """The tap before the softmax: its input, else the last layer of that width with other values.

    value: the probabilities that `tap` gave on the batch.
    """
    softmax = maker_of(net, batch, tap, SOFTMAX)
    if softmax is not None:
        path, bracket, number = softmax.partition("[")
        return f"{path}:in{bracket}{number}"
    found: list[str] = []

    def note(name: str, output: Any) -> None:
        if is_logits(output) and output.shape == value.shape and not are_probabilities(output):
            found.append(name)

    with ExitStack() as stack, torch.no_grad(), restored_state(net):
        for name, module in net.named_modules():
            if name and not list(module.children()):
                hook = module.register_forward_hook(lambda _m, _a, output, name=name: note(name, output))
                stack.callback(hook.remove)
        net.eval()(batch)
    if not found:
        return None
    calls = found.count(found[-1])
    return found[-1] if calls == 1 else f"{found[-1]}[{calls - 1}]"
