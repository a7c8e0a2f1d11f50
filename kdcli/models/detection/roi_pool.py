"""RoI pooling: a fixed-size piece of a map for each box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision.ops
from torch import Tensor, nn

from kdcli.models.detection.blocks import known_keys, needed
from kdcli.models.detection.levels import by_level, inverse


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
    if block.get("method", "roialignpool") != "roialignpool":
        raise ValueError(f"`{where}.method` is roialignpool, not `{block['method']}`")
    if block.get("pool_mode", "AVG") != "AVG":
        raise ValueError(f"`{where}.pool_mode` is AVG, not `{block['pool_mode']}`")
    return RoiAlign(int(needed(block, where, "pool_size")), int(block.get("sampling_ratio", 0)), aligned)


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
