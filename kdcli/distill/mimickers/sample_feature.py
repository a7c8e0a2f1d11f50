"""SampleFeature: mimic what lies inside the proposed boxes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcli.distill.mimickers.detectors import proposals, tapped, term_over
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.terms import Term
from kdcli.errors import SpecError
from kdcli.models.detection.boxes import offset_of
from kdcli.models.detection.roi_pool import RoiAlign, pool_levels
from kdcli.spec.schema import Job, LossSpec


class SampleFeatureMimicker(Mimicker):
    """`feature_loss` (l2) between student and teacher maps pooled on proposals, divided by 2.

    The proposals are the teacher's, or the student's with `teacher_proposal: false`; each is pooled on the
    level of its size, by the network's own pooling layer (`student_roipooler`, `teacher_roipooler`; that of
    the student where a teacher has none). Levels index the tapped maps.
    Source: "Mimicking Very Efficient Network for Object Detection", CVPR 2017.
    """

    LOSSES: ClassVar[Mapping[str, LossSpec]] = {
        "feature_loss": LossSpec(type="l2_loss", kwargs={"feat_norm": False, "batch_mean": False})
    }
    OPTIONS: ClassVar[Mapping[str, Any]] = {
        "rcnn_fpn_levels": [0, 1, 2, 3],
        "rcnn_fpn_strides": [4, 8, 16, 32],
        "rcnn_fpn_base_scale": 56,
        "teacher_proposal": True,
        "student_roipooler": "bbox_head_pre_process.roipool",
        "teacher_roipooler": None,
    }

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """Proposals of one side."""
        boxes = frozenset({"rpn_dt_bboxes"})
        if {**cls.OPTIONS, **job.options}["teacher_proposal"]:
            return Needs(teacher_outputs=boxes)
        return Needs(student_outputs=boxes)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        options = {**self.OPTIONS, **setting.job.options}
        self.levels: list[int] = list(options["rcnn_fpn_levels"])
        self.strides: list[int] = list(options["rcnn_fpn_strides"])
        self.base_scale = float(options["rcnn_fpn_base_scale"])
        self.teacher_proposal = bool(options["teacher_proposal"])
        self._check_levels(setting)
        own = _pooler(setting.student_module, options["student_roipooler"])
        own = own or RoiAlign(7, 0, aligned=True)
        paths = options["teacher_roipooler"] or [self.OPTIONS["student_roipooler"]] * len(setting.teachers)
        if len(paths) != len(setting.teachers):
            raise SpecError.at(
                (*setting.path, "options", "teacher_roipooler"),
                "KD462",
                f"{len(paths)} poolers for {len(setting.teachers)} teachers",
                "`teacher_roipooler` is a list with a layer path for each teacher of the job",
            )
        # Kept from being children: they are the networks', and hold no parameters.
        self.poolers: dict[str, RoiAlign] = {"": own}
        loss = self.losses_of(setting.job)["feature_loss"]
        self.terms = nn.ModuleDict()
        for (teacher, view), path in zip(setting.teachers.items(), paths, strict=True):

            def module(where: str, teacher: str = teacher) -> nn.Module:
                return setting.teacher_module(teacher, where)

            self.poolers[teacher] = _pooler(module, path) or own
            if self.teacher_proposal:
                proposals(setting, view, teacher)
            else:
                proposals(setting, setting.student, "the student")
            students, teachers = (
                _pooled_shapes(tapped(shown, names), pool)
                for shown, names, pool in (
                    (setting.student, setting.job.student.mimic_name, own),
                    (view, setting.job.teachers[teacher].mimic_name, self.poolers[teacher]),
                )
            )
            self.terms[f"{teacher}:feature_loss"] = term_over(
                setting, "feature_loss", loss, teacher, students, teachers
            )
        self.student_taps = tuple(setting.job.student.mimic_name)
        self.teacher_taps = {name: tuple(t.mimic_name) for name, t in setting.job.teachers.items()}

    def forward(
        self,
        student: View,
        teachers: Mapping[str, View],
        batch: Mapping[str, Any],
        clock: Clock,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """`<teacher>.feature_loss`."""
        losses = {}
        for teacher, taps in self.teacher_taps.items():
            if "feature_loss" not in wanted:
                continue
            view = teachers[teacher]
            rois = (
                proposals(None, view, teacher)
                if self.teacher_proposal
                else proposals(None, student, "the student")
            ).detach()
            own = self._pooled("", student, self.student_taps, rois)
            if len(rois) == 0:
                losses[f"{teacher}.feature_loss"] = own.sum() * 0.0
                continue
            theirs = self._pooled(teacher, view, taps, rois)
            term = self.terms[f"{teacher}:feature_loss"]
            assert isinstance(term, Term)
            loss = term(student, view, batch, clock, students=[own], teachers=[theirs])
            losses[f"{teacher}.feature_loss"] = loss / 2.0
        return losses

    def _pooled(self, whose: str, view: View, taps: Sequence[str], rois: Tensor) -> Tensor:
        features = list(tensors_in([view.features[tap] for tap in taps]))
        pool = self.poolers[whose]
        strides = dict(zip(self.levels, self.strides, strict=True))
        by_index = [strides.get(index, 1) for index in range(len(features))]
        return pool_levels(
            pool, rois, features, by_index, self.levels, self.base_scale, offset_of(pool.aligned)
        )[0]

    def _check_levels(self, setting: Setting) -> None:
        where = (*setting.path, "options", "rcnn_fpn_levels")
        if len(self.levels) != len(self.strides):
            raise SpecError.at(
                where, "KD462", f"{len(self.levels)} levels need as many strides, not {len(self.strides)}"
            )
        count = len(setting.job.student.mimic_name)
        if not self.levels or max(self.levels) >= count or min(self.levels) < 0:
            raise SpecError.at(
                where,
                "KD462",
                f"levels {self.levels} of {count} tapped layers",
                "`rcnn_fpn_levels` are indices into `mimic_name`",
            )


def _pooler(module: Any, path: str) -> RoiAlign | None:
    try:
        found = module(path)
    except AttributeError:
        return None
    return found if isinstance(found, RoiAlign) else None


def _pooled_shapes(features: Mapping[str, Any], pool: RoiAlign) -> dict[str, Tensor]:
    """What pooling gives, as zeros for one box, under the first layer's name."""
    first = next(tensors_in(list(features.values())))
    return {next(iter(features)): first.new_zeros(1, first.shape[1], pool.pool_size, pool.pool_size)}
