"""ImageNet's ResNet shapes with a small-image stem."""

from __future__ import annotations

from torch import Tensor, nn

from kdcli.models.layers import kaiming_fan_out
from kdcli.spec.ranges import Width

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ShortcutBlock(nn.Module):
    """Convolutions with norms beside a shortcut; `relu` is the last operation."""

    def __init__(self, inplanes: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = planes * 4 if bottleneck else planes
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        strided = 1 if bottleneck else 0
        self.count = len(kernels)
        width = inplanes
        for index, kernel in enumerate(kernels):
            after = out if index == self.count - 1 else planes
            step = stride if index == strided else 1
            self.add_module(
                f"conv{index + 1}", nn.Conv2d(width, after, kernel, step, kernel // 2, bias=False)
            )
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(after))
            if index < self.count - 1:
                self.add_module(f"relu{index + 1}", nn.ReLU(inplace=True))
            width = after
        self.shortcut = nn.Sequential()
        if stride != 1 or inplanes != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, out, H / stride, W / stride]."""
        out = x
        for index in range(1, self.count + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            if index < self.count:
                out = getattr(self, f"relu{index}")(out)
        joined: Tensor = self.relu(out + self.shortcut(x))
        return joined


class DeepCifarResNet(nn.Module):
    """conv1 (3×3), bn1, relu, layer1 to layer4 (strides 1, 2, 4, 8), linear.

    depth: 18, 34 or 50. width: channels of the stem. Input [B, in_channels, H, W], logits
    [B, num_classes].
    Source: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """

    def __init__(
        self, *, depth: int, num_classes: Width = 100, in_channels: Width = 3, width: Width = 64
    ) -> None:
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        inplanes = width
        for index, blocks in enumerate(BLOCKS[depth]):
            planes = width * 2**index
            layers = []
            for block in range(blocks):
                layers.append(ShortcutBlock(inplanes, planes, 2 if index and not block else 1, bottleneck))
                inplanes = planes * 4 if bottleneck else planes
            self.add_module(f"layer{index + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inplanes, num_classes)
        kaiming_fan_out(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(image)))
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
