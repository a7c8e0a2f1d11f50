"""Levels: which map of a pyramid a box is looked at on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcli.models.detection.boxes import sides


def levels_of(boxes: Tensor, levels: Sequence[int], base_scale: float, offset: int) -> Tensor:
    """int64 [N]: floor(log2(sqrt(w·h) / base_scale + 1e-6)), clamped to the levels; boxes [N, >=4]."""
    width, height = sides(boxes, offset)
    scale = (width * height).clamp(min=0).sqrt()
    level = (scale / base_scale + 1e-6).log2().floor().to(torch.int64)
    return level.clamp(min(levels), max(levels))


def by_level(rois: Tensor, levels: Sequence[int], base_scale: float, offset: int) -> list[Tensor]:
    """For each level the indices of its rois [R, >=5] (image, x1, y1, x2, y2, ...), ascending."""
    target = levels_of(rois[:, 1:5], levels, base_scale, offset)
    return [torch.nonzero(target == level).flatten() for level in levels]


def inverse(order: Tensor) -> Tensor:
    """What puts rows that were taken in this order back."""
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return back
