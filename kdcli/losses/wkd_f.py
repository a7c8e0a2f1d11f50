"""Wasserstein distillation of features: the Gaussian of each channel, moved onto the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.parts.inputs import enough_values, full_precision, only_maps, shown
from kdcli.losses.parts.stateful import ConvRegression, StatefulLoss
from kdcli.spec.ranges import Count, Positive, Weight


class WassersteinFeature(StatefulLoss):
    """mean_cov_ratio·‖Δmean‖² + ‖Δdeviation‖² of channels over grid × grid cells (WKD-F), ÷ B and cells.

    The deviation is sqrt(unbiased variance over the cell's positions + eps). The cells are those of
    adaptive average pooling. The student's map goes through a trained projector to the teacher's shape:
    `bottleneck` is 1×1, 3×3 and 1×1 convolutions through `hidden` channels, then batch norm and ReLU;
    `conv` is `ConvRegression`, for maps of unlike size. On ImageNet the authors cut 7×7 maps by grid 4;
    on CIFAR-100 they use projector conv, grid 1 or 4, a ratio of 3 or 4 and weights of 0.08 or 0.3.
    Taps: the last map before pooling.
    Source: "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
    arXiv:2412.08139.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        mean_cov_ratio: Weight = 2.0,
        grid: Count = 1,
        projector: Literal["bottleneck", "conv"] = "bottleneck",
        hidden: Count = 256,
        eps: Positive = 1e-5,
    ) -> None:
        super().__init__()
        self.mean_cov_ratio = mean_cov_ratio
        self.grid, self.eps = grid, eps
        _, _, height, width = only_maps(teacher_shape, "wkd_f")
        only_maps(student_shape, "wkd_f")
        if _cell_size(height, grid) * _cell_size(width, grid) < 2:
            raise RunError.of(
                "KD450",
                f"`wkd_f` takes deviations over the cells of a {grid} by {grid} grid, and some cells of "
                f"{shown(teacher_shape)} hold one position",
                "use a smaller `grid`, or name a layer with a larger map",
            )
        self.projector: nn.Module
        if projector == "conv":
            self.projector = ConvRegression(student_shape, teacher_shape, method="wkd_f")
        else:
            self.projector = BottleneckProjector(student_shape, teacher_shape, hidden)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar."""
        if self.training:
            enough_values(student.numel() // student.shape[1], "wkd_f")
        mean_s, deviation_s = self._gaussians(self.projector(student))
        mean_t, deviation_t = self._gaussians(teacher)
        share = len(student) * self.grid**2
        distance = (
            self.mean_cov_ratio * (mean_s - mean_t).pow(2).sum() + (deviation_s - deviation_t).pow(2).sum()
        )
        return distance / share

    def _gaussians(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = _cells(x.shape[2], self.grid), _cells(x.shape[3], self.grid)
        cells = [x[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]
        means = torch.stack([cell.mean((2, 3)) for cell in cells])
        deviations = torch.stack([(cell.var((2, 3)) + self.eps).sqrt() for cell in cells])
        return means, deviations


class BottleneckProjector(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with nothing between, then batch norm and ReLU; sizes stay."""

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], hidden: int) -> None:
        super().__init__()
        if tuple(student_shape[2:]) != tuple(teacher_shape[2:]):
            raise RunError.of(
                "KD450",
                f"`wkd_f` with its bottleneck takes maps of one size, not {shown(student_shape)} and "
                f"{shown(teacher_shape)}",
                "set `projector: conv`, or name layers of equal stride",
            )
        self.conv1 = nn.Conv2d(student_shape[1], hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, teacher_shape[1], 1)
        self.bn = nn.BatchNorm2d(teacher_shape[1])

    def forward(self, student: Tensor) -> Tensor:
        """A map of the teacher's shape."""
        x: Tensor = self.bn(self.conv3(self.conv2(self.conv1(student))))
        return x.relu()


def _cells(size: int, grid: int) -> list[tuple[int, int]]:
    return [(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


def _cell_size(size: int, grid: int) -> int:
    return min(end - start for start, end in _cells(size, grid))
