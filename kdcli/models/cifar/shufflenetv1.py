"""ShuffleNet with grouped 1×1 convolutions, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcli.models.cifar.initial import check_widths
from kdcli.models.cifar.shuffle import ChannelShuffle

STEM = 24


class ShuffleBlock(nn.Module):
    """1×1, shuffle, 3×3 by channel, 1×1; added to its input, or at stride 2 set beside it.

    `relu` is the last operation.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        branch = planes - inplanes if stride == 2 else planes
        inner = branch // 4
        first = 1 if inplanes == STEM else groups
        self.conv1 = nn.Conv2d(inplanes, inner, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.shuffle1 = ChannelShuffle(first)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.shortcut = nn.Sequential(nn.AvgPool2d(3, 2, 1)) if stride == 2 else nn.Sequential()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H / stride, W / stride]."""
        out = self.shuffle1(self.relu1(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = self.shortcut(x)
        joined: Tensor = self.relu(torch.cat([out, shortcut], 1) if self.stride == 2 else out + shortcut)
        return joined


class ShuffleNetV1(nn.Module):
    """conv1, bn1, relu, layer1 to layer3 (strides 2, 4, 8; 4, 8 and 4 blocks), linear.

    widths: channels of the three layers. Three groups, so a layer's new channels divide by 12.
    Input [B, in_channels, H, W], logits [B, num_classes].
    Source: "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    arXiv:1707.01083.
    """

    def __init__(
        self, *, num_classes: int = 100, in_channels: int = 3, widths: list[int] | None = None
    ) -> None:
        super().__init__()
        wide = check_widths(widths or [240, 480, 960], 3)
        groups = 3
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = _layer(STEM, wide[0], 4, groups)
        self.layer2 = _layer(wide[0], wide[1], 8, groups)
        self.layer3 = _layer(wide[1], wide[2], 4, groups)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(wide[2], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _layer(inplanes: int, planes: int, blocks: int, groups: int) -> nn.Sequential:
    if planes <= inplanes:
        raise ValueError(f"widths rise from layer to layer, from the stem's {STEM} on")
    first = ShuffleBlock(inplanes, planes, 2, groups)
    return nn.Sequential(first, *(ShuffleBlock(planes, planes, 1, groups) for _ in range(blocks - 1)))
