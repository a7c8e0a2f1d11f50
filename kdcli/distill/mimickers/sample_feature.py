"""SampleFeature: mimic what lies inside the proposed boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from kdcli.distill.layouts import Layout
from kdcli.distill.mimickers import MIMICKERS, SampleFeatureOptions
from kdcli.distill.mimickers.detectors import DetectorMimicker, check_levels
from kdcli.distill.mimickers.mimicker import Compared, MimicContext, Requirements
from kdcli.distill.taps import Feature, View, tapped, tensors_in
from kdcli.distill.terms import TapSide, sides_of
from kdcli.errors import Findings, SpecError, SpecPath, did_you_mean
from kdcli.losses.parts.reduce import per_count
from kdcli.models.detection.boxes import by_level, numbers, offset_of
from kdcli.models.detection.roi_pool import RoiAlign
from kdcli.spec.schema import Job
from kdcli.spec.tables import Method

POOLER = "bbox_head_pre_process.roipool"
"""Where a two-stage detector of United-Perception has its pooling layer."""

POOL_SIZE = 7
"""Cells a side of what is pooled where neither network has a pooling layer."""

Poolers: TypeAlias = tuple[RoiAlign, RoiAlign]
"""The student's pooling layer and a teacher's."""


class SampleFeatureMimicker(DetectorMimicker):
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
    def requirements_of(cls, job: Job) -> Requirements:
        """Proposals of one side."""
        boxes = frozenset({"rpn_dt_bboxes"})
        options: SampleFeatureOptions = cls.kdcli_record.options_of(job.options)
        if options.teacher_proposal:
            return Requirements(teacher_outputs=boxes)
        return Requirements(student_outputs=boxes)

    def __init__(self, context: MimicContext) -> None:
        super().__init__(context)
        options = self.options
        student_sides = sides_of(context.student, self.student_taps)
        teacher_sides = {
            name: sides_of(view, self.teacher_taps[name]) for name, view in context.teachers.items()
        }
        path: SpecPath = (*context.path, "options", "rcnn_fpn_levels")
        strides, levels = len(options.rcnn_fpn_strides), len(options.rcnn_fpn_levels)
        if strides != levels:
            raise SpecError.at(path, "KD462", f"{levels} levels need as many strides, not {strides}")
        self.levels, self.strides = list(options.rcnn_fpn_levels), list(options.rcnn_fpn_strides)
        self.base_scale = float(options.rcnn_fpn_base_scale)
        check_levels(
            self.levels,
            min(len(sides) for sides in (student_sides, *teacher_sides.values())),
            "tapped maps",
            path,
        )
        # Kept from being children: they are the networks', and hold no parameters.
        self.poolers: dict[str, Poolers | None] = _poolers(context, options)
        for teacher, view in context.teachers.items():
            self._rois(context.student, view, teacher)
            sizes = [pool.pool_size for pool in self.poolers[teacher] or ()] or [POOL_SIZE] * 2
            pair = [
                self._pooled_side(*side)
                for side in zip((student_sides, teacher_sides[teacher]), sizes, strict=True)
            ]
            self.add(context, "feature_loss", teacher, pair[:1], pair[1:])

    def features(
        self, student: View, teachers: Mapping[str, View], batch: Mapping[str, Any]
    ) -> Iterator[tuple[str, Compared]]:
        """The maps of both networks pooled on the proposals [R, C, p, p]."""
        for teacher, taps in self.teacher_taps.items():
            rois = self._rois(student, teachers[teacher], teacher).detach()
            pools = self.poolers[teacher]
            # The geometry of the proposals: as the data says, else as the pooling layers do.
            known = 0 if pools is None else offset_of(pools[0].aligned)
            offset = int(batch.get("annotations", {}).get("box_offset", known))
            # Once for both networks: row i of the student and of the teacher are the same roi.
            groups = by_level(rois, self.levels, self.base_scale, offset)
            count = torch.full((), float(len(rois)), device=rois.device)
            if not len(rois):
                # DDP and synchronised norms wait for every process: one without a roi goes the same way
                # with a stand-in, which counts for nothing below.
                rois = numbers([0.0, 0.0, 0.0, self.base_scale, self.base_scale], rois)[None]
                groups = by_level(rois, self.levels, self.base_scale, offset)
            student_pool, teacher_pool = pools or (RoiAlign(POOL_SIZE, 0, aligned=offset == 0),) * 2
            student_pooled = self._pooled(student_pool, tapped(student, self.student_taps), rois, groups)
            teacher_pooled = self._pooled(teacher_pool, tapped(teachers[teacher], taps), rois, groups)
            # The mean over this process's rois counts by how many of all rois they are: a weight, not a mask
            # of ones, since it fits losses without a mask too, and those divided by the number of rows.
            share = per_count(count, count)
            compared = Compared(
                students=[student_pooled], teachers=[teacher_pooled], divisor=2.0, share=share
            )
            yield f"{teacher}:feature_loss", compared

    def _rois(self, student: View, view: View, teacher: str) -> Tensor:
        teachers = self.options.teacher_proposal
        return self.proposals(*((view, teacher) if teachers else (student, "the student")))

    def _pooled_side(self, sides: Sequence[TapSide], size: int) -> TapSide:
        """What pooling gives, under the first layer's name: rows of `size` by `size` cells, for one box."""
        shape = torch.Size([1, sides[self.levels[0]].shape[1], size, size])
        layout = Layout(kind="map", channel_axis=1)
        return replace(sides[0], name=sides[0].tap, shape=shape, layout=layout)

    def _pooled(
        self, pool: RoiAlign, maps: Sequence[Feature], rois: Tensor, groups: Sequence[Tensor]
    ) -> Tensor:
        """[R, C, p, p], by level and in the order of the groups; a level without rois stays attached."""
        features = list(tensors_in(maps))
        levels = zip(self.levels, self.strides, groups, strict=True)
        return torch.cat([pool(rois[at], features[level], int(stride)) for level, stride, at in levels])


