"""FGD: focal and global knowledge distillation of one map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.errors import RunError
from kdcli.losses.parts.inputs import full_precision, only_maps, shown
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Temperature, Weight


class FocalGlobal(StatefulLoss):
    """Foreground and background apart, attention, and relations of one pair of maps (FGD), ÷ B.

    α·Σ(f·A·(s−t)²) + β·Σ(b·A·(s−t)²) + γ·(Σ|attention_s − attention_t|) + λ·Σ(G_s(s) − G_t(t))²: f weighs
    the foreground (mask), b is 1 outside of it over the number of such positions of the image; A is the
    teacher's spatial attention H·W·softmax(mean_c|t|/T) times its channel attention C·softmax(mean_hw|t|/T);
    G adds a trained global context (GCNet's block). mask: [B, 1, H, W], 1 over the area of the box that
    covers a position (the smallest where several do), 0 outside of all; without it all is background. Maps
    [B, C, H, W] of equal size, a trained 1×1 convolution first where channels differ; pairs are summed.
    The defaults suit two-stage detectors; for anchor-based one-stage ones α is 1e-3, β 5e-4, γ 1e-3, λ 5e-6.
    Source: "Focal and Global Knowledge Distillation for Detectors", arXiv:2111.11837.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        T: Temperature = 0.5,
        alpha: Weight = 5e-5,
        beta: Weight = 2.5e-5,
        gamma: Weight = 5e-5,
        relation: Weight = 5e-7,
    ) -> None:
        super().__init__()
        s_channels, t_channels = only_maps(student_shape, "fgd")[1], only_maps(teacher_shape, "fgd")[1]
        if tuple(student_shape[2:]) != tuple(teacher_shape[2:]):
            raise RunError.of(
                "KD450",
                f"`fgd` takes maps of one size, not {shown(student_shape)} and {shown(teacher_shape)}",
                "name layers of equal stride",
            )
        self.T, self.alpha, self.beta, self.gamma = T, alpha, beta, gamma
        self.relation = relation
        self.align = nn.Conv2d(s_channels, t_channels, 1) if s_channels != t_channels else nn.Identity()
        self.student_context = GlobalContext(t_channels)
        self.teacher_context = GlobalContext(t_channels)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """A scalar."""
        student = self.align(student)
        batch = len(student)
        foreground = torch.zeros_like(teacher[:, :1]) if mask is None else mask.to(teacher.dtype)
        outside = (foreground == 0).to(teacher.dtype)
        background = outside / outside.sum((1, 2, 3), keepdim=True).clamp(min=1)
        spatial_s, channel_s = self._attention(student)
        spatial_t, channel_t = self._attention(teacher)
        squares = (student - teacher).square() * spatial_t * channel_t
        focal = self.alpha * (squares * foreground).sum() + self.beta * (squares * background).sum()
        attention = (spatial_s - spatial_t).abs().sum() + (channel_s - channel_t).abs().sum()
        contexts = self.student_context(student) - self.teacher_context(teacher)
        total = focal + self.gamma * attention + self.relation * contexts.square().sum()
        loss: Tensor = total / batch
        return loss

    def _attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Spatial [B, 1, H, W] and channel [B, C, 1, 1] attention."""
        batch, channels, height, width = x.shape
        size = x.abs()
        spatial = F.softmax(size.mean(1).flatten(1) / self.T, dim=1).view(batch, 1, height, width)
        channel = F.softmax(size.mean((2, 3)) / self.T, dim=1)[:, :, None, None]
        return height * width * spatial, channels * channel


class GlobalContext(nn.Module):
    """Adds to every position what a softmax over positions gathers; adds nothing at the start.

    Source: "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", arXiv:1904.11492.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.where = nn.Conv2d(channels, 1, 1)
        last = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        norm = nn.LayerNorm([hidden, 1, 1])
        self.what = nn.Sequential(nn.Conv2d(channels, hidden, 1), norm, nn.ReLU(inplace=True), last)
        nn.init.kaiming_normal_(self.where.weight, mode="fan_in", nonlinearity="relu")
        if self.where.bias is not None:
            nn.init.zeros_(self.where.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        weights = F.softmax(self.where(x).flatten(2), dim=2)
        context = (x.flatten(2) * weights).sum(2)[:, :, None, None]
        added: Tensor = self.what(context)
        return x + added
