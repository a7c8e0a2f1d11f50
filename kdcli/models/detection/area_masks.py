"""Weights of foreground positions by the area of their boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
