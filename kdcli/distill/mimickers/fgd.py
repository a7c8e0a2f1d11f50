"""FGD: focal and global distillation of a detector's neck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.detectors import DetectorMimicker
from kdcli.distill.mimickers.mimicker import Compared, MimicContext, Requirements
from kdcli.distill.taps import View, tapped, tensors_in
from kdcli.distill.terms import sides_of
from kdcli.models.detection.box_masks import area_masks
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method


class FgdMimicker(DetectorMimicker):
    """`loss` (fgd) over the tapped neck maps, added up; every box marks its place on every level.

    Source: "Focal and Global Knowledge Distillation for Detectors", arXiv:2111.11837.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["FGD"]

    @classmethod
    def requirements_of(cls, job: Job) -> Requirements:
        """The boxes of the batch."""
        return Requirements(batch=frozenset({"boxes"}))

    def __init__(self, context: MimicContext) -> None:
        super().__init__(context)
        student_sides = sides_of(context.student, self.student_taps)
        for teacher, view in context.teachers.items():
            teacher_sides = sides_of(view, self.teacher_taps[teacher])
            self.add(context, "loss", teacher, student_sides, teacher_sides, masked=True)

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The tapped maps, under a mask for each of the student's."""
        image_size = (int(batch["image"].shape[-2]), int(batch["image"].shape[-1]))
        offset = int(batch.get("annotations", {}).get("box_offset", 0))
        student_maps = tapped(student, self.student_taps)
        masks = [
            area_masks(batch["boxes"], (int(m.shape[-2]), int(m.shape[-1])), image_size, offset)
            for m in tensors_in(student_maps)
        ]
        for teacher, taps in self.teacher_taps.items():
            teacher_maps = tapped(teachers[teacher], taps)
            yield f"{teacher}:loss", Compared(students=student_maps, teachers=teacher_maps, masks=masks)
