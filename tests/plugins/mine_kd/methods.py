"""A mimic method with an option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from kdcli.distill.mimickers.base import BaseMimicker
from kdcli.distill.mimickers.mimicker import Compared
from kdcli.distill.taps import Feature, View, tensors_in
from kdcli.spec.tables import Method, MethodExample, OwnLoss, option


@dataclass(frozen=True, slots=True, kw_only=True)
class SignOptions:
    """What `cfgs` of a SignMatching job may hold beside its loss."""

    divisor: float = option(2.0, "what the loss is divided by")


class SignMatching(BaseMimicker):
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

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        for key, compared in super().features(student, teachers, batch):
            yield (
                key,
                replace(
                    compared,
                    students=signs(compared.students),
                    teachers=signs(compared.teachers),
                    divisor=self.options.divisor,
                ),
            )


def signs(features: Sequence[Feature]) -> list[Tensor]:
    return [feature.tanh() for feature in tensors_in(features)]
