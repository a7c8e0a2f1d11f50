"""Every loss of the table as one job on a CIFAR ResNet: which layers it taps, and what else the job says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdcli.losses import LOSSES

LOGITS = ("logits",)
STAGES = ("model.layer1", "model.layer2", "model.layer3")
MIDDLE = ("model.layer2",)
LAST_MAP = ("model.layer3",)
VECTOR = ("model.fc:in",)
BEFORE_RELU = tuple(f"model.layer{stage}.{{last}}.relu:in" for stage in (1, 2, 3))
"""{last}: the number of the stage's last block."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One loss in one job. teacher: its layers where they are others than the student's; () for none.

    kwargs: of the loss. loss: further keys beside its `type`. mimic: further keys of `mimic`.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    mimic: dict[str, Any] = field(default_factory=dict)


ON_LOGITS = tuple(name for name, record in LOSSES.items() if record.kind == "logit")
ADAPTED: dict[str, Any] = {"adapter": "auto"}

METHODS: dict[str, Method] = {
    **{name: Method(student=LOGITS) for name in ON_LOGITS},
    "bce_loss": Method(student=LOGITS, kwargs={"from_logits": True}),
    "ab": Method(student=BEFORE_RELU),
    "ofd": Method(student=BEFORE_RELU),
    "at": Method(student=STAGES),
    "nst": Method(student=STAGES),
    "vid": Method(student=STAGES),
    "fsp": Method(student=STAGES, loss=ADAPTED),
    "l2_loss": Method(student=LAST_MAP, kwargs={"feat_norm": True, "batch_mean": True}, loss=ADAPTED),
    "review": Method(student=(*STAGES, *VECTOR), teacher=(*BEFORE_RELU, *VECTOR)),
    "fitnet": Method(student=MIDDLE),
    "cat_kd": Method(student=LAST_MAP),
    "cosine": Method(student=LAST_MAP),
    "cwd": Method(student=LAST_MAP, loss=ADAPTED),
    "kl_loss": Method(student=LAST_MAP, loss=ADAPTED),
    "fgd": Method(student=LAST_MAP, kwargs={"relation": 1.0}),
    "ft": Method(student=LAST_MAP),
    "ft_paraphrase": Method(student=LAST_MAP),
    "mgd": Method(student=LAST_MAP),
    "pkd": Method(student=LAST_MAP, loss=ADAPTED),
    "simkd": Method(student=LAST_MAP, mimic={"task_loss": False}),
    "sp": Method(student=LAST_MAP),
    "srrl": Method(student=LAST_MAP),
    "wkd_f": Method(student=LAST_MAP),
    "srd": Method(student=VECTOR),
    "cc": Method(student=VECTOR),
    "crd": Method(student=VECTOR, kwargs={"K": 1024}),
    "itrd": Method(student=VECTOR),
    "pkt": Method(student=VECTOR),
    "rkd": Method(student=VECTOR),
    "tfkd_reg": Method(student=LOGITS, teacher=()),
    "uskd": Method(student=MIDDLE, teacher=()),
}


def mimic_of(
    name: str, teacher: dict[str, Any], *, student_blocks: int = 1, teacher_blocks: int = 1, **kwargs: Any
) -> dict[str, Any]:
    """What stands under `mimic` for one method.

    teacher: what its teacher's entry says beside `mimic_name`. blocks: a stage's in each network. kwargs: of
    the loss, over those of the table.
    """
    method = METHODS[name]
    theirs = method.student if method.teacher is None else method.teacher
    loss = {"type": name, **method.loss}
    if method.kwargs or kwargs:
        loss["kwargs"] = {**method.kwargs, **kwargs}
    found: dict[str, Any] = {**method.mimic, "cfgs": {"loss": loss}}
    if theirs:
        found["teacher0"] = {"mimic_name": _named(theirs, teacher_blocks), **teacher}
    found["student"] = {"mimic_name": _named(method.student, student_blocks)}
    return found


def _named(taps: tuple[str, ...], blocks: int) -> list[str]:
    return [tap.format(last=blocks - 1) for tap in taps]
