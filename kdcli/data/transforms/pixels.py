"""Transforms of pixel values in place: to floats, normalised, cut out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdcli.data.draws import Draws
from kdcli.spec.ranges import Positive


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1; floats stay."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


class ToTensor:
    """uint8 0..255 to float32 0..1."""

    random = False

    def __init__(self) -> None:
        pass

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to float32 of the same shape."""
        return as_float(images)


class Normalize:
    """(image - mean) / std per channel, on the 0..1 scale."""

    random = False

    def __init__(self, *, mean: list[float], std: list[Positive]) -> None:
        if len(mean) != len(std):
            raise ValueError(f"`mean` has {len(mean)} channels and `std` {len(std)}")
        if any(s <= 0 for s in std):
            raise ValueError(f"`std` must be positive, got {std}")
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to float32 of the same shape."""
        if images.shape[1] != len(self.mean) and len(self.mean) != 1:
            raise ValueError(f"`normalize` has {len(self.mean)} channels and the image {images.shape[1]}")
        return as_float(images).sub(self.mean).div_(self.std)


class Cutout:
    """Sets a square of `size` pixels around a uniform centre to `fill`; it may hang over the border.

    Source: "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.
    """

    random = True

    def __init__(self, *, size: int, p: float = 1.0, fill: float = 0.0) -> None:
        if size < 1:
            raise ValueError(f"`size` must be positive, got {size}")
        self.size, self.p, self.fill = size, p, fill

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """[n, C, H, W] to the same shape."""
        height, width = images.shape[2:]
        u = draws.uniform(3)
        corner = np.floor(u[:, :2] * (height, width)).astype(int) - self.size // 2
        cut = images.numpy().copy()
        for row in np.flatnonzero(u[:, 2] < self.p):
            top, left = corner[row]
            bottom, right = top + self.size, left + self.size
            cut[row, :, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = self.fill
        return torch.from_numpy(cut)
