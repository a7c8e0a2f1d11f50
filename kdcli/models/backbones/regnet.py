"""RegNet with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from kdcli.models.layers import build_norm, initialize
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone

STRIDES = [2, 4, 8, 16, 32]
STEM_WIDTH = 32


class Design(NamedTuple):
    """The numbers that a RegNet is made from: how widths grow (slope, first, factor), blocks, a group's channels."""

    slope: float
    first: int
    factor: float
    depth: int
    group: int


DESIGNS = {
    "regnetx_200m": Design(36.44, 24, 2.49, 13, 8),
    "regnetx_400m": Design(24.48, 24, 2.54, 22, 16),
    "regnetx_600m": Design(36.97, 48, 2.24, 16, 24),
    "regnetx_800m": Design(35.73, 56, 2.28, 16, 16),
    "regnetx_1600m": Design(34.01, 80, 2.25, 18, 24),
    "regnetx_3200m": Design(26.31, 88, 2.25, 25, 48),
    "regnetx_4000m": Design(38.65, 96, 2.43, 23, 40),
    "regnetx_6400m": Design(60.83, 184, 2.07, 17, 56),
    "regnety_200m": Design(36.44, 24, 2.49, 13, 8),
    "regnety_400m": Design(27.89, 48, 2.09, 16, 8),
    "regnety_600m": Design(32.54, 48, 2.32, 15, 16),
    "regnety_800m": Design(38.84, 56, 2.4, 14, 16),
    "regnety_1600m": Design(20.71, 48, 2.65, 27, 24),
    "regnety_3200m": Design(42.63, 80, 2.66, 21, 24),
    "regnety_4000m": Design(31.41, 96, 2.24, 22, 64),
    "regnety_6400m": Design(33.22, 112, 2.27, 25, 72),
}


class Stem(nn.Module):
    """A 3×3 convolution of stride 2, norm, ReLU."""

    def __init__(self, width: int, norm: Mapping[str, Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn = build_norm(width, norm)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, width, H / 2, W / 2]."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class SqueezeExcitation(nn.Module):
    """Channels weighted by two 1×1 convolutions on the mean of the map."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.f_ex = nn.Sequential(
            nn.Conv2d(width, inner, 1), nn.ReLU(inplace=True), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        out: Tensor = x * self.f_ex(self.avg_pool(x))
        return out


class Branch(nn.Sequential):
    """1×1, 3×3 in groups, perhaps squeeze-and-excitation, 1×1; all of one width."""

    def __init__(
        self, inp: int, out: int, stride: int, group: int, squeezed: bool, norm: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.a = nn.Conv2d(inp, out, 1, bias=False)
        self.a_bn = build_norm(out, norm)
        self.a_relu = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(out, out, 3, stride, 1, groups=out // group, bias=False)
        self.b_bn = build_norm(out, norm)
        self.b_relu = nn.ReLU(inplace=True)
        if squeezed:
            self.se = SqueezeExcitation(out, round(inp * 0.25))
        self.c = nn.Conv2d(out, out, 1, bias=False)
        self.c_bn = build_norm(out, norm)


class Block(nn.Module):
    """The branch `f` and a shortcut, which is a 1×1 convolution where shapes differ; then ReLU."""

    def __init__(
        self, inp: int, out: int, stride: int, group: int, squeezed: bool, norm: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inp, out, 1, stride, bias=False) if inp != out or stride != 1 else None
        self.bn = build_norm(out, norm) if self.proj is not None else None
        self.f = Branch(inp, out, stride, group, squeezed, norm)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out, H / stride, W / stride]."""
        shortcut = x
        if self.proj is not None and self.bn is not None:
            shortcut = self.bn(self.proj(x))
        out: Tensor = self.relu(shortcut + self.f(x))
        return out


class RegNet(ViewModule):
    """stem and stages s1 to s4, of strides 2, 4, 8, 16, 32.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the stages in out_layers, 0 being the stem, and
    `strides`. name: of DESIGNS; regnety has squeeze-and-excitation. frozen_layers: in eval mode and without gradient,
    whatever train() says. normalize, initializer: of models/layers.py; without initializer a normal
    distribution of variance 2 / (k² · out). Reads `image` [B, 3, H, W].
    Source: "Designing Network Design Spaces", arXiv:2003.13678.
    """

    def __init__(
        self,
        *,
        name: str,
        out_layers: list[CountOrNone] | None = None,
        out_strides: list[Count] | None = None,
        frozen_layers: list[CountOrNone] | None = None,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        norm = normalize or {"type": "freeze_bn"}
        self.out_layers = out_layers if out_layers is not None else [4]
        self.frozen_layers = frozen_layers or []
        if not self.out_layers or not {*self.out_layers, *self.frozen_layers} <= set(range(5)):
            raise ValueError("out_layers and frozen_layers are numbers from 0 to 4, out_layers at least one")
        self.out_strides = [STRIDES[index] for index in self.out_layers]
        if out_strides not in (None, self.out_strides):
            raise ValueError(
                f"out_layers {self.out_layers} have the strides {self.out_strides}, not {out_strides}"
            )
        design = DESIGNS[name]
        self.stem = Stem(STEM_WIDTH, norm)
        widths = [STEM_WIDTH]
        for number, (width, depth, group) in enumerate(stages(design), 1):
            stage = nn.Sequential()
            for index in range(depth):
                first = index == 0
                stage.add_module(
                    f"b{index + 1}",
                    Block(
                        widths[-1] if first else width, width, 2 if first else 1, group, name[6] == "y", norm
                    ),
                )
            self.add_module(f"s{number}", stage)
            widths.append(width)
        self.outplanes = [widths[index] for index in self.out_layers]
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
                nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        if initializer is not None:
            initialize(self, initializer)
        self.train()

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        x = outputs["image"]
        maps = []
        for stage in self.children():
            x = stage(x)
            maps.append(x)
        return {"features": [maps[index] for index in self.out_layers], "strides": self.out_strides}

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen layers."""
        super().train(mode)
        stages = list(self.children())
        for index in self.frozen_layers:
            stages[index].eval().requires_grad_(False)
        return self


def stages(design: Design) -> list[tuple[int, int, int]]:
    """Width, number of blocks and channels of a group, of each stage.

    The widths first + slope · i of blocks i are quantized to first · factor^k with whole k, then to multiples of 8;
    blocks of one width are a stage. At last widths become multiples of the group's channels.
    """
    widths = []
    for index in range(design.depth):
        power = round(
            math.log((index * design.slope + design.first) / design.first) / math.log(design.factor)
        )
        widths.append(round(design.first * design.factor**power / 8) * 8)
    counts = [(width, len(list(blocks))) for width, blocks in groupby(widths)]
    groups = [min(design.group, width) for width, _ in counts]
    return [(round(width / g) * g, depth, g) for (width, depth), g in zip(counts, groups, strict=True)]
