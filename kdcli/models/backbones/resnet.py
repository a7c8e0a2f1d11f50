"""ResNet with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from kdcli.models.layers import build_norm, initialize, norm_name
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, Factor, ShareBelowOne, Width

Block = Literal["basic", "bottleneck"]

DEPTHS: dict[int, tuple[Block, list[int]]] = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


class DropPath(nn.Module):
    """Drops the residual branch of whole samples; what stays is scaled by 1 / (1 − rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Same shape [B, ...]."""
        if not self.training:
            return x
        keep = 1 - self.rate
        kept = torch.rand((x.shape[0], *[1] * (x.ndim - 1)), device=x.device) < keep
        return x * kept.to(x.dtype) / keep


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        normalize: Mapping[str, Any],
        downsample: nn.Module | None,
        drop_path: nn.Module | None,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        self.norms = [norm_name(normalize, index) for index in (1, 2)]
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, dilation, dilation, bias=False)
        self.add_module(self.norms[0], build_norm(planes, normalize))
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.add_module(self.norms[1], build_norm(planes, normalize))
        self.downsample = downsample
        self.drop_path = drop_path
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, planes, H / stride, W / stride]."""
        norm1, norm2 = (getattr(self, name) for name in self.norms)
        out = self.relu1(norm1(self.conv1(x)))
        out = norm2(self.conv2(out))
        return _join(self, out, x)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions, four times as wide at the end, and a shortcut."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        normalize: Mapping[str, Any],
        downsample: nn.Module | None,
        drop_path: nn.Module | None,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.norms = [norm_name(normalize, index) for index in (1, 2, 3)]
        self.conv1 = nn.Conv2d(inplanes, planes, 1, first, bias=False)
        self.add_module(self.norms[0], build_norm(planes, normalize))
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, dilation, dilation, bias=False)
        self.add_module(self.norms[1], build_norm(planes, normalize))
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.add_module(self.norms[2], build_norm(planes * 4, normalize))
        self.downsample = downsample
        self.drop_path = drop_path
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 4 planes, H / stride, W / stride]."""
        norm1, norm2, norm3 = (getattr(self, name) for name in self.norms)
        out = self.relu1(norm1(self.conv1(x)))
        out = self.relu2(norm2(self.conv2(out)))
        out = norm3(self.conv3(out))
        return _join(self, out, x)


def _join(block: BasicBlock | Bottleneck, branch: Tensor, x: Tensor) -> Tensor:
    """The block's last ReLU over branch and shortcut; nothing is changed in place, so taps stay true."""
    if block.drop_path is not None:
        branch = block.drop_path(branch)
    shortcut = x if block.downsample is None else block.downsample(x)
    out: Tensor = block.relu(branch + shortcut)
    return out


