"""EfficientNet with United-Perception's arguments, parameter names and outputs, or torchvision's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self

from torch import Tensor, nn

from kdcli.models.layers import DropPath, build_norm, initialize, rounded_width
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.check.components import refuse_misfits
from kdcli.spec.ranges import Count, CountOrNone, Factor, Range, ShareBelowOne

COEFFICIENTS = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
}
"""What widths and numbers of blocks are multiplied by."""

WITHOUT_EFFECT = ("dropout_rate", "data_format", "num_classes")
"""Parameters of United-Perception that say nothing of a backbone."""

STEM_WIDTH, LAST_WIDTH, HEAD_WIDTH = 32, 320, 1280
HEAD = 9
"""The number of the stage that is the last convolution."""


class StageDesign(NamedTuple):
    """One stage before scaling: blocks, kernel, stride, expansion, channels in and out, share of squeezed channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    inp: int
    out: int
    squeeze: float
    shortcut: bool = True


STAGES = (
    StageDesign(1, 3, 1, 1, 32, 16, 0.25),
    StageDesign(2, 3, 2, 6, 16, 24, 0.25),
    StageDesign(2, 5, 2, 6, 24, 40, 0.25),
    StageDesign(3, 3, 2, 6, 40, 80, 0.25),
    StageDesign(3, 5, 1, 6, 80, 112, 0.25),
    StageDesign(4, 5, 2, 6, 112, 192, 0.25),
    StageDesign(1, 3, 1, 6, 192, 320, 0.25),
)
"""Stages 2 to 8 of the paper's table; stage 1 is the stem."""


class Block(nn.Module):
    """Expansion, a convolution of each channel, squeeze-and-excitation, 1×1; a shortcut where shapes are equal."""

    def __init__(
        self, inp: int, out: int, stride: int, design: StageDesign, drop_path: float, norm: Mapping[str, Any]
    ) -> None:
        super().__init__()
        inner = inp * design.expansion
        layers: list[nn.Module] = []
        if design.expansion != 1:
            layers += [nn.Conv2d(inp, inner, 1, bias=False), build_norm(inner, norm), nn.SiLU()]
        kernel = design.kernel
        layers += [
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            build_norm(inner, norm),
            nn.SiLU(),
        ]
        self.in_conv = nn.Sequential(*layers)
        self.se_block: nn.Sequential | None = None
        if 0 < design.squeeze <= 1:
            squeezed = max(1, int(inp * design.squeeze))
            self.se_block = nn.Sequential()
            self.se_block.add_module("conv1", nn.Conv2d(inner, squeezed, 1))
            self.se_block.add_module("act1", nn.SiLU())
            self.se_block.add_module("conv2", nn.Conv2d(squeezed, inner, 1))
            self.se_block.add_module("act2", nn.Sigmoid())
        self.out_conv = nn.Sequential(nn.Conv2d(inner, out, 1, bias=False), build_norm(out, norm))
        self.shortcut = design.shortcut and stride == 1 and inp == out
        self.drop_path = DropPath(drop_path) if drop_path > 0 and self.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out, H / stride, W / stride]."""
        out: Tensor = self.in_conv(x)
        if self.se_block is not None:
            out = out * self.se_block(out.mean((2, 3), keepdim=True))
        out = self.drop_path(self.out_conv(out))
        return out + x if self.shortcut else out


class EfficientNet(ViewModule):
    """stem, blocks in a row, and `head`, the last 1×1 convolution, where stage 9 is asked for.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the stages in out_stages, counted as in the paper's
    table (2 to 8, 9 the head), and `strides`. frozen_layers: of 1 (the stem) to 8, in eval mode and without gradient,
    whatever train() says. Blocks' rates of dropped paths rise linearly from 0 towards `drop_connect_rate`.
    normalize, initializer: of models/layers.py. Reads `image` [B, 3, H, W].
    Source: "EfficientNet", arXiv:1905.11946.
    """

    def __init__(
        self,
        *,
        designs: Sequence[StageDesign],
        width_factor: float,
        depth_factor: float,
        drop_connect_rate: float,
        divisor: int,
        least: int | None,
        out_stages: list[int],
        out_strides: list[int] | None,
        frozen_layers: list[int],
        normalize: dict[str, Any],
        initializer: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        if not out_stages or not set(out_stages) <= set(range(2, HEAD + 1)):
            raise ValueError(f"out_stages are numbers from 2 to {HEAD}, at least one")
        if not set(frozen_layers) <= set(range(1, HEAD)):
            raise ValueError(f"frozen_layers are numbers from 1 to {HEAD - 1}")
        self.out_stages, self.frozen_layers = sorted(set(out_stages)), frozen_layers

        def width(channels: int) -> int:
            scaled = channels * width_factor
            return max(least or 0, rounded_width(scaled, divisor))

        counts = [math.ceil(design.blocks * depth_factor) for design in designs]
        self.blocks = nn.ModuleList()
        self._ends: dict[int, int] = {}
        levels: dict[int, tuple[int, int]] = {}
        stride = 2
        for number, (design, count) in enumerate(zip(designs, counts, strict=True), 2):
            out = width(design.out)
            for index in range(count):
                rate = drop_connect_rate * len(self.blocks) / sum(counts)
                inp, step = (width(design.inp), design.stride) if index == 0 else (out, 1)
                self.blocks.append(Block(inp, out, step, design, rate, normalize))
            self._ends[number] = len(self.blocks)
            stride *= design.stride
            levels[number] = (out, stride)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width(STEM_WIDTH), 3, 2, 1, bias=False),
            build_norm(width(STEM_WIDTH), normalize),
            nn.SiLU(),
        )
        self.head: nn.Sequential | None = None
        if HEAD in self.out_stages:
            last = width(HEAD_WIDTH)
            self.head = nn.Sequential(
                nn.Conv2d(width(LAST_WIDTH), last, 1, bias=False), build_norm(last, normalize), nn.SiLU()
            )
            levels[HEAD] = (last, stride)
        self.outplanes = [levels[number][0] for number in self.out_stages]
        self.out_strides = [levels[number][1] for number in self.out_stages]
        if out_strides not in (None, self.out_strides):
            raise ValueError(
                f"out_stages {self.out_stages} have the strides {self.out_strides}, not {out_strides}"
            )
        if initializer is not None:
            initialize(self, initializer)
        self.train()

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        x = self.stem(outputs["image"])
        ends = [self._ends[number] for number in self.out_stages if number != HEAD]
        maps = []
        for index, block in enumerate(self.blocks, 1):
            x = block(x)
            if index in ends:
                maps.append(x)
        if self.head is not None:
            maps.append(self.head(x))
        return {"features": maps, "strides": self.out_strides}

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen layers."""
        super().train(mode)
        for number in self.frozen_layers:
            if number == 1:
                self.stem.eval().requires_grad_(False)
            else:
                start = self._ends.get(number - 1, 0)
                for block in self.blocks[start : self._ends[number]]:
                    block.eval().requires_grad_(False)
        return self


