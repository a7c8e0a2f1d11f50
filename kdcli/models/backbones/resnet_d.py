"""ResNet-D of United-Perception: shortcuts that average before their 1×1 convolution."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from kdcli.models.backbones.resnet import ResNet
from kdcli.models.layers import build_norm, no_download
from kdcli.spec.ranges import Count, CountOrNone, Factor, Width


class ResNetD(ResNet):
    """ResNet whose shortcuts pad one row and column of zeros, average 2×2 and then convolve by 1×1.

    Outputs, frozen_layers, normalize, initializer, style, multiplier, deep_stem as in ResNet; without initializer the
    shortcuts' norms begin with weight 0. nnie: pooling 2×2 without padding in the stem. pretrained: false.
    Reads `image` [B, input_channel, H, W].
    Source: "Bag of Tricks for Image Classification with Convolutional Neural Networks", arXiv:1812.01187.
    """

    def __init__(
        self,
        *,
        depth: int | None = None,
        block: Literal["basic", "bottleneck"] | None = None,
        layers: list[Count] | None = None,
        out_layers: list[CountOrNone] | None = None,
        out_strides: list[Count] | None = None,
        style: Literal["pytorch", "caffe"] = "pytorch",
        frozen_layers: list[CountOrNone] | None = None,
        normalize: dict[str, Any] | None = None,
        multiplier: Factor = 1.0,
        initializer: dict[str, Any] | None = None,
        nnie: bool = False,
        deep_stem: bool = False,
        input_channel: Width = 3,
        pretrained: bool = False,
    ) -> None:
        no_download(pretrained)
        super().__init__(
            depth=depth,
            block=block,
            layers=layers,
            out_layers=out_layers,
            out_strides=out_strides,
            frozen_layers=frozen_layers,
            normalize=normalize,
            initializer=initializer,
            deep_stem=deep_stem,
            style=style,
            multiplier=multiplier,
            input_channel=input_channel,
        )
        if nnie:
            self.layer0[3] = nn.MaxPool2d(2, 2, ceil_mode=True)

    def _shortcut(self, inplanes: int, out: int, stride: int) -> nn.Sequential:
        norm = build_norm(out, self._normalize)
        for parameter in norm.parameters():
            nn.init.zeros_(parameter)
        return nn.Sequential(
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.AvgPool2d(2, stride),
            nn.Conv2d(inplanes, out, 1, bias=False),
            norm,
        )