class ResNet(ViewModule):
    """layer0 (conv1, norm, relu, maxpool) and layer1 to layer4.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the layers in out_layers, and
    `strides`: their strides. Reads `image`.

    depth: 18, 34, 50, 101 or 152; or block with layers (blocks per layer). out_strides: as many as
    out_layers; layer4 is built if it is among those, and dilated where its stride is layer3's. frozen_layers:
    in eval mode and without gradient, whatever train() says. normalize: {type, kwargs} and
    initializer: of models/layers.py. deep_stem: three 3×3 convolutions
    instead of the 7×7. avg_down: average pooling before the shortcut's 1×1. style: where a
    bottleneck strides, 3×3 (pytorch) or 1×1 (caffe). width: channels of the stem, times multiplier.
    drop_path_rate: of the last block, rising linearly from 0. stem: `cifar` is one 3×3 of stride 1
    without pooling, so that all strides are a fourth.
    Source: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "conv1": "layer0.0",
        "bn1": "layer0.1",
        "gn1": "layer0.1",
        "ln1": "layer0.1",
    }

    def __init__(
        self,
        *,
        depth: int | None = None,
        block: Literal["basic", "bottleneck"] | None = None,
        layers: list[Count] | None = None,
        out_layers: list[CountOrNone] | None = None,
        out_strides: list[Count] | None = None,
        frozen_layers: list[CountOrNone] | None = None,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
        deep_stem: bool = False,
        avg_down: bool = False,
        style: Literal["pytorch", "caffe"] = "pytorch",
        width: Width = 64,
        multiplier: Factor = 1.0,
        input_channel: Width = 3,
        drop_path_rate: ShareBelowOne = 0.0,
        stem: Literal["imagenet", "cifar"] = "imagenet",
    ) -> None:
        super().__init__()
        block, layers = _shape(depth, block, layers)
        self.out_layers = out_layers if out_layers is not None else [4]
        usual = [1, 1, 2, 4, 8] if stem == "cifar" else [4, 4, 8, 16, 32]
        self.out_strides = out_strides or [usual[min(index, 4)] for index in self.out_layers]
        self.frozen_layers = frozen_layers or []
        _check_layers(self.out_layers, self.out_strides, self.frozen_layers, usual)
        if stem not in ("imagenet", "cifar") or style not in ("pytorch", "caffe"):
            raise ValueError("stem is imagenet or cifar, style is pytorch or caffe")
        self._normalize = normalize or {"type": "freeze_bn"}
        self._block: type[BasicBlock | Bottleneck] = BasicBlock if block == "basic" else Bottleneck
        self._avg_down = avg_down
        self._caffe = style == "caffe"
        self._rates = [drop_path_rate * index / max(sum(layers) - 1, 1) for index in range(sum(layers))]

        planes = [int(width * 2**index * multiplier) for index in range(4)]
        first = int(width * multiplier)
        self.layer0 = self._stem(input_channel, first, deep_stem, stem)
        self.layer1 = self._layer(first, planes[0], layers, 0, stride=1)
        self.layer2 = self._layer(planes[0] * self._block.expansion, planes[1], layers, 1, stride=2)
        self.layer3 = self._layer(planes[1] * self._block.expansion, planes[2], layers, 2, stride=2)
        self.layer4: nn.Sequential | None = None
        if 4 in self.out_layers:
            dilated = self.out_strides[self.out_layers.index(4)] == usual[3]
            stride, dilation = (1, 2) if dilated else (2, 1)
            self.layer4 = self._layer(
                planes[2] * self._block.expansion, planes[3], layers, 3, stride=stride, dilation=dilation
            )
        widths = [first, *(plane * self._block.expansion for plane in planes)]
        self.outplanes = [widths[index] for index in self.out_layers]
        if initializer is not None:
            initialize(self, initializer)
        self.train()

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image` [B, input_channel, H, W]."""
        x = outputs["image"]
        maps = []
        for layer in (self.layer0, self.layer1, self.layer2, self.layer3, self.layer4):
            if layer is not None:
                x = layer(x)
                maps.append(x)
        return {"features": [maps[index] for index in self.out_layers], "strides": self.out_strides}

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen layers."""
        super().train(mode)
        for index in self.frozen_layers:
            layer = getattr(self, f"layer{index}")
            if layer is not None:
                layer.eval().requires_grad_(False)
        return self

    @property
    def conv1(self) -> nn.Module:
        """The stem's convolution, under its second name."""
        return self.layer0[0]

    @property
    def bn1(self) -> nn.Module:
        """The stem's norm, under its second name."""
        return self.layer0[1]

    @property
    def maxpool(self) -> nn.Module:
        """The stem's pooling, under its second name."""
        return self.layer0[3]

    def _stem(self, channels: int, width: int, deep: bool, stem: str) -> nn.Sequential:
        conv: nn.Module
        if stem == "cifar":
            conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        elif deep:
            half = width // 2
            conv = nn.Sequential(
                nn.Conv2d(channels, half, 3, 2, 1, bias=False),
                build_norm(half, self._normalize),
                nn.ReLU(inplace=True),
                nn.Conv2d(half, half, 3, 1, 1, bias=False),
                build_norm(half, self._normalize),
                nn.ReLU(inplace=True),
                nn.Conv2d(half, width, 3, 1, 1, bias=False),
            )
        else:
            conv = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        pool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        return nn.Sequential(conv, build_norm(width, self._normalize), nn.ReLU(), pool)

    def _layer(
        self, inplanes: int, planes: int, layers: list[int], index: int, *, stride: int, dilation: int = 1
    ) -> nn.Sequential:
        out = planes * self._block.expansion
        # As in United-Perception, layer1 never strides in its 1×1: its stride is 1.
        blocks = []
        for position in range(layers[index]):
            down = None
            if position == 0 and (stride != 1 or inplanes != out):
                down = self._shortcut(inplanes, out, stride)
            rate = self._rates[sum(layers[:index]) + position]
            blocks.append(
                self._block(
                    inplanes if position == 0 else out,
                    planes,
                    stride if position == 0 else 1,
                    dilation,
                    self._normalize,
                    down,
                    DropPath(rate) if rate > 0 else None,
                    self._caffe,
                )
            )
        return nn.Sequential(*blocks)

    def _shortcut(self, inplanes: int, out: int, stride: int) -> nn.Sequential:
        norm = build_norm(out, self._normalize)
        if not self._avg_down:
            return nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False), norm)
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(pool, nn.Conv2d(inplanes, out, 1, bias=False), norm)


def last_layer(name: str, inplanes: int, stride: int, normalize: Mapping[str, Any]) -> nn.Sequential:
    """The layer4 of resnet18 to resnet152, from inplanes channels, with another stride; it has no other layers."""
    kind, counts = DEPTHS[int(name.removeprefix("resnet"))]
    block: type[BasicBlock | Bottleneck] = BasicBlock if kind == "basic" else Bottleneck
    out = last_width(name)
    down = None
    if stride != 1 or inplanes != out:
        conv = nn.Conv2d(inplanes, out, 1, stride, bias=False)
        down = nn.Sequential(conv, build_norm(out, normalize))
    blocks = [block(inplanes, 512, stride, 1, normalize, down, None, False)]
    blocks += [block(out, 512, 1, 1, normalize, None, None, False) for _ in range(1, counts[3])]
    return nn.Sequential(*blocks)


def last_width(name: str) -> int:
    """The channels that layer4 of resnet18 to resnet152 gives."""
    return 512 * (1 if DEPTHS[int(name.removeprefix("resnet"))][0] == "basic" else 4)


def _shape(depth: int | None, block: Block | None, layers: list[int] | None) -> tuple[Block, list[int]]:
    if depth is not None:
        return DEPTHS[depth]
    if block not in ("basic", "bottleneck"):
        raise ValueError(f"block is basic or bottleneck, not `{block}`")
    if layers is None or len(layers) != 4 or min(layers) < 1:
        raise ValueError("layers says how many blocks each of the four layers has")
    return block, list(layers)


def _check_layers(
    out_layers: list[int], out_strides: list[int], frozen_layers: list[int], usual: list[int]
) -> None:
    if not out_layers or not set(out_layers) | set(frozen_layers) <= set(range(5)):
        raise ValueError("out_layers and frozen_layers are numbers from 0 to 4, out_layers at least one")
    if len(out_strides) != len(out_layers):
        raise ValueError(f"{len(out_layers)} out_layers need as many out_strides, not {len(out_strides)}")
    for index, stride in zip(out_layers, out_strides, strict=True):
        if stride != usual[index] and not (index == 4 and stride == usual[3]):
            raise ValueError(f"layer{index} has stride {usual[index]}, not {stride}")
