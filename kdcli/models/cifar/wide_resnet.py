"""The wide ResNet: pre-activation blocks, depth 6n + 4."""

from __future__ import annotations

from torch import Tensor, nn

from kdcli.models.layers import kaiming_fan_out
from kdcli.spec.ranges import Share, Width


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice; the ReLUs keep their inputs whole for taps."""

    def __init__(self, inplanes: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout) if dropout > 0 else None
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut = None if inplanes == planes else nn.Conv2d(inplanes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H / stride, W / stride]."""
        active = self.relu1(self.bn1(x))
        out: Tensor = self.relu2(self.bn2(self.conv1(active)))
        if self.drop is not None:
            out = self.drop(out)
        out = self.conv2(out)
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks in order, under `layer`."""

    def __init__(self, inplanes: int, planes: int, blocks: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            PreActivationBlock(inplanes, planes, stride, dropout),
            *(PreActivationBlock(planes, planes, 1, dropout) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H / stride, W / stride]."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """conv1, block1 to block3 (strides 1, 2, 4), bn1, relu, fc.

    depth: 6n + 4, so n blocks a stage. width: factor on the stages' 16, 32 and 64 channels. A stage
    ends before its activation: after the ReLU it is `block2.layer.0.relu1`, `block3.layer.0.relu1`
    and `relu`. Input [B, in_channels, H, W], logits [B, num_classes].
    Source: "Wide Residual Networks", arXiv:1605.07146.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_classes: Width = 100,
        in_channels: Width = 3,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        blocks = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.block1 = WideStage(widths[0], widths[1], blocks, 1, dropout)
        self.block2 = WideStage(widths[1], widths[2], blocks, 2, dropout)
        self.block3 = WideStage(widths[2], widths[3], blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        kaiming_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(image))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
