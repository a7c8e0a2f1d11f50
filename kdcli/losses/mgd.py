"""Masked generative distillation: the teacher's map generated from a masked map of the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.parts.draws import drawn_shares, new_salt
from kdcli.losses.parts.inputs import full_precision, only_maps, shown
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import ShareBelowOne


class MaskedGeneration(StatefulLoss):
    """Sum of squares between the teacher's map and one generated from the masked student's (MGD), ÷ B.

    The student's map (through a trained 1×1 convolution where its channels are unlike) loses a random share
    mask_ratio of its channels or positions, for each sample and step anew and on any number of processes
    alike; two 3×3 convolutions with ReLU between generate the teacher's. The defaults are the authors'
    for classification; for detection they use mask spatial, mask_ratio 0.5 and `loss_weight` 2e-5. Maps [B,
    C, H, W] of equal size; pairs are summed.
    Taps: the last map before pooling, or each level of the neck.
    Source: "Masked Generative Distillation", arXiv:2205.01529.
    """

    salt: Tensor

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        mask: Literal["channel", "spatial"] = "channel",
        mask_ratio: ShareBelowOne = 0.15,
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
        self.align = nn.Conv2d(s_channels, t_channels, 1) if s_channels != t_channels else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(t_channels, t_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(t_channels, t_channels, 3, padding=1),
        )
        self.register_buffer("salt", new_salt())

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor, step: int = 0) -> Tensor:
        """A scalar. indices [B] int64: the samples' positions in the dataset."""
        aligned = self.align(student)
        generated = self.generation(aligned * self._kept(aligned, indices, step))
        return self.of_answer(generated, teacher)

    @full_precision
    def of_answer(self, answer: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a generated map."""
        return F.mse_loss(answer, teacher, reduction="sum") / len(teacher)

    def _kept(self, x: Tensor, indices: Tensor, step: int) -> Tensor:
        channels, height, width = x.shape[1:]
        if self.mask == "channel":
            return self._shares(indices, step, channels)[:, :, None, None] >= self.mask_ratio
        spots = self._shares(indices, step, height * width)
        return spots.view(-1, 1, height, width) >= self.mask_ratio

    def _shares(self, indices: Tensor, step: int, columns: int) -> Tensor:
        return drawn_shares(self.salt, step, indices, columns)
