"""A mimic method with an option."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kdcli.distill.mimickers.mimicker import Mimicker, Requirements, StepInfo
from kdcli.distill.taps import View, tensors_in
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method, MethodExample, OwnLoss, option


@dataclass(frozen=True, slots=True, kw_only=True)
class SignOptions:
    """What `cfgs` of a SignMatching job may hold beside its loss."""

    power: float = option(2.0, "what the difference of the signs is raised to")


class SignMatching(Mimicker):
    """Soft signs of the student's features are drawn to the teacher's."""

    kdcli_record: ClassVar[Method] = Method(
        losses={"signs": OwnLoss(type="mine_kd.losses:huber", kwargs={"beta": 0.5})},
        options=SignOptions,
        example=MethodExample(
            networks="for net: {name: model, type: cifar_resnet8x4} and teacher0 of cifar_resnet32x4",
            student=("model.layer3",),
            teacher=("model.layer3",),
            losses=("signs",),
        ),
    )

    @classmethod
    def requirements_of(cls, job: Job) -> Requirements:
        return Requirements()

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        step_info: StepInfo,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        found = {}
        ours = tensors_in([student.features[tap] for tap in self.student_taps])
        for name, taps in self.teacher_taps.items():
            theirs = tensors_in([teachers[name].features[tap] for tap in taps])
            gaps = [(one.tanh() - two.tanh()).abs().mean() for one, two in zip(ours, theirs, strict=True)]
            found[f"{name}.signs"] = sum(gaps[1:], gaps[0]) ** self.options.power
        return found
