"""DeFeat: mimic foreground and background apart, on neck and backbone maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.mimickers import MIMICKERS, DeFeatOptions
from kdcli.distill.mimickers.detectors import tapped, term_over
from kdcli.distill.mimickers.levels import check_levels
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.terms import Term
from kdcli.errors import SpecError, SpecPath
from kdcli.models.detection.truth_masks import truth_masks
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method

ADAPTED = "adapt_neck_features"


class DeFeatMimicker(Mimicker):
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
    def needs_of(cls, job: Job) -> Needs:
        """Boxes, and the student's adapted maps."""
        return Needs(batch=frozenset({"boxes"}), student_outputs=frozenset({ADAPTED}))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        options = self.options
        self.necks = options.neck_feature_nums
        taps = setting.job.student.mimic_name
        self.backbones = len(taps) - self.necks
        where: SpecPath = (*setting.path, "options")
        if self.backbones < 0:
            raise SpecError.at(
                (*where, "neck_feature_nums"),
                "KD462",
                f"{self.necks} neck layers of {len(taps)} tapped ones",
                "`neck_feature_nums` counts the neck's layers at the end of `mimic_name`",
            )
        counts = [len(options.rpn_fpn_levels), len(options.rpn_fpn_strides)]
        if counts != [self.necks] * 2:
            raise SpecError.at(
                (*where, "rpn_fpn_levels"),
                "KD462",
                f"{counts[0]} levels, {counts[1]} strides and {self.necks} neck layers",
                "give as many of `rpn_fpn_levels` and `rpn_fpn_strides` as there are neck layers",
            )
        self.levels, self.strides = list(options.rpn_fpn_levels), list(options.rpn_fpn_strides)
        self.base_scale = float(options.rpn_fpn_base_scale)
        check_levels(self.levels, self.necks, "neck layers", (*where, "rpn_fpn_levels"))
        losses = self.losses_of(setting.job)
        self.terms = nn.ModuleDict()
        self.teacher_names = tuple(setting.teachers)
        self.taps = {name: tuple(setting.job.teachers[name].mimic_name) for name in self.teacher_names}
        self.student_taps = tuple(taps)
        own = {
            f"{ADAPTED}[{i}]" if ADAPTED in setting.student.outputs else taps[self.backbones + i]: feature
            for i, feature in enumerate(self._necks(setting.student))
        }
        if len(own) != self.necks:
            raise SpecError.at(
                (*where, "neck_feature_nums"),
                "KD462",
                f"`{ADAPTED}` has {len(own)} maps, and {self.necks} neck layers are mimicked",
            )
        for teacher, view in setting.teachers.items():
            theirs = self.taps[teacher]
            for name in ("neck_fg_loss", "neck_bg_loss"):
                self.terms[f"{teacher}:{name}"] = term_over(
                    setting, name, losses[name], teacher, own, tapped(view, theirs[self.backbones :])
                )
            if self.backbones:
                self.terms[f"{teacher}:backbone_loss"] = term_over(
                    setting,
                    "backbone_loss",
                    losses["backbone_loss"],
                    teacher,
                    tapped(setting.student, taps[: self.backbones]),
                    tapped(view, theirs[: self.backbones]),
                )

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        clock: Clock,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """`<teacher>.neck_fg_loss`, `<teacher>.neck_bg_loss`, `<teacher>.backbone_loss`."""
        own = self._necks(student)
        foreground = truth_masks(
            batch["boxes"],
            [(int(map.shape[2]), int(map.shape[3])) for map in own],
            self.strides,
            self.levels,
            self.base_scale,
            int(batch.get("annotations", {}).get("box_offset", 0)),
        )
        masks = {"neck_fg_loss": foreground, "neck_bg_loss": [1.0 - mask for mask in foreground]}
        losses = {}
        for key, term in self.terms.items():
            teacher, _, name = key.partition(":")
            if name not in wanted:
                continue
            assert isinstance(term, Term)
            view = teachers[teacher]
            if name in masks:
                theirs = [view.features[tap] for tap in self.taps[teacher][self.backbones :]]
                loss = term(student, view, batch, clock, students=own, teachers=theirs, masks=masks[name])
                losses[f"{teacher}.{name}"] = loss / self.necks / 2.0
            else:
                losses[f"{teacher}.{name}"] = term(student, view, batch, clock) / self.backbones / 2.0
        return losses

    def _necks(self, student: View) -> list[Tensor]:
        if ADAPTED in student.outputs:
            return list(student.outputs[ADAPTED])
        return list(tensors_in([student.features[tap] for tap in self.student_taps[self.backbones :]]))
