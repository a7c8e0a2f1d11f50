"""The mimic methods by name: what `mimic_ins_type` may say, and what `cfgs` may hold then; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from kdcli.spec.plugins import admit, lookup, recorded
from kdcli.spec.ranges import Range
from kdcli.spec.tables import Method, MethodExample, OwnLoss, option

STUDENT = "cifar_resnet8x4"
"""The student that the blocks of `kdcli methods` are written for, where they are for no detector."""

NECK = ("neck.p2_conv", "neck.p3_conv", "neck.p4_conv", "neck.p5_conv", "neck.p6_pool")
DETECTORS = "for net and teacher0 of United-Perception's modules, each with `neck` (an FPN of 5 levels)"

L2 = OwnLoss(type="l2_loss", kwargs={"feat_norm": False, "batch_mean": False})
STRIDES = "pixels of the image that a cell of each level's map stands for, in the order of the levels"
BASE_SCALE = "side in pixels of the smallest box of level 0; a box twice as large is of level 1"


def on_detectors(*losses: str) -> MethodExample:
    """A method's block for two detectors, on the levels of their necks."""
    return MethodExample(networks=DETECTORS, student=NECK, teacher=NECK, losses=losses, adapter="auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFeatureOptions:
    """What `cfgs` of a SampleFeature job may hold beside its loss."""

    rcnn_fpn_levels: tuple[int, ...] = option(
        (0, 1, 2, 3), "which of the tapped maps are pooled on: their numbers, from 0 on, without a gap"
    )
    rcnn_fpn_strides: tuple[Annotated[int, Range(at_least=1)], ...] = option((4, 8, 16, 32), STRIDES, "KD462")
    rcnn_fpn_base_scale: Annotated[float, Range(more_than=0, at_most=65536)] = option(
        56.0, BASE_SCALE, "KD462"
    )
    teacher_proposal: bool = option(True, "whether the teacher proposes the boxes, not the student")
    student_roipooler: str | None = option(
        None, "path of the student's pooling layer, where it is not bbox_head_pre_process.roipool"
    )
    teacher_roipooler: tuple[str | None, ...] | None = option(
        None, "the path of each teacher's pooling layer, in the order of the job's teachers"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrsOptions:
    """What `cfgs` of an FRS job may hold beside its losses."""

    mask_count: Literal["positions", "elements"] = option(
        "positions",
        "what of the mask is summed to divide by: its positions, or these once for each channel",
        "KD465",
    )
    pred_gradient: bool = option(True, "whether pred_loss moves the student; if not, it is only logged")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeFeatOptions:
    """What `cfgs` of a DeFeat job may hold beside its losses."""

    rpn_fpn_levels: tuple[int, ...] = option(
        (0, 1, 2, 3, 4), "numbers of the neck layers that boxes are told apart by, from 0 on, without a gap"
    )
    rpn_fpn_strides: tuple[Annotated[int, Range(at_least=1)], ...] = option(
        (4, 8, 16, 32, 64), STRIDES, "KD462"
    )
    rpn_fpn_base_scale: Annotated[float, Range(more_than=0, at_most=65536)] = option(
        56.0, BASE_SCALE, "KD462"
    )
    neck_feature_nums: Annotated[int, Range(at_least=1)] = option(
        5,
        "how many layers at the end of `mimic_name` are the neck's; those before are the backbone's",
        "KD462",
    )


MIMICKERS: Mapping[str, Method] = {
    "base": Method(
        "kdcli.distill.mimickers.base:BaseMimicker",
        losses={"loss": OwnLoss(type="l2_loss", kwargs={"feat_norm": True, "batch_mean": True})},
        extra_losses=True,
    ),
    "SampleFeature": Method(
        "kdcli.distill.mimickers.sample_feature:SampleFeatureMimicker",
        losses={"feature_loss": L2},
        options=SampleFeatureOptions,
        example=on_detectors("feature_loss"),
    ),
    "FRS": Method(
        "kdcli.distill.mimickers.frs:FrsMimicker",
        losses={
            "neck_loss": L2,
            "pred_loss": OwnLoss(type="bce_loss", kwargs={"T": 1.0, "batch_mean": False}),
        },
        options=FrsOptions,
        example=on_detectors("neck_loss", "pred_loss"),
    ),
    "DeFeat": Method(
        "kdcli.distill.mimickers.defeat:DeFeatMimicker",
        losses={"backbone_loss": L2, "neck_fg_loss": L2, "neck_bg_loss": L2},
        options=DeFeatOptions,
        example=on_detectors("neck_fg_loss", "neck_bg_loss"),
    ),
    "FGD": Method(
        "kdcli.distill.mimickers.fgd:FgdMimicker",
        losses={"loss": OwnLoss(type="fgd")},
        example=on_detectors("loss"),
    ),
    "Mutual": Method(
        "kdcli.distill.mimickers.mutual:MutualMimicker",
        losses={"loss": OwnLoss(type="kd_loss", kwargs={"T": 1.0})},
        paired=False,
        peers=True,
        example=MethodExample(
            networks=f"for net: [{{name: model, type: {STUDENT}}}, "
            f"{{name: peer, type: peer, kwargs: {{network: {STUDENT}}}}}]",
            student=("logits", "peer_logits"),
        ),
    ),
}


def method_of(name: str) -> Method:
    """The record of a mimic method: the table's; of own code its `kdcli_record`, or that of its base class."""
    record: Method = lookup(MIMICKERS, name, code="KD307", what="mimic method", own=_own)
    return record


@cache
def _own(name: str) -> Method:
    record = recorded(name, Method, mapping=False) or Method(name, own=True)
    for loss in record.losses.values():
        admit(loss.type)
    return record
