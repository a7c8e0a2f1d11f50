"""RoI pooling: proposals, sampled while training, to features of a fixed size from the pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torchvision.ops
from torch import Tensor, nn

from kdcli.models.detection.blocks import Pixels, PoolSize, SamplingRatio, build_block, known_keys, needed
from kdcli.models.detection.boxes import by_level, inverse, offset_of
from kdcli.models.detection.targets import ROI_SUPERVISORS
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.check.components import refuse_misfits
from kdcli.spec.ranges import CountOrNone

FEW = 16
"""Proposals of an image that a check takes: a head that convolves each of a thousand takes seconds for them."""


class BboxFCPre(ViewModule):
    """Proposals to pooled features.

    Outputs `pooled_feats` [R, C, p, p] and `rois` [R, >=5] (image, x1, y1, x2, y2, ...), both ordered by
    level; `recover_inds` puts rows back into the sampled order, which `cls_target` [R], `loc_target` and
    `loc_weight` [R, 4] and `sample_record` (training only) keep. cfg: bbox_supervisor, roipooling, and fpn
    {fpn_levels, base_scale}; without fpn there is one level. with_drp: a pooling layer for each level.
    """

    takes_few: ClassVar[str] = f"at most {FEW} proposals of an image"

    def __init__(self, *, cfg: dict[str, Any], with_drp: bool = False, aligned: bool = False) -> None:
        super().__init__()
        known_keys(cfg, "cfg", ("bbox_supervisor", "fpn", "roipooling"))
        self.offset = offset_of(aligned)
        self.supervisor = build_block(
            needed(cfg, "cfg", "bbox_supervisor"), "cfg.bbox_supervisor", ROI_SUPERVISORS, offset=self.offset
        )
        fpn = cfg.get("fpn")
        self.levels, self.base_scale = [0], 1.0
        if fpn is not None:
            known_keys(fpn, "cfg.fpn", ("fpn_levels", "base_scale"))
            refuse_misfits(fpn, {"fpn_levels": list[CountOrNone], "base_scale": Pixels}, "cfg.fpn")
            self.levels = [int(level) for level in needed(fpn, "cfg.fpn", "fpn_levels")]
            self.base_scale = float(needed(fpn, "cfg.fpn", "base_scale"))
            if self.levels != list(range(self.levels[0], self.levels[0] + len(self.levels))):
                raise ValueError("cfg.fpn.fpn_levels are successive indices of features")
        pools = [
            build_roi_pool(needed(cfg, "cfg", "roipooling"), "cfg.roipooling", aligned) for _ in self.levels
        ]
        self.roipool: nn.Module = nn.ModuleList(pools) if with_drp and fpn is not None else pools[0]

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `dt_bboxes`, `features`, `strides`; in training `boxes`, `ignores`, `image_info` too."""
        features, strides = outputs["features"], outputs["strides"]
        if max(self.levels) >= len(features):
            raise ValueError(
                f"cfg.fpn.fpn_levels asks for feature {max(self.levels)}, there are {len(features)}"
            )
        extra: dict[str, Any] = {}
        rois = first_of_images(outputs["dt_bboxes"], FEW) if self.rehearsed else outputs["dt_bboxes"]
        if self.training:
            targets = self.supervisor.targets(rois, outputs)
            rois = targets.rois
            extra = {
                "sample_record": targets.records,
                "cls_target": targets.classes,
                "loc_target": targets.deltas,
                "loc_weight": targets.weights,
            }
        pooled, ordered, back = pool_levels(
            self.roipool, rois, features, strides, self.levels, self.base_scale, self.offset
        )
        return {"pooled_feats": pooled, "rois": ordered, "recover_inds": back, **extra}


class RoiAlign(nn.Module):
    """Average of bilinear samples in each of pool_size² bins; sampling_ratio 0 takes as many as fit.

    Source: "Mask R-CNN", arXiv:1703.06870.
    """

    def __init__(self, pool_size: int, sampling_ratio: int, aligned: bool) -> None:
        super().__init__()
        self.pool_size, self.sampling_ratio, self.aligned = pool_size, sampling_ratio, aligned

    def forward(self, rois: Tensor, feature: Tensor, stride: int) -> Tensor:
        """rois [R, >=5] (image, x1, y1, x2, y2, ...) on feature [B, C, H, W]: [R, C, pool, pool]."""
        pooled: Tensor = torchvision.ops.roi_align(
            feature,
            rois[:, :5].to(feature.dtype),
            self.pool_size,
            1.0 / stride,
            self.sampling_ratio or -1,
            self.aligned,
        )
        return pooled


def build_roi_pool(block: Any, where: str, aligned: bool) -> RoiAlign:
    """The pooling of a `roipooling` block; raises ValueError on what is not known."""
    if not isinstance(block, Mapping):
        raise ValueError(f"`{where}` is a mapping")
    known_keys(block, where, ("method", "pool_size", "sampling_ratio", "pool_mode"))
    refuse_misfits(block, {"pool_size": PoolSize, "sampling_ratio": SamplingRatio}, where)
    if block.get("method", "roialignpool") != "roialignpool":
        raise ValueError(f"`{where}.method` is roialignpool, not `{block['method']}`")
    if block.get("pool_mode", "AVG") != "AVG":
        raise ValueError(f"`{where}.pool_mode` is AVG, not `{block['pool_mode']}`")
    return RoiAlign(int(needed(block, where, "pool_size")), int(block.get("sampling_ratio", 0)), aligned)


def first_of_images(rois: Tensor, most: int) -> Tensor:
    """The first rows [R, >=5] of each image, at most so many; the first number of a row is its image."""
    same = rois[:, 0, None] == rois[None, :, 0]
    return rois[same.tril().sum(1) <= most]


def pool_levels(
    pool: nn.Module | Sequence[nn.Module],
    rois: Tensor,
    features: Sequence[Tensor],
    strides: Sequence[int],
    levels: Sequence[int],
    base_scale: float,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each roi pooled on its level's map.

    Returns pooled [R, C, p, p] and rois in level order, and the indices that restore the given order.
    """
    groups = by_level(rois, levels, base_scale, offset)
    pooled = []
    for position, (level, indices) in enumerate(zip(levels, groups, strict=True)):
        layer = pool if isinstance(pool, nn.Module) and not isinstance(pool, nn.ModuleList) else None
        layer = layer if layer is not None else pool[position]  # type: ignore[index]
        if len(indices):
            pooled.append(layer(rois[indices], features[level], int(strides[level])))
        elif position == 0:
            # Keeps the graph attached where no level has a roi.
            pooled.append(layer(rois[:0], features[level], int(strides[level])))
    order = torch.cat(groups)
    return torch.cat(pooled), rois[order], inverse(order)
