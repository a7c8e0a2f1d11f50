"""VGG with BatchNorm and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from kdcli.models.layers import check_widths, kaiming_fan_out, small_linear
from kdcli.spec.ranges import Width

CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class Vgg(nn.Module):
    """block0 to block4, each with its last ReLU apart as relu0 to relu4, then `classifier`.

    Pooled by 2 after the first three blocks, and after the fourth where the image is 64 high or
    more. widths: channels of the five blocks. Input [B, in_channels, H, W] of 8 × 8 or more, logits
    [B, num_classes].
    Source: "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv:1409.1556.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_classes: Width = 100,
        in_channels: Width = 3,
        widths: list[Width] | None = None,
    ) -> None:
        super().__init__()
        wide = check_widths(widths or [64, 128, 256, 512, 512], 5)
        for index, (count, width) in enumerate(zip(CONVOLUTIONS[depth], wide, strict=True)):
            before = wide[index - 1] if index else in_channels
            self.add_module(f"block{index}", _block(before, width, count))
            self.add_module(f"relu{index}", nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(wide[4], num_classes)
        kaiming_fan_out(self)
        small_linear(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        pooled = (0, 1, 2, 3) if image.shape[2] >= 64 else (0, 1, 2)
        x = image
        for index in range(5):
            x = getattr(self, f"relu{index}")(getattr(self, f"block{index}")(x))
            if index in pooled:
                x = self.pool(x)
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _block(inplanes: int, planes: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [nn.Conv2d(inplanes if index == 0 else planes, planes, 3, 1, 1), nn.BatchNorm2d(planes)]
        layers.append(nn.ReLU(inplace=True))
    # The last ReLU stands outside, so that the block's output is the map before it.
    return nn.Sequential(*layers[:-1])
