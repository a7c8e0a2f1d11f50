"""Mimic methods in words, and for every loss a `mimic` block that can be pasted; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcli.distill.mimickers import MIMICKERS
from kdcli.losses import LOSSES
from kdcli.losses.parts.describe import describe
from kdcli.spec.check.resolve_jobs import method_of as read_method
from kdcli.spec.check.signatures import signature
from kdcli.spec.tables import Kind, Place

STUDENT, TEACHER = "cifar_resnet8x4", "cifar_resnet32x4"
"""The networks that the fragments are written for: blocks of the last stage's end are 0 and 4."""

STAGES = ("model.layer1", "model.layer2", "model.layer3")
STUDENT_RELUS, TEACHER_RELUS = (tuple(f"{stage}.{last}.relu:in" for stage in STAGES) for last in (0, 4))
POOLED = "model.fc:in"
NECK = ("neck.p2_conv", "neck.p3_conv", "neck.p4_conv", "neck.p5_conv", "neck.p6_pool")

DEFAULT_EXAMPLE: Mapping[Kind, tuple[Place, ...]] = {
    "logit": ("logits",),
    "feature": ("last stage",),
    "relational": ("last stage",),
    "teacher-free": ("logits",),
}

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
    told, record = describe(loss), LOSSES[loss]
    student = record.example or DEFAULT_EXAMPLE[record.kind]
    teacher = record.teacher_example or student
    lines = [
        f"# for net: {{name: model, type: {STUDENT}}} and teacher0: {{name: model, type: {TEACHER}}}",
        "mimic:",
        *(["  task_loss: false"] if record.replaces_end else []),
        "  cfgs:",
        f"    loss: {{type: {loss}}}",
    ]
    if "a teacher" in told.needs or "the teacher's logits" in told.needs:
        lines += [
            "  teacher0:",
            f"    mimic_name: [{_layers(teacher, TEACHER_RELUS)}]",
            "    teacher_weight: teacher0.safetensors",
        ]
    lines += ["  student:", f"    mimic_name: [{_layers(student, STUDENT_RELUS)}]"]
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


def _layers(places: Sequence[Place], relus: Sequence[str]) -> str:
    """The layers at some places of a small CIFAR network, as a list in YAML; relus: what its stages end in."""
    at: dict[Place, Sequence[str]] = {
        "logits": ("logits",),
        "pooled vector": (POOLED,),
        "middle stage": STAGES[1:2],
        "last stage": STAGES[2:],
        "stages": STAGES,
        "before ReLU": relus,
    }
    return ", ".join(layer for place in places for layer in at[place])
