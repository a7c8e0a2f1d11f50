"""FGD: focal and global distillation of a detector's neck."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.detectors import tapped, term_over
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.terms import Term
from kdcli.models.detection.area_masks import area_masks
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method


class FgdMimicker(Mimicker):
    """`loss` (fgd) over the tapped neck maps, added up; every box marks its place on every level.

    Source: "Focal and Global Knowledge Distillation for Detectors", arXiv:2111.11837.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["FGD"]

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """The boxes of the batch."""
        return Needs(batch=frozenset({"boxes"}))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        loss = self.losses_of(setting.job)["loss"]
        names = setting.job.student.mimic_name
        self.terms = nn.ModuleDict()
        for teacher, view in setting.teachers.items():
            theirs = tapped(view, setting.job.teachers[teacher].mimic_name)
            own = tapped(setting.student, names)
            self.terms[f"{teacher}:loss"] = term_over(setting, "loss", loss, teacher, own, theirs)
        self.student_taps = tuple(names)

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        clock: Clock,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """`<teacher>.loss`."""
        if "loss" not in wanted:
            return {}
        image_size = (int(batch["image"].shape[-2]), int(batch["image"].shape[-1]))
        offset = int(batch.get("annotations", {}).get("box_offset", 0))
        maps = tensors_in([student.features[tap] for tap in self.student_taps])
        masks = [
            area_masks(batch["boxes"], (int(m.shape[-2]), int(m.shape[-1])), image_size, offset) for m in maps
        ]
        losses = {}
        for key, term in self.terms.items():
            assert isinstance(term, Term)
            teacher = key.partition(":")[0]
            losses[f"{teacher}.loss"] = term(student, teachers[teacher], batch, clock, masks=masks)
        return losses
