"""MobileNetV2 for small images."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from kdcli.models.layers import kaiming_fan_out, small_linear
from kdcli.spec.ranges import Factor, Range, Width

STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Of each stage: channels at width 1, blocks, stride."""


class InvertedResidual(nn.Module):
    """Widen by 1×1, 3×3 by channel, narrow by 1×1 without a ReLU; a shortcut where shapes agree."""

    def __init__(self, inplanes: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inplanes * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(inplanes, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.shortcut = stride == 1 and inplanes == planes

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """conv1 (stride 2), blocks.0 to blocks.6, conv2, classifier.

    width: factor on all channels but conv2's. expansion: of the blocks after the first. A block
    ends without a ReLU; the last one is `conv2.2`. Input [B, in_channels, H, W], logits
    [B, num_classes].
    Source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381.
    """

    def __init__(
        self,
        *,
        num_classes: Width = 100,
        in_channels: Width = 3,
        width: Factor = 0.5,
        expansion: Annotated[int, Range(at_least=1, at_most=1000)] = 6,
        last_width: Width = 1280,
    ) -> None:
        super().__init__()
        planes = int(32 * width)
        if int(STAGES[0][0] * width) < 1:
            raise ValueError(f"width {width} leaves a stage without channels")
        self.conv1 = _conv_norm_relu(in_channels, planes, 3, 2)
        stages = []
        for index, (channels, blocks, stride) in enumerate(STAGES):
            out = int(channels * width)
            layers = []
            for block in range(blocks):
                first = stride if block == 0 else 1
                layers.append(InvertedResidual(planes, out, first, expansion if index else 1))
                planes = out
            stages.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(stages)
        self.conv2 = _conv_norm_relu(planes, last_width, 1, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last_width, num_classes))
        kaiming_fan_out(self)
        small_linear(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.conv1(image)
        for stage in self.blocks:
            x = stage(x)
        x = self.avgpool(self.conv2(x)).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def _conv_norm_relu(inplanes: int, planes: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inplanes, planes, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes), nn.ReLU())
