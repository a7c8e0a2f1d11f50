"""Transforms that move boxes with the pixels.

Each is also a plain transform of images. Boxes are float32 [n, >=4], (x1, y1, x2, y2) as edges in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kdcli.data.draws import Draws
from kdcli.data.transforms.geometry import resized
from kdcli.spec.ranges import Share, Side


@runtime_checkable
class BoxTransform(Protocol):
    """A transform of one image [1, C, H, W] with its boxes."""

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """The new image, each set of boxes on it, and the scale (of height, of width)."""
        ...


class Flip:
    """Mirrors left to right with probability flip_p."""

    random = True

    def __init__(self, *, flip_p: Share = 0.5) -> None:
        if not 0 <= flip_p <= 1:
            raise ValueError(f"`flip_p` must lie in 0..1, got {flip_p}")
        self.p = flip_p

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        flipped = torch.from_numpy(draws.uniform(1)[:, 0] < self.p)
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """Image and boxes mirrored together."""
        if draws.uniform(1)[0, 0] >= self.p:
            return image, list(boxes), (1.0, 1.0)
        width = image.shape[-1]
        moved = []
        for own in boxes:
            left, right = width - own[:, 2:3], width - own[:, 0:1]
            moved.append(torch.cat([left, own[:, 1:2], right, own[:, 3:]], dim=1))
        return image.flip(-1), moved, (1.0, 1.0)


class KeepArResize:
    """Resizes to a shorter side drawn from `scales`, the longer at most max_size, aspect ratio kept.

    A scale of 0 or less keeps the size. separate_wh: boxes scale by the sizes' own ratios, which whole
    pixels make a little different in height and width; else by the one wanted. Bilinear.
    """

    random = True

    def __init__(
        self,
        *,
        scales: list[Side],
        max_size: Side | None = None,
        separate_wh: bool = False,
        antialias: bool = False,
    ) -> None:
        if not scales:
            raise ValueError("`scales` must hold at least one number")
        if max_size is not None and max_size < 1:
            raise ValueError(f"`max_size` must be positive, got {max_size}")
        self.scales, self.max_size = list(scales), max_size
        self.separate_wh, self.antialias = separate_wh, antialias
        self.random = len(self.scales) > 1

    def target(self, height: int, width: int, share: float) -> tuple[int, int, float]:
        """New height and width, and the wanted scale; share in [0, 1) picks one of the scales."""
        scale = self.scales[int(share * len(self.scales))]
        if scale <= 0:
            return height, width, 1.0
        most = math.inf if self.max_size is None else self.max_size
        factor = min(scale / min(height, width), most / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor)), factor

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to one new size; images of several sizes are not one tensor."""
        shares = draws.uniform(1)[:, 0]
        sizes = {self.target(images.shape[2], images.shape[3], float(share))[:2] for share in shares}
        if len(sizes) > 1:
            raise ValueError("`keep_ar_resize` draws a size for each image; give one scale")
        return resized(images, *sizes.pop(), "bilinear", self.antialias)

    def with_boxes(
        self, image: Tensor, boxes: Sequence[Tensor], draws: Draws
    ) -> tuple[Tensor, list[Tensor], tuple[float, float]]:
        """Image and boxes resized together."""
        height, width = image.shape[2:]
        new_height, new_width, factor = self.target(height, width, float(draws.uniform(1)[0, 0]))
        scale = (new_height / height, new_width / width) if self.separate_wh else (factor, factor)
        ratio = torch.tensor([scale[1], scale[0], scale[1], scale[0]])
        moved = [torch.cat([own[:, :4] * ratio, own[:, 4:]], dim=1) for own in boxes]
        return resized(image, new_height, new_width, "bilinear", self.antialias), moved, scale
