"""Mimic methods in words, and for every loss a `mimic` block that can be pasted; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from kdcli.distill.mimickers import MIMICKERS
from kdcli.losses import LOSSES
from kdcli.losses.describe import describe
from kdcli.spec.check.definitions import source_file
from kdcli.spec.check.signatures import Option, options_of, signature
from kdcli.spec.tables import Method

STUDENT, TEACHER = "cifar_resnet8x4", "cifar_resnet32x4"
"""The networks that the fragments are written for: blocks of the last stage's end are 0 and 4."""

STAGES = ("model.layer1", "model.layer2", "model.layer3")
POOLED = "model.fc:in"

ON_LOGITS = {"bce_loss": "kwargs: {from_logits: true}"}
"""Losses that are shown on logits though they take any feature, and what that asks of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodDescription:
    """One mimic method in words: its record, and what its docstring says."""

    name: str
    summary: str
    details: str
    record: Method
    options: tuple[Option, ...]


def method_of(name: str) -> MethodDescription:
    """The description of a name of MIMICKERS; KeyError for any other."""
    record = MIMICKERS[name]
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


def fragment(loss: str) -> str:
    """The `mimic` block that uses a loss on small CIFAR networks, with the layers its authors take."""
    told = describe(loss)
    student, teacher = _taps("logits" if loss in ON_LOGITS else told.taps, told.kind)
    lines = [
        f"# for net: {{name: model, type: {STUDENT}}} and teacher0: {{name: model, type: {TEACHER}}}",
        "mimic:",
        *(["  task_loss: false"] if _replaces_classifier(loss) else []),
        "  cfgs:",
        f"    loss: {{type: {loss}{f', {ON_LOGITS[loss]}' if loss in ON_LOGITS else ''}}}",
    ]
    if "a teacher" in told.needs or "the teacher's logits" in told.needs:
        lines += [
            "  teacher0:",
            f"    mimic_name: [{', '.join(teacher)}]",
            "    teacher_weight: teacher0.safetensors",
        ]
    lines += ["  student:", f"    mimic_name: [{', '.join(student)}]"]
    return "\n".join(lines) + "\n"


def method_fragment(method: str) -> str:
    """The `mimic` block that uses a mimic method, as its record says; `base` is shown by its first loss."""
    record = MIMICKERS[method]
    example = record.example
    if example is None:
        return fragment(next(iter(record.losses.values())).type)
    lines = [f"# {example.networks}", "mimic:", f"  mimic_ins_type: {method}"]
    if example.adapter is not None:
        lines.append(f"  adapter: {example.adapter}")
    if example.losses:
        lines += [
            "  cfgs:",
            *(f"    {name}: {{type: {record.losses[name].type}}}" for name in example.losses),
        ]
    if example.teacher:
        lines += [
            "  teacher0:",
            f"    mimic_name: [{', '.join(example.teacher)}]",
            "    teacher_weight: teacher0.safetensors",
        ]
    lines += ["  student:", f"    mimic_name: [{', '.join(example.student)}]"]
    return "\n".join(lines) + "\n"


def _replaces_classifier(loss: str) -> bool:
    """Whether the student gets another end, which the task's own loss may not train."""
    file = source_file(LOSSES[loss].path.partition(":")[0])
    return file is not None and "def student_classifier" in file.read_text(encoding="utf-8")


def _taps(wording: str | None, kind: str) -> tuple[list[str], list[str]]:
    """Layers of the student and of the teacher for what a docstring says after `Taps:`, else for the kind."""
    text = (wording or "").removeprefix("the ")
    before_relu = [f"{stage}.0.relu:in" for stage in STAGES], [f"{stage}.4.relu:in" for stage in STAGES]
    if "each stage and the pooled vector" in text:
        return [*STAGES, POOLED], [*(before_relu[1] if "ReLU" in text else STAGES), POOLED]
    if "into the last ReLU of each stage" in text:
        return before_relu
    if "one middle stage" in text:
        return [STAGES[1]], [STAGES[1]]
    if text.startswith("pooled vector"):
        return [POOLED], [POOLED]
    if "of each stage" in text:
        return list(STAGES), list(STAGES)
    if (text or kind in ("feature", "relational")) and not text.startswith("logits"):
        return [STAGES[2]], [STAGES[2]]
    return ["logits"], ["logits"]
