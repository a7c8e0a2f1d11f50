"""The CIFAR ResNet: three stages of basic blocks, depth 6n + 2."""

from __future__ import annotations

from torch import Tensor, nn

from kdcli.models.layers import check_widths, kaiming_fan_out
from kdcli.spec.ranges import Width


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; `relu` is the last operation, `relu:in` its sum."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H / stride, W / stride]."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        joined: Tensor = self.relu(out + shortcut)
        return joined


class CifarResNet(nn.Module):
    """conv1, bn1, relu, layer1 to layer3 (strides 1, 2, 4), fc.

    depth: 6n + 2, so n blocks a stage. widths: channels of the stem and of the three stages.
    Input [B, in_channels, H, W], logits [B, num_classes].
    Source: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_classes: Width = 100,
        in_channels: Width = 3,
        widths: list[Width] | None = None,
        wide: bool = False,
    ) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        stem, *stages = check_widths(widths or ([32, 64, 128, 256] if wide else [16, 16, 32, 64]), 4)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, stages[0], blocks, 1)
        self.layer2 = _stage(stages[0], stages[1], blocks, 2)
        self.layer3 = _stage(stages[1], stages[2], blocks, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[2], num_classes)
        kaiming_fan_out(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inplanes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))
