"""Mimic methods and losses described, each with a `mimic` block to paste; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcli.distill.mimickers import method_of as record_of
from kdcli.losses import loss_of
from kdcli.spec.check.signatures import MethodOption, options_of, signature
from kdcli.spec.tables import Kind, Method, Place

STUDENT, TEACHER = "cifar_resnet8x4", "cifar_resnet32x4"
"""The networks that the fragments are written for: blocks of the last stage's end are 0 and 4."""

STAGES = ("model.layer1", "model.layer2", "model.layer3")
STUDENT_RELUS, TEACHER_RELUS = (tuple(f"{stage}.{last}.relu:in" for stage in STAGES) for last in (0, 4))
POOLED = "model.fc:in"

DEFAULT_EXAMPLE: Mapping[Kind, tuple[Place, ...]] = {
    "logit": ("logits",),
    "feature": ("last stage",),
    "relational": ("last stage",),
    "teacher-free": ("logits",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodDescription:
    """One mimic method in words: its record, and what its docstring says."""

    name: str
    summary: str
    details: str
    record: Method
    options: tuple[MethodOption, ...]


def method_of(name: str) -> MethodDescription:
    """The description of a mimic method, or of own code that has been imported."""
    record = record_of(name)
    source = signature(record)
    doc = (source.doc if source is not None else None) or ""
    summary, _, details = doc.partition("\n\n")
    return MethodDescription(
        name=name,
        summary=" ".join(summary.split()),
        details=details.strip(),
        record=record,
        options=tuple(options_of(record.options).values()),
    )


def fragment(loss: str, *, name: str = "loss", method: str = "base") -> str:
    """The `mimic` block that uses a loss on small CIFAR networks, with the layers its authors take.

    name: the loss's name under `cfgs`. method: the mimic method; `base` is the default of a spec and not written.
    """
    record = loss_of(loss)
    places = record.example or DEFAULT_EXAMPLE[record.kind]
    kwargs = f", kwargs: {record.example_kwargs}" if record.example_kwargs else ""
    lines = [
        f"# for net: {{name: model, type: {STUDENT}}} and teacher0: {{name: model, type: {TEACHER}}}",
        "mimic:",
        *(["  task_loss: false"] if record.replaces_end else []),
        *([] if method == "base" else [f"  mimic_ins_type: {method}"]),
        "  cfgs:",
        f"    {name}: {{type: {loss}{kwargs}}}",
    ]
    takes = signature(record)
    reads_teacher = takes is not None and not takes.needs.isdisjoint(("teacher", "teacher_logits"))
    teacher = (record.teacher_example or places) if reads_teacher else ()
    return _block(lines, _layers(places, STUDENT_RELUS), _layers(teacher, TEACHER_RELUS))


def method_fragment(method: str) -> str:
    """The `mimic` block that uses a mimic method: the example of its record, else its first loss.

    A method that has neither and takes any losses (`extra_losses`) is shown with `l2_loss`.
    """
    record = record_of(method)
    example = record.example
    if example is None:
        name, loss = next(((name, own.type) for name, own in record.losses.items()), ("loss", "l2_loss"))
        return fragment(loss, name=name, method=method)
    lines = [f"# {example.networks}", "mimic:", f"  mimic_ins_type: {method}"]
    if example.adapter is not None:
        lines.append(f"  adapter: {example.adapter}")
    if example.losses:
        lines += [
            "  cfgs:",
            *(f"    {name}: {{type: {record.losses[name].type}}}" for name in example.losses),
        ]
    return _block(lines, example.student, example.teacher)


def _block(lines: Sequence[str], student: Sequence[str], teacher: Sequence[str]) -> str:
    """The lines, then which layers of the teacher and of the student; no teacher where it has no layers."""
    of_teacher = [
        "  teacher0:",
        f"    mimic_name: [{', '.join(teacher)}]",
        "    teacher_weight: teacher0.safetensors",
    ]
    of_student = ["  student:", f"    mimic_name: [{', '.join(student)}]"]
    return "\n".join([*lines, *(of_teacher if teacher else []), *of_student]) + "\n"


def _layers(places: Sequence[Place], relus: Sequence[str]) -> list[str]:
    """The layers at some places of a small CIFAR network; relus: what its stages end in."""
    at: dict[Place, Sequence[str]] = {
        "logits": ("logits",),
        "pooled vector": (POOLED,),
        "middle stage": STAGES[1:2],
        "last stage": STAGES[2:],
        "stages": STAGES,
        "before ReLU": relus,
    }
    return [layer for place in places for layer in at[place]]
