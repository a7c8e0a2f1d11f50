"""Knowledge review: each level of the teacher taught to the student's level and all deeper ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.parts.epochs import epoch_share
from kdcli.losses.parts.inputs import as_map, enough_values, full_precision, map_shape, places_in, same_places
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count, CountOrNone


class Fusion(nn.Module):
    """One level of the review: the student's map joined with what comes from the level below it.

    `conv1` brings the map to the middle width, `att_conv` weighs it against the deeper one, `conv2`
    goes to the teacher's width. fuse: false for the deepest level, which has nothing below.
    """

    def __init__(self, s_channels: int, middle: int, t_channels: int, *, fuse: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(s_channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(
            nn.Conv2d(middle, t_channels, 3, padding=1, bias=False), nn.BatchNorm2d(t_channels)
        )
        self.att_conv = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        for part in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(part.get_parameter("0.weight"), a=1)

    def forward(self, student: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what goes up to the next level, both of `size`."""
        x = self.conv1(student)
        if self.att_conv is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = self.att_conv(torch.cat([x, deeper], dim=1))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.conv2(x), x


class KnowledgeReview(StatefulLoss):
    """Hierarchical context loss between the teacher's levels and the student's fused ones (ReviewKD).

    The student's levels are fused from the deepest up; each fused map has the teacher's shape. A level's
    loss is the mean squared error at full size and after average pooling to 4, 2 and 1 (sizes below its
    own), with weights 1, ½, ¼, ⅛, divided by the sum of the weights used; levels are summed. It is
    multiplied by min((epoch + 1) / warmup_epochs, 1). Levels are maps [B, C, H, W], from shallow to
    deep, or equally many tokens in each; the last may be the pooled vector. The middle width is that of
    the student's deepest level, at most max_mid_channel.
    Taps: the output of each stage and the pooled vector; of the teacher what goes into the last ReLU of
    each stage (`<relu>:in`) and the pooled vector.
    Source: "Distilling Knowledge via Knowledge Review", arXiv:2104.09044.
    """

    def __init__(
        self,
        student_shape: Sequence[Sequence[int]],
        teacher_shape: Sequence[Sequence[int]],
        *,
        warmup_epochs: CountOrNone = 20,
        max_mid_channel: Count = 512,
    ) -> None:
        super().__init__()
        self.warmup_epochs = warmup_epochs
        for s, t in zip(student_shape, teacher_shape, strict=True):
            same_places(s, t, "review")
        for s, deeper in pairwise(student_shape):
            same_places(s, deeper, "review", averages=places_in(deeper) == 1)
        widths = [
            (map_shape(s, "review")[1], map_shape(t, "review")[1])
            for s, t in zip(student_shape, teacher_shape, strict=True)
        ]
        middle = min(max_mid_channel, widths[-1][0])
        self.abfs = nn.ModuleList(
            Fusion(s, middle, t, fuse=level > 0) for level, (s, t) in enumerate(reversed(widths))
        )

    @full_precision
    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], epoch: int | None = None
    ) -> Tensor:
        """A scalar. epoch: counted from 0; without it there is no warm-up."""
        deeper: Tensor | None = None
        losses = []
        levels = zip(self.abfs, reversed(student), reversed(teacher), strict=True)
        for fusion, s, t in levels:
            s, t = as_map(s, "review"), as_map(t, "review")
            if self.training:
                enough_values(min(s.numel() // s.shape[1], t.numel() // t.shape[1]), "review")
            compared, deeper = fusion(s, deeper, t.shape[2:])
            losses.append(_hierarchical(compared, t))
        return epoch_share(epoch, self.warmup_epochs) * sum(losses[1:], start=losses[0])


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            total += weight
            s, t = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
            loss = loss + weight * F.mse_loss(s, t)
    return loss / total
