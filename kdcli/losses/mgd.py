"""Masked generative distillation: the teacher's map generated from a masked map of the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.layout import only_maps, shown
from kdcli.losses.precision import full_precision


class MaskedGeneration(nn.Module):
    """Sum of squares between the teacher's map and one generated from the masked student's (MGD), ÷ B.

    The student's map (through a trained 1×1 convolution where its channels are unlike) loses a random
    share mask_ratio of its channels or positions, anew in each step; two 3×3 convolutions with ReLU
    between generate the teacher's. The defaults are the authors' for classification; for detection they
    use mask spatial, mask_ratio 0.5 and loss_weight 2e-5. Maps [B, C, H, W] of equal size; pairs are
    summed.
    Taps: the last map before pooling, or each level of the neck.
    Source: "Masked Generative Distillation", arXiv:2205.01529.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        mask: Literal["channel", "spatial"] = "channel",
        mask_ratio: float = 0.15,
        loss_weight: float = 7e-5,
    ) -> None:
        super().__init__()
        s_channels, t_channels = only_maps(student_shape, "mgd")[1], only_maps(teacher_shape, "mgd")[1]
        if tuple(student_shape[2:]) != tuple(teacher_shape[2:]):
            raise RunError.of(
                "KD450",
                f"`mgd` takes maps of one size, not {shown(student_shape)} and {shown(teacher_shape)}",
                "name layers of equal stride",
            )
        self.mask = mask
        self.mask_ratio = mask_ratio
        self.loss_weight = loss_weight
        self.align = nn.Conv2d(s_channels, t_channels, 1) if s_channels != t_channels else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(t_channels, t_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(t_channels, t_channels, 3, padding=1),
        )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar."""
        aligned = self.align(student)
        generated = self.generation(aligned * self._kept(aligned))
        return self.loss_weight * F.mse_loss(generated, teacher, reduction="sum") / len(teacher)

    def _kept(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        if self.mask == "channel":
            return torch.rand(batch, channels, 1, 1, device=x.device) >= self.mask_ratio
        return torch.rand(batch, 1, height, width, device=x.device) <= 1 - self.mask_ratio