def _poolers(context: MimicContext, options: SampleFeatureOptions) -> dict[str, Poolers | None]:
    """For each teacher its pooling layer and the student's; None where neither has one.

    Raises SpecError KD462 and KD464 where the paths that the spec gives lead to none.
    """
    options_path = (*context.path, "options")
    paths = options.teacher_roipooler or (None,) * len(context.teachers)
    if len(paths) != len(context.teachers):
        raise SpecError.at(
            (*options_path, "teacher_roipooler"),
            "KD462",
            f"{len(paths)} poolers for {len(context.teachers)} teachers",
            "`teacher_roipooler` is a list with a layer path for each teacher of the job",
        )
    wrong = Findings()
    student_pool: RoiAlign | None = None
    with wrong.part():
        path = (*options_path, "student_roipooler")
        student_pool = _pooler(context.student_module(""), options.student_roipooler, "the student", path)
    poolers: dict[str, Poolers | None] = {}
    for index, (teacher, given) in enumerate(zip(context.teachers, paths, strict=True)):
        with wrong.part():
            path = (*options_path, "teacher_roipooler", index)
            teacher_pool = _pooler(context.teacher_module(teacher, ""), given, teacher, path)
            student, other = student_pool or teacher_pool, teacher_pool or student_pool
            poolers[teacher] = None if student is None or other is None else (student, other)
    wrong.raise_errors()
    return poolers


def _pooler(net: nn.Module, path: str | None, whose: str, where: SpecPath) -> RoiAlign | None:
    """The layer at the path, at the usual one where the spec gives none.

    None where there is no usual one. where: of the given path, which has to lead to a layer (KD464).
    """
    layers = dict(net.named_modules(remove_duplicate=False))
    known = {name: pool for name, layer in layers.items() if (pool := _pooling(layer)) is not None}
    if path is None or path in known:
        return known.get(POOLER if path is None else path)
    message = f"{whose} has no layer `{path}`"
    if path in layers:
        message = f"`{path}` of {whose} is a {type(layers[path]).__name__}, not a RoI pooling layer of kdcli"
    help = f"{whose} has no such layer at all: leave the path out, and the other network's is used"
    raise SpecError.at(where, "KD464", message, did_you_mean(path, list(known)) if known else help)


def _pooling(layer: nn.Module) -> RoiAlign | None:
    """The layer as one that pools boxes; of a list with one for each level (`with_drp`) the first."""
    if isinstance(layer, nn.ModuleList) and len(layer):
        layer = layer[0]
    return layer if isinstance(layer, RoiAlign) else None
