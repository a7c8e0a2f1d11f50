"""SampleFeature: mimic what lies inside the proposed boxes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from kdcli.distill.mimickers import MIMICKERS, SampleFeatureOptions
from kdcli.distill.mimickers.detectors import proposals, tapped, term_over
from kdcli.distill.mimickers.levels import check_levels
from kdcli.distill.mimickers.mimicker import Clock, Mimicker, Needs, Setting
from kdcli.distill.taps import View, tensors_in
from kdcli.distill.terms import Term
from kdcli.errors import Findings, SpecError, SpecPath, did_you_mean
from kdcli.losses.reduce import per_count
from kdcli.models.detection.boxes import offset_of
from kdcli.models.detection.levels import by_level
from kdcli.models.detection.roi_pool import RoiAlign
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method

POOLER = "bbox_head_pre_process.roipool"
"""Where a two-stage detector of United-Perception has its pooling layer."""

POOL_SIZE = 7
"""Cells a side of what is pooled where neither network has a pooling layer."""

Poolers: TypeAlias = tuple[RoiAlign, RoiAlign]
"""The student's pooling layer and a teacher's."""


class SampleFeatureMimicker(Mimicker):
    """`feature_loss` (l2) between student and teacher maps pooled on proposals, divided by 2.

    The proposals are the teacher's, or the student's with `teacher_proposal: false`. Each is pooled on the
    level of its size, the same of both networks, by the network's own pooling layer (`student_roipooler`,
    `teacher_roipooler`), else by the other network's, else by RoIAlign of 7x7 in the geometry of the data's
    boxes. Levels index the tapped maps. A mean is over the proposals of all processes.
    Source: "Mimicking Very Efficient Network for Object Detection", CVPR 2017.
    """

    kdcli_record: ClassVar[Method] = MIMICKERS["SampleFeature"]
    options: SampleFeatureOptions

    @classmethod
    def needs_of(cls, job: Job) -> Needs:
        """Proposals of one side."""
        boxes = frozenset({"rpn_dt_bboxes"})
        options: SampleFeatureOptions = cls.kdcli_record.options_of(job.options)
        if options.teacher_proposal:
            return Needs(teacher_outputs=boxes)
        return Needs(student_outputs=boxes)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        options = self.options
        shown = [(setting.student, setting.job.student.mimic_name)]
        shown += [(view, setting.job.teachers[name].mimic_name) for name, view in setting.teachers.items()]
        count = min(len(list(tensors_in([view.features[tap] for tap in taps]))) for view, taps in shown)
        where: SpecPath = (*setting.path, "options", "rcnn_fpn_levels")
        given, wanted = len(options.rcnn_fpn_strides), len(options.rcnn_fpn_levels)
        if given != wanted:
            raise SpecError.at(where, "KD462", f"{wanted} levels need as many strides, not {given}")
        self.levels, self.strides = list(options.rcnn_fpn_levels), list(options.rcnn_fpn_strides)
        self.base_scale = float(options.rcnn_fpn_base_scale)
        check_levels(self.levels, count, "tapped maps", where)
        # Kept from being children: they are the networks', and hold no parameters.
        self.poolers: dict[str, Poolers | None] = _poolers(setting, options)
        loss = self.losses_of(setting.job)["feature_loss"]
        self.terms = nn.ModuleDict()
        for teacher, view in setting.teachers.items():
            if options.teacher_proposal:
                proposals(setting, view, teacher)
            else:
                proposals(setting, setting.student, "the student")
            sizes = [pool.pool_size for pool in self.poolers[teacher] or ()] or [POOL_SIZE] * 2
            students, teachers = (
                _pooled_shapes(tapped(shown, names), size)
                for shown, names, size in (
                    (setting.student, setting.job.student.mimic_name, sizes[0]),
                    (view, setting.job.teachers[teacher].mimic_name, sizes[1]),
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
                if self.options.teacher_proposal
                else proposals(None, student, "the student")
            ).detach()
            offset = self._offset(teacher, batch)
            # Once for both networks: row i of the student and of the teacher are the same roi.
            groups = by_level(rois, self.levels, self.base_scale, offset)
            count = torch.tensor(float(sum(len(indices) for indices in groups)), device=rois.device)
            if not any(len(indices) for indices in groups):
                # DDP and synchronised norms wait for every process: one without a roi goes the same way
                # with a stand-in, which counts for nothing below.
                rois = rois.new_tensor([[0.0, 0.0, 0.0, self.base_scale, self.base_scale]])
                groups = by_level(rois, self.levels, self.base_scale, offset)
            spare = RoiAlign(POOL_SIZE, 0, aligned=offset == 0)
            pool, their_pool = self.poolers[teacher] or (spare, spare)
            own = self._pooled(pool, student, self.student_taps, rois, groups)
            theirs = self._pooled(their_pool, view, taps, rois, groups)
            term = self.terms[f"{teacher}:feature_loss"]
            assert isinstance(term, Term)
            loss = term(student, view, batch, clock, students=[own], teachers=[theirs])
            # The mean over this process's rois counts by how many of all rois they are: a weight, not a mask
            # of ones, since it fits losses without a mask too, and those divided by the number of rows.
            losses[f"{teacher}.feature_loss"] = loss / 2.0 * per_count(count, count)
        return losses

    def _offset(self, teacher: str, batch: Mapping[str, Any]) -> int:
        """0 or 1, the geometry of the proposals: as the data says, else as the pooling layers do."""
        poolers = self.poolers[teacher]
        known = 0 if poolers is None else offset_of(poolers[0].aligned)
        return int(batch.get("annotations", {}).get("box_offset", known))

    def _pooled(
        self, pool: RoiAlign, view: View, taps: Sequence[str], rois: Tensor, groups: Sequence[Tensor]
    ) -> Tensor:
        """[R, C, p, p], by level and in the order of the groups; a level without rois stays attached."""
        features = list(tensors_in([view.features[tap] for tap in taps]))
        rows = [
            pool(rois[indices], features[level], int(stride))
            for level, stride, indices in zip(self.levels, self.strides, groups, strict=True)
        ]
        return torch.cat(rows)


def _poolers(setting: Setting, options: SampleFeatureOptions) -> dict[str, Poolers | None]:
    """For each teacher its pooling layer and the student's; None where neither has one.

    Raises SpecError KD462 and KD464 where the paths that the spec gives lead to none.
    """
    where = (*setting.path, "options")
    paths = options.teacher_roipooler or (None,) * len(setting.teachers)
    if len(paths) != len(setting.teachers):
        raise SpecError.at(
            (*where, "teacher_roipooler"),
            "KD462",
            f"{len(paths)} poolers for {len(setting.teachers)} teachers",
            "`teacher_roipooler` is a list with a layer path for each teacher of the job",
        )
    wrong = Findings()
    own: RoiAlign | None = None
    with wrong.part():
        path = options.student_roipooler
        own = _pooler(setting.student_module, path, "the student", (*where, "student_roipooler"))
    found: dict[str, Poolers | None] = {}
    for index, (teacher, path) in enumerate(zip(setting.teachers, paths, strict=True)):
        with wrong.part():
            module = partial(setting.teacher_module, teacher)
            theirs = _pooler(module, path, teacher, (*where, "teacher_roipooler", index))
            student, other = own or theirs, theirs or own
            found[teacher] = None if student is None or other is None else (student, other)
    wrong.raise_errors()
    return found


def _pooler(
    module: Callable[[str], nn.Module], path: str | None, whose: str, where: SpecPath
) -> RoiAlign | None:
    """The layer at the path, at the usual one where the spec gives none.

    None where there is no usual one. where: of the given path, which has to lead to a layer (KD464).
    """
    try:
        named = module(POOLER if path is None else path)
    except AttributeError:
        named = None
    found = _pooling(named)
    if found is not None or path is None:
        return found
    known = [name for name, layer in module("").named_modules() if _pooling(layer) is not None]
    raise SpecError.at(
        where,
        "KD464",
        f"{whose} has no layer `{path}`"
        if named is None
        else f"`{path}` of {whose} is a {type(named).__name__}, not a RoI pooling layer of kdcli",
        did_you_mean(path, known)
        if known
        else f"{whose} has no such layer at all: leave the path out, and the other network's is used",
    )


def _pooling(layer: nn.Module | None) -> RoiAlign | None:
    """The layer as one that pools boxes; of a list with one for each level (`with_drp`) the first."""
    if isinstance(layer, nn.ModuleList) and len(layer):
        layer = layer[0]
    return layer if isinstance(layer, RoiAlign) else None


def _pooled_shapes(features: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """What pooling gives, as zeros for one box, under the first layer's name."""
    first = next(tensors_in(list(features.values())))
    return {next(iter(features)): first.new_zeros(1, first.shape[1], size, size)}