def efficientnet(
    *,
    name: str,
    out_stages: list[Annotated[int, Range(at_least=2, at_most=9)]] | None = None,
    out_layers: list[CountOrNone] | None = None,
    out_strides: list[Count] | None = None,
    frozen_layers: list[CountOrNone] | None = None,
    normalize: dict[str, Any] | None = None,
    initializer: dict[str, Any] | None = None,
    override_params: dict[str, Any] | None = None,
    override_block: dict[str, str] | None = None,
    weights: str | None = None,
) -> ViewModule:
    """EfficientNet of United-Perception where out_stages is given, of torchvision otherwise.

    United-Perception's: EfficientNet's arguments; override_params: of width_coefficient, depth_coefficient,
    drop_connect_rate (0.3), depth_divisor, min_depth; override_block: for the number of a stage, from 0, its new
    design, as `r2_k3_s22_e6_i16_o24_se0.25`. torchvision's: out_layers, out_strides, weights
    of TorchvisionStages.
    """
    own = {
        "frozen_layers": frozen_layers,
        "normalize": normalize,
        "initializer": initializer,
        "override_params": override_params,
        "override_block": override_block,
    }
    if out_stages is None:
        given = [key for key, value in own.items() if value is not None]
        if given:
            raise ValueError(f"{given[0]} is of United-Perception's network, which `out_stages` asks for")
        from kdcli.models.backbones.torchvision_backbones import TorchvisionStages

        return TorchvisionStages(name=name, out_layers=out_layers, out_strides=out_strides, weights=weights)
    for key, value in (("out_layers", out_layers), ("weights", weights)):
        if value is not None:
            raise ValueError(
                f"{key} is of torchvision's network, `out_stages` of United-Perception's: give one of them"
            )
    params = dict(override_params or {})
    hints = {
        "width_coefficient": Factor,
        "depth_coefficient": Factor,
        "drop_connect_rate": ShareBelowOne,
        "depth_divisor": Count,
        "min_depth": Count | None,
    }
    unknown = next((key for key in params if key not in hints and key not in WITHOUT_EFFECT), None)
    if unknown is not None:
        raise ValueError(
            f"override_params has no `{unknown}`; it takes {', '.join((*hints, *WITHOUT_EFFECT))}"
        )
    refuse_misfits(params, hints, "override_params")
    designs = list(STAGES)
    for number, text in (override_block or {}).items():
        if not str(number).isdecimal() or int(number) >= len(designs):
            raise ValueError(
                f"override_block has numbers of stages from 0 to {len(designs) - 1}, not {number}"
            )
        designs[int(number)] = stage_design(text)
    usual_width, usual_depth = COEFFICIENTS[name]
    return EfficientNet(
        designs=designs,
        width_factor=params.get("width_coefficient", usual_width),
        depth_factor=params.get("depth_coefficient", usual_depth),
        drop_connect_rate=params.get("drop_connect_rate", 0.3),
        divisor=params.get("depth_divisor", 8),
        least=params.get("min_depth"),
        out_stages=out_stages,
        out_strides=out_strides,
        frozen_layers=frozen_layers or [],
        normalize=normalize or {"type": "freeze_bn"},
        initializer=initializer,
    )


_DESIGN = re.compile(r"r(\d+)_k(\d+)_s(\d)\3_e(\d+)_i(\d+)_o(\d+)(?:_se(0?\.\d+|1|0|1\.0))?(_noskip)?")


def stage_design(text: str) -> StageDesign:
    """A stage from its short form `r2_k3_s22_e6_i16_o24_se0.25`; raises ValueError on any other text."""
    match = _DESIGN.fullmatch(str(text))
    if match is None:
        raise ValueError(
            f"override_block: a stage is written as `r2_k3_s22_e6_i16_o24_se0.25` (blocks, kernel, stride twice, "
            f"expansion, channels in and out, squeezed share), not `{text}`"
        )
    count, kernel, stride, expansion, inp, out = (int(number) for number in match.groups()[:6])
    return StageDesign(count, kernel, stride, expansion, inp, out, float(match[7] or 0), match[8] is None)
