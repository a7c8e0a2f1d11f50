"""Overhauled feature distillation: pre-activations, where they are informative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.parts.inputs import enough_values, full_precision, only_maps, pooled, shown
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count


class FeatureOverhaul(StatefulLoss):
    """Partial L2 between the student's connected pre-activations and max(teacher, margin) (OFD), ÷ B.

    An element counts where the teacher is positive or the student is above the target. margin, per
    channel, is the mean of the negative part of the teacher's batch norm distribution (−3σ where less
    than 0.1 % of it is negative). Layer i of n weighs 2^(i+1−n): list them in the order of the network.
    The connector is a convolution without bias (kernel_size, same size) and batch norm; the teacher's
    map is averaged down to the student's size. teacher_norms: the batch norm that makes each feature.
    Taps: what goes into the last ReLU of each stage (`<relu>:in`), for both networks.
    Source: "A Comprehensive Overhaul of Feature Distillation", arXiv:1904.01866.
    """

    def __init__(
        self,
        student_shape: Sequence[Sequence[int]],
        teacher_shape: Sequence[Sequence[int]],
        teacher_norms: Sequence[nn.Module],
        *,
        kernel_size: Count = 1,
    ) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(
            _connector(only_maps(s, "ofd")[1], only_maps(t, "ofd")[1], kernel_size)
            for s, t in zip(student_shape, teacher_shape, strict=True)
        )
        for index, (norm, t) in enumerate(zip(teacher_norms, teacher_shape, strict=True)):
            margin = margin_of(norm)
            if len(margin) != t[1]:
                raise RunError.of(
                    "KD450",
                    f"`ofd`: the teacher's map is {shown(t)}, and its batch norm of {len(margin)} channels",
                    "tap what goes into the ReLU right after the batch norm",
                )
            self.register_buffer(f"margin{index}", margin.view(1, -1, 1, 1))

    @full_precision
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """A scalar; maps [B, C, H, W]."""
        last = len(teacher) - 1
        losses: list[Tensor] = []
        for index, (connector, s, t) in enumerate(zip(self.connectors, student, teacher, strict=True)):
            if self.training:
                enough_values(s.numel() // s.shape[1], "ofd")
            x = connector(s)
            margin = self.get_buffer(f"margin{index}").to(x.dtype)
            t = pooled(t, x.shape[2], x.shape[3])
            target = torch.maximum(t, margin)
            counts = (t > 0) | (x > target)
            losses.append(2.0 ** (index - last) * ((x - target) ** 2 * counts).sum() / len(x))
        return sum(losses[1:], start=losses[0])


def margin_of(norm: nn.Module) -> Tensor:
    """Per channel, the mean of the negative part of N(bias, weight²) of a batch norm, or −3·|weight|."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise RunError.of(
            "KD450",
            "`ofd` reads weight and bias of the teacher's batch norm, and this one has none",
            "tap what an affine batch norm gives, before the ReLU",
        )
    deviation = weight.detach().double().abs().clamp(min=1e-12)
    mean = bias.detach().double()
    negative = torch.special.ndtr(-mean / deviation)
    density = torch.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
    margin: Tensor = torch.where(negative > 0.001, mean - deviation * density / negative, -3 * deviation)
    return margin.to(weight.dtype)


def _connector(s_channels: int, t_channels: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(s_channels, t_channels, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / (kernel_size**2 * t_channels)))
    return nn.Sequential(conv, nn.BatchNorm2d(t_channels))
