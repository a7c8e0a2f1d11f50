"""Proposals made ready for the second stage: sampled while training, pooled from the pyramid."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdcli.models.detection.blocks import build_block, known_keys, needed
from kdcli.models.detection.boxes import offset_of
from kdcli.models.detection.roi_pool import build_roi_pool, pool_levels
from kdcli.models.detection.targets import ROI_SUPERVISORS
from kdcli.models.module import Outputs, ViewModule


class BboxFCPre(ViewModule):
    """Proposals to pooled features.

    Outputs `pooled_feats` [R, C, p, p] and `rois` [R, >=5] (image, x1, y1, x2, y2, ...), both ordered by
    level; `recover_inds` puts rows back into the sampled order, which `cls_target` [R], `loc_target` and
    `loc_weight` [R, 4] and `sample_record` (training only) keep. cfg: bbox_supervisor, roipooling, and fpn
    {fpn_levels, base_scale}; without fpn there is one level. with_drp: a pooling layer for each level.
    """

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
        rois = outputs["dt_bboxes"]
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
