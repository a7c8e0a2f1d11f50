"""ShuffleNetV2, which splits its channels, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcli.models.layers import check_widths
from kdcli.spec.ranges import Width

STEM = 24


class SplitBlock(nn.Module):
    """Works on the second half of the channels and shuffles both.

    `relu` runs over the whole map: the first half is never negative, so it stays as it is, and
    `relu:in` is the full map before the activation.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape [B, C, H, W]."""
        kept, worked = x.chunk(2, 1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(worked)))))
        out = self.bn3(self.conv3(out))
        joined: Tensor = self.shuffle(self.relu(torch.cat([kept, out], 1)))
        return joined


class DownBlock(nn.Module):
    """Two branches of stride 2, set side by side and shuffled."""

    def __init__(self, inplanes: int, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.conv1 = nn.Conv2d(inplanes, inplanes, 3, 2, 1, groups=inplanes, bias=False)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv2 = nn.Conv2d(inplanes, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inplanes, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H / 2, W / 2]."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        right = self.bn5(self.conv5(right))
        joined: Tensor = self.shuffle(self.relu(torch.cat([left, right], 1)))
        return joined


class ShuffleNetV2(nn.Module):
    """conv1, bn1, relu, layer1 to layer3 (strides 2, 4, 8), conv2, bn2, relu2, linear.

    widths: channels of the three layers (even) and of conv2. Input [B, in_channels, H, W], logits
    [B, num_classes].
    Source: "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
    arXiv:1807.11164.
    """

    def __init__(
        self, *, num_classes: Width = 100, in_channels: Width = 3, widths: list[Width] | None = None
    ) -> None:
        super().__init__()
        wide = check_widths(widths or [116, 232, 464, 1024], 4)
        if any(width % 2 for width in wide[:3]):
            raise ValueError(f"the first three widths are even, not {wide[:3]}")
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = _layer(STEM, wide[0], 3)
        self.layer2 = _layer(wide[0], wide[1], 7)
        self.layer3 = _layer(wide[1], wide[2], 3)
        self.conv2 = nn.Conv2d(wide[2], wide[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide[3])
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(wide[3], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _layer(inplanes: int, planes: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(inplanes, planes), *(SplitBlock(planes) for _ in range(blocks)))


class ChannelShuffle(nn.Module):
    """Deals the channels of the groups out in turn."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Same shape [B, C, H, W]."""
        batch, channels, height, width = x.shape
        grouped = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(batch, channels, height, width)


STEM_V1 = 24


class ShuffleBlock(nn.Module):
    """1×1, shuffle, 3×3 by channel, 1×1; added to its input, or at stride 2 set beside it.

    `relu` is the last operation.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        branch = planes - inplanes if stride == 2 else planes
        inner = branch // 4
        first = 1 if inplanes == STEM_V1 else groups
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
        self, *, num_classes: Width = 100, in_channels: Width = 3, widths: list[Width] | None = None
    ) -> None:
        super().__init__()
        wide = check_widths(widths or [240, 480, 960], 3)
        groups = 3
        self.conv1 = nn.Conv2d(in_channels, STEM_V1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_V1)
        self.relu = nn.ReLU()
        self.layer1 = _layer_v1(STEM_V1, wide[0], 4, groups)
        self.layer2 = _layer_v1(wide[0], wide[1], 8, groups)
        self.layer3 = _layer_v1(wide[1], wide[2], 4, groups)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(wide[2], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _layer_v1(inplanes: int, planes: int, blocks: int, groups: int) -> nn.Sequential:
    if planes <= inplanes:
        raise ValueError(f"widths rise from layer to layer, from the stem's {STEM_V1} on")
    first = ShuffleBlock(inplanes, planes, 2, groups)
    return nn.Sequential(first, *(ShuffleBlock(planes, planes, 1, groups) for _ in range(blocks - 1)))
