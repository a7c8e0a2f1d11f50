"""Mimic methods in words, and for every loss a `mimic` block that can be pasted; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from kdcli.distill.mimickers import MIMICKERS
from kdcli.losses import LOSSES
from kdcli.losses.describe import describe
from kdcli.spec.check.definitions import source_file
from kdcli.spec.check.resolve_jobs import method_of as read_method
from kdcli.spec.check.signatures import signature

STUDENT, TEACHER = "cifar_resnet8x4", "cifar_resnet32x4"
"""The networks that the fragments are written for: blocks of the last stage's end are 0 and 4."""

STAGES = ("model.layer1", "model.layer2", "model.layer3")
POOLED = "model.fc:in"
NECK = ("neck.p2_conv", "neck.p3_conv", "neck.p4_conv", "neck.p5_conv", "neck.p6_pool")

MUTUAL = f"""\
# for net: [{{name: model, type: {STUDENT}}}, {{name: peer, type: peer, kwargs: {{network: {STUDENT}}}}}]
mimic:
  mimic_ins_type: Mutual
  student:
    mimic_name: [logits, peer_logits]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One `mimic_ins_type`: docstring, losses with their types, options, whether it takes any loss."""

    name: str
    summary: str
    details: str
    losses: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    extra: bool


def method_of(name: str) -> Method:
    """The method of a name of MIMICKERS; KeyError for any other."""
    source = signature(MIMICKERS[name])
    found = read_method(source)
    doc = (source.doc if source is not None else None) or ""
    summary, _, details = doc.partition("\n\n")
    losses = {} if found is None else found.losses or {}
    return Method(
        name=name,
        summary=" ".join(summary.split()),
        details=details.strip(),
        losses=tuple((loss, kind or "") for loss, (kind, _) in losses.items()),
        options=() if found is None else found.options or (),
        extra=found is not None and found.extra,
    )


def fragment(loss: str) -> str:
    """The `mimic` block that uses a loss on small CIFAR networks, with the layers its authors take."""
    told = describe(loss)
    student, teacher = _taps(told.taps, told.kind)
    lines = [
        f"# for net: {{name: model, type: {STUDENT}}} and teacher0: {{name: model, type: {TEACHER}}}",
        "mimic:",
        *(["  task_loss: false"] if _replaces_classifier(loss) else []),
        "  cfgs:",
        f"    loss: {{type: {loss}}}",
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
    """The `mimic` block that uses a mimic method: `base` on CIFAR networks, the others' on detectors."""
    if method == "base":
        return fragment("l2_loss")
    if method == "Mutual":
        return MUTUAL
    cfgs = [f"{name}: {{type: {kind}}}" for name, kind in method_of(method).losses]
    lines = [
        "# for net and teacher0 of United-Perception's modules, each with `neck` (an FPN of 5 levels)",
        "mimic:",
        f"  mimic_ins_type: {method}",
        "  adapter: auto",
        "  cfgs:",
        *(f"    {line}" for line in cfgs if not line.startswith("backbone")),
        "  teacher0:",
        f"    mimic_name: [{', '.join(NECK)}]",
        "    teacher_weight: teacher0.safetensors",
        "  student:",
        f"    mimic_name: [{', '.join(NECK)}]",
    ]
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
