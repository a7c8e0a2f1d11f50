"""Masks of ground-truth boxes on feature maps: by area (FGD), by pyramid level (DeFeat)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcli.models.detection.boxes import large_enough, levels_of


@torch.no_grad()
def area_masks(
    boxes: Sequence[Tensor], size: tuple[int, int], image_size: tuple[int, int], offset: int
) -> Tensor:
    """float32 [B, 1, H, W]: the greatest 1/area (in cells) of the boxes over a position; 0 outside of all.

    boxes: of each image [n, >=4] in pixels of the padded image_size (H, W); on the map a box reaches from
    floor of its lower to ceil of its upper edge, both included.
    """
    height, width = size
    device = boxes[0].device
    masks = torch.zeros(len(boxes), 1, height, width, device=device)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    for image, own in enumerate(boxes):
        if len(own) == 0:
            continue
        scale_x, scale_y = width / image_size[1], height / image_size[0]
        left, top = (own[:, 0] * scale_x).floor(), (own[:, 1] * scale_y).floor()
        right, bottom = ((own[:, 2] + offset) * scale_x).ceil(), ((own[:, 3] + offset) * scale_y).ceil()
        share = 1.0 / (bottom + 1 - top) / (right + 1 - left)
        inside_rows = (rows >= top[:, None]) & (rows <= bottom[:, None])
        inside_columns = (columns >= left[:, None]) & (columns <= right[:, None])
        inside = inside_rows[:, :, None] & inside_columns[:, None, :]
        masks[image, 0] = (inside * share[:, None, None]).amax(0)
    return masks


@torch.no_grad()
def truth_masks(
    boxes: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    levels: Sequence[int],
    base_scale: float,
    offset: int,
) -> list[Tensor]:
    """For each map float32 [B, 1, H, W], 1 where a box of its level lies and 0 elsewhere.

    boxes: of each image [n, >=4] in pixels; one with a side of a pixel or less is left out. A box covers
    the cells from floor(x1 / stride) up to but without floor(x2 / stride), and the like for y; where that
    is none in either direction, the one cell of its upper left corner. sizes: (H, W) of each map.
    """
    device = boxes[0].device
    masks = [torch.zeros(len(boxes), 1, height, width, device=device) for height, width in sizes]
    for image, own in enumerate(boxes):
        wide = large_enough(own, 1.0, offset)
        target = levels_of(own, levels, base_scale, offset)
        for mask, (height, width), stride, level in zip(masks, sizes, strides, levels, strict=True):
            edges = (own[:, :4] / stride).long()
            left, top = edges[:, 0].clamp(0, width - 1), edges[:, 1].clamp(0, height - 1)
            right, bottom = edges[:, 2].clamp(0, width), edges[:, 3].clamp(0, height)
            thin = (left >= right) | (top >= bottom)
            right, bottom = torch.where(thin, left + 1, right), torch.where(thin, top + 1, bottom)
            rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
            inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
            inside_columns = (columns >= left[:, None]) & (columns < right[:, None])
            inside_rows &= (wide & (target == level))[:, None]
            covered = (inside_rows[:, :, None] & inside_columns[:, None, :]).any(0)
            mask[image, 0] = covered.to(mask.dtype)
    return masks
