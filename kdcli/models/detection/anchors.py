"""Anchors: the boxes that a dense head scores and moves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class HandCraftAnchors:
    """Anchors of given shapes around every position of every level.

    anchor_ratios: height/width. anchor_scales: side of a square anchor in strides. anchor_strides: of
    each level, for the first position's anchors alone; positions always lie the maps' strides apart. A
    position's anchors run over ratios first, scales within. aligned: centred at the position times the
    stride, sides exact; else centred at (stride - 1) / 2, the base box rounded to whole pixels, last
    pixels counted inside.
    """

    def __init__(
        self,
        anchor_ratios: list[float],
        anchor_scales: list[float],
        anchor_strides: list[int] | None = None,
        *,
        aligned: bool,
    ) -> None:
        if not anchor_ratios or not anchor_scales or min(*anchor_ratios, *anchor_scales) <= 0:
            raise ValueError("anchor_ratios and anchor_scales are lists of positive numbers")
        self.ratios, self.scales, self.strides = anchor_ratios, anchor_scales, anchor_strides
        self.aligned = aligned
        self.num_anchors = len(anchor_ratios) * len(anchor_scales)
        self._laid: dict[tuple[int, int, int, int, torch.device], Tensor] = {}

    def at_origin(self, stride: int) -> list[list[float]]:
        """The anchors of the first position, (x1, y1, x2, y2)."""
        boxes = []
        for ratio in self.ratios:
            width, height = stride / math.sqrt(ratio), stride * math.sqrt(ratio)
            if not self.aligned:
                width = float(round(width))
                height = float(round(width * ratio))
            for scale in self.scales:
                centre = 0.0 if self.aligned else 0.5 * (stride - 1)
                x, y = 0.5 * width * scale, 0.5 * height * scale
                if not self.aligned:
                    x, y = x - 0.5, y - 0.5
                boxes.append([centre - x, centre - y, centre + x, centre + y])
        return boxes

    def of_level(
        self, height: int, width: int, stride: int, device: torch.device, anchor_stride: int | None = None
    ) -> Tensor:
        """float32 [height·width·A, 4], row by row; positions first, anchors within.

        stride: between positions. anchor_stride: of the first position's anchors, the same by default.
        """
        anchor_stride = stride if anchor_stride is None else anchor_stride
        key = (height, width, stride, anchor_stride, device)
        if key not in self._laid:
            if len(self._laid) > 200:
                self._laid.clear()
            base = torch.tensor(self.at_origin(anchor_stride), dtype=torch.float32, device=device)
            y = torch.arange(height, device=device, dtype=torch.float32) * stride
            x = torch.arange(width, device=device, dtype=torch.float32) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shift = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).view(-1, 1, 4)
            self._laid[key] = (shift + base).view(-1, 4)
        return self._laid[key]

    def of_levels(
        self, sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
    ) -> list[Tensor]:
        """The anchors of each level from its (height, width) and the stride of its map."""
        strides = [int(s) for s in strides]
        of_anchors = strides if self.strides is None else self.strides
        for given, name in ((strides, "strides"), (of_anchors, "anchor_strides")):
            if len(given) < len(sizes):
                raise ValueError(f"{len(sizes)} levels need as many {name}, not {len(given)}")
        # Strides of levels beyond the head's are left over.
        return [
            self.of_level(h, w, stride, device, of_anchor)
            for (h, w), stride, of_anchor in zip(sizes, strides, of_anchors, strict=False)
        ]


ANCHOR_GENERATORS = {"hand_craft": HandCraftAnchors}
