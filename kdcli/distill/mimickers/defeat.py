"""DeFeat: mimic foreground and background apart, on neck and backbone maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from kdcli.distill.mimickers import MIMICKERS, DeFeatOptions
from kdcli.distill.mimickers.detectors import DetectorMimicker, check_levels, made_sides
from kdcli.distill.mimickers.mimicker import Compared, MimicContext, Requirements
from kdcli.distill.taps import View, tapped, tensors_in
from kdcli.distill.terms import TapSide, sides_of
from kdcli.errors import SpecError, SpecPath
from kdcli.models.detection.box_masks import truth_masks
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method

ADAPTED = "adapt_neck_features"


class DeFeatMimicker(DetectorMimicker):
    """`neck_fg_loss` and `neck_bg_loss` under masks of the ground-truth boxes, and `backbone_loss` (all l2).

    The last neck_feature_nums tapped layers are the neck's, those before them the backbone's. The student's
    neck maps are its output `adapt_neck_features` where it has one (an `ADAP` after the neck), else the
    tapped ones. A box marks the level of its size; neck losses are added up over levels and divided by
    twice their number, the backbone's by twice the number of its layers (left out where there is none).
    Source: "Distilling Object Detectors via Decoupled Features", arXiv:2103.14475.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["DeFeat"]
    options: DeFeatOptions

    @classmethod
    def requirements_of(cls, job: Job) -> Requirements:
        """Boxes, and the student's adapted maps."""
        return Requirements(batch=frozenset({"boxes"}), student_outputs=frozenset({ADAPTED}))

    def __init__(self, context: MimicContext) -> None:
        super().__init__(context)
        options = self.options
        self.necks = options.neck_feature_nums
        taps = context.job.student.mimic_name
        self.backbones = len(taps) - self.necks
        options_path: SpecPath = (*context.path, "options")
        if self.backbones < 0:
            raise SpecError.at(
                (*options_path, "neck_feature_nums"),
                "KD462",
                f"{self.necks} neck layers of {len(taps)} tapped ones",
                "`neck_feature_nums` counts the neck's layers at the end of `mimic_name`",
            )
        counts = [len(options.rpn_fpn_levels), len(options.rpn_fpn_strides)]
        if counts != [self.necks] * 2:
            raise SpecError.at(
                (*options_path, "rpn_fpn_levels"),
                "KD462",
                f"{counts[0]} levels, {counts[1]} strides and {self.necks} neck layers",
                "give as many of `rpn_fpn_levels` and `rpn_fpn_strides` as there are neck layers",
            )
        self.levels, self.strides = list(options.rpn_fpn_levels), list(options.rpn_fpn_strides)
        self.base_scale = float(options.rpn_fpn_base_scale)
        check_levels(self.levels, self.necks, "neck layers", (*options_path, "rpn_fpn_levels"))
        bones, neck = self._parts(context.student, self.student_taps)
        name = ADAPTED if ADAPTED in context.student.outputs else "mimic_name"
        if name == ADAPTED:
            neck = made_sides(ADAPTED, context.student.outputs[ADAPTED], self.backbones)
        if len(neck) != self.necks:
            message = f"`{name}` has {len(neck)} maps, and {self.necks} neck layers are mimicked"
            raise SpecError.at((*options_path, "neck_feature_nums"), "KD462", message)
        for teacher, view in context.teachers.items():
            their_bones, their_neck = self._parts(view, self.teacher_taps[teacher])
            for loss in ("neck_fg_loss", "neck_bg_loss"):
                self.add(context, loss, teacher, neck, their_neck, masked=True)
            if self.backbones:
                self.add(context, "backbone_loss", teacher, bones, their_bones)

    def _parts(self, view: View, taps: Sequence[str]) -> tuple[list[TapSide], list[TapSide]]:
        """The tapped layers of the backbone, and those of the neck."""
        count = self.backbones
        return sides_of(view, taps[:count]), sides_of(view, taps[count:], count)

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The neck's maps, under a mask of what is inside of boxes and one of what is outside, and the backbone's."""
        student_features, bones = tapped(student, self.student_taps), slice(self.backbones)
        neck = list(tensors_in(student.outputs.get(ADAPTED, student_features[self.backbones :])))
        boxes, sizes = batch["boxes"], [(int(map.shape[2]), int(map.shape[3])) for map in neck]
        offset = int(batch.get("annotations", {}).get("box_offset", 0))
        inside = truth_masks(boxes, sizes, self.strides, self.levels, self.base_scale, offset)
        masks = {"neck_fg_loss": inside, "neck_bg_loss": [1.0 - mask for mask in inside]}
        halves = 2.0 * self.necks
        for teacher, taps in self.teacher_taps.items():
            teacher_features = tapped(teachers[teacher], taps)
            for name, mask in masks.items():
                pair = Compared(
                    students=neck, teachers=teacher_features[self.backbones :], masks=mask, divisor=halves
                )
                yield f"{teacher}:{name}", pair
            if self.backbones:
                pair = Compared(
                    students=student_features[bones],
                    teachers=teacher_features[bones],
                    divisor=2.0 * self.backbones,
                )
                yield f"{teacher}:backbone_loss", pair
