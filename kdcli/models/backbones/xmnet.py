"""XMNet, a backbone found by United-Perception's search, with its parameter names and outputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import _make_divisible

from kdcli.models.layers import build_norm, initialize, kaiming_fan_out, norm_name
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, Factor, Width

ENDS = (1, 3, 6, 12, 18)
"""The last block of each layer that may be given out."""

STRIDES = (2, 4, 8, 16, 32)

STAGES = ((48, 2, 4, 2), (80, 3, 6, 2), (128, 3, 3, 2), (128, 3, 2, 1), (160, 6, 5, 2))
"""Of each stage: channels, blocks, expansion, stride of the first block. The last is depthwise."""


class FusedConv(nn.Module):
    """A 3×3 convolution that widens, a 1×1 that narrows, and a shortcut where the shape stays."""

    def __init__(
        self, inplanes: int, hidden: int, planes: int, stride: int, normalize: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(inplanes, hidden, 3, stride, 1, bias=False)
        self.norm1 = build_norm(hidden, normalize)
        self.act1 = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, planes, 1, bias=False)
        self.norm2 = build_norm(planes, normalize)
        self.residual = inplanes == planes and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, planes, H / stride, W / stride]."""
        out: Tensor = self.norm2(self.fc2(self.act1(self.norm1(self.fc1(x)))))
        return x + out if self.residual else out


class DepthwiseConv(nn.Module):
    """A 1×1 convolution that widens between two norms, a depthwise 3×3, a 1×1 that narrows, and a shortcut."""

    def __init__(
        self, inplanes: int, hidden: int, planes: int, stride: int, normalize: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.b1 = nn.Sequential(
            build_norm(inplanes, normalize),
            nn.Conv2d(inplanes, hidden, 1, bias=False),
            build_norm(hidden, normalize),
            nn.ReLU(inplace=True),
        )
        self.b2 = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            build_norm(hidden, normalize),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, planes, 1),
            build_norm(planes, normalize),
        )
        self.residual = inplanes == planes and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, planes, H / stride, W / stride]."""
        out: Tensor = self.b2(self.b1(x))
        return x + out if self.residual else out


class XMNet(ViewModule):
    """A stem of stride 2, four stages of fused convolutions and one of depthwise ones.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the layers 0 to 4 in out_layers (24, 48, 80, 128
    and 160 channels, strides 2 to 32), and `strides`. Reads `image`. width_mult widens the stem and the first
    block alone, rounded to multiples of round_nearest and 8. input_size is accepted and changes nothing.
    """

    def __init__(
        self,
        *,
        in_channels: Width = 3,
        width_mult: Factor = 1.0,
        round_nearest: Count = 8,
        input_size: Count = 224,
        input_channel: Width = 32,
        out_layers: list[CountOrNone] | None = None,
        out_strides: list[Count] | None = None,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.out_layers = [4] if out_layers is None else out_layers
        if not self.out_layers or not set(self.out_layers) <= set(range(5)):
            raise ValueError("out_layers are numbers from 0 to 4, at least one")
        strides = [STRIDES[index] for index in self.out_layers]
        if out_strides is not None and list(out_strides) != strides:
            raise ValueError(f"layers {self.out_layers} have the strides {strides}, not {list(out_strides)}")
        self.out_strides = strides
        normalize = normalize or {"type": "solo_bn"}
        stem = _make_divisible(input_channel * min(1.0, width_mult), round_nearest)
        width = _make_divisible(24 * width_mult, 8)
        first = OrderedDict[str, nn.Module](
            [
                ("conv", nn.Conv2d(in_channels, stem, 3, 2, 1, bias=False)),
                (norm_name(normalize), build_norm(stem, normalize)),
            ]
        )
        blocks: list[nn.Module] = [nn.Sequential(first), FusedConv(stem, stem, width, 1, normalize)]
        widths = [stem, width]
        for stage, (planes, count, expansion, stride) in enumerate(STAGES):
            kind = FusedConv if stage < len(STAGES) - 1 else DepthwiseConv
            for index in range(count):
                hidden = widths[-1] * expansion
                blocks.append(kind(widths[-1], hidden, planes, 1 if index else stride, normalize))
                widths.append(planes)
        self.features = nn.ModuleList(blocks)
        self.outplanes = [widths[ENDS[index]] for index in self.out_layers]
        kaiming_fan_out(self)
        if initializer is not None:
            initialize(self, initializer)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image` [B, in_channels, H, W]."""
        x = outputs["image"]
        maps = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in ENDS:
                maps.append(x)
        return {"features": [maps[index] for index in self.out_layers], "strides": self.out_strides}
