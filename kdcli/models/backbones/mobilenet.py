"""MobileNetV2 and MobileNetV3 with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from kdcli.models.layers import build_norm, initialize, rounded_width
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, Factor

V2_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Of each stage: expansion, channels, blocks, stride."""

V3_BLOCKS: dict[str, tuple[tuple[int, int, int, bool, bool, int], ...]] = {
    "large": (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ),
    "small": (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ),
}
"""Of each block: kernel, expanded channels, channels, squeeze-and-excitation, hard swish in place of ReLU, stride."""

LAST_WIDTH = 1280


class InvertedResidual(nn.Module):
    """A sequence of layers, and a shortcut around it where input and output have equal shapes."""

    def __init__(self, conv: nn.Sequential, shortcut: bool) -> None:
        super().__init__()
        self.conv = conv
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out, H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class SqueezeExcitation(nn.Module):
    """Channels weighted by two linear layers without bias on the mean of the map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width // 4, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(width // 4, width, bias=False),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        weights: Tensor = self.fc(x.mean((2, 3)))
        return x * weights[:, :, None, None]


class _MobileNet(ViewModule):
    """Layers `features` in a row, and the outputs of those before which the map becomes smaller."""

    features: nn.Sequential

    def _finish(
        self, layers: Sequence[nn.Module], ends: Sequence[tuple[int, int]], strides: list[int]
    ) -> None:
        """Take over the layers; ends: for each stride 2, 4 ... the layer's number and its channels."""
        self.features = nn.Sequential(*layers)
        levels = {2 ** (level + 1): end for level, end in enumerate(ends)}
        unknown = [stride for stride in strides if stride not in levels]
        if unknown or strides != sorted(set(strides)):
            raise ValueError(
                f"out_strides are some of {', '.join(map(str, levels))}, each once and rising, not {strides}"
            )
        self._taken = [levels[stride][0] for stride in strides]
        self.out_strides = strides
        self.outplanes = [levels[stride][1] for stride in strides]

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image` [B, 3, H, W]."""
        x = outputs["image"]
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taken:
                maps.append(x)
        return {"features": maps, "strides": self.out_strides}


class MobileNetV2(_MobileNet):
    """Inverted residual blocks; outputs `features`, the last map of each stride, and `strides`.

    The largest of out_strides (2 to 32) ends the network: there the last 1×1 convolution stands. c4_output: one output
    alone, what would have more than that stride dilated in its place. width_mult: factor on channels, rounded to a
    multiple of round_nearest. normalize, initializer: of models/layers.py. Reads `image` [B, 3, H, W].
    Source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381.
    """

    def __init__(
        self,
        *,
        out_strides: list[Count] | None = None,
        width_mult: Factor = 1.0,
        round_nearest: Count = 8,
        c4_output: bool = False,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        norm = normalize or {"type": "freeze_bn"}
        strides = out_strides or [32]
        width, last = rounded_width(32 * width_mult, round_nearest), LAST_WIDTH * max(1.0, width_mult)
        layers: list[nn.Module] = [_conv_norm(3, width, nn.ReLU6, norm, kernel=3, stride=2)]
        ends: list[tuple[int, int]] = []
        reached, dilation = 2, 1
        for expansion, channels, count, stride in V2_BLOCKS:
            if stride == 2 and reached >= max(strides):
                if not c4_output:
                    break
                stride, dilation = 1, 2
            elif stride == 2:
                ends.append((len(layers) - 1, width))
                reached *= 2
            out = rounded_width(channels * width_mult, round_nearest)
            for index in range(count):
                first = index == 0
                layers.append(
                    _v2_block(width, out, stride if first else 1, expansion, dilation if first else 1, norm)
                )
                width = out
        final = rounded_width(last, round_nearest)
        layers.append(_conv_norm(width, final, nn.ReLU6, norm))
        ends.append((len(layers) - 1, final))
        if c4_output:
            if len(strides) != 1:
                raise ValueError(
                    f"with c4_output there is one output: out_strides is one number, not {strides}"
                )
            self.features = nn.Sequential(*layers)
            self._taken, self.outplanes, self.out_strides = [len(layers) - 1], [final], strides
        else:
            self._finish(layers, ends, strides)
        if initializer is not None:
            initialize(self, initializer)


class MobileNetV3(_MobileNet):
    """Inverted residual blocks with squeeze-and-excitation; outputs `features` and `strides`.

    The last feature is pooled, [B, 1280, 1, 1], whatever its stride is called: pooling and the 1×1 convolution behind
    it belong to the backbone. The largest of out_strides (2 to 32) ends the network. mode: `small` or `large`.
    width_mult: factor on channels, rounded to a multiple of round_nearest. normalize, initializer: of
    models/layers.py; without initializer Kaiming normal by fan out. Reads `image` [B, 3, H, W].
    Source: "Searching for MobileNetV3", arXiv:1905.02244.
    """

    def __init__(
        self,
        *,
        out_strides: list[Count] | None = None,
        width_mult: Factor = 1.0,
        round_nearest: Count = 8,
        mode: Literal["small", "large"] = "small",
        c4_output: bool = False,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if c4_output:
            raise ValueError(
                "c4_output is for mobilenetv2 alone: United-Perception's own mobilenetv3 fails with it"
            )
        if mode not in V3_BLOCKS:
            raise ValueError(f"mode is small or large, not `{mode}`")
        norm = normalize or {"type": "freeze_bn"}
        strides = out_strides or [32]
        width = 16
        layers: list[nn.Module] = [_conv_norm(3, width, nn.Hardswish, norm, kernel=3, stride=2)]
        ends: list[tuple[int, int]] = []
        reached = 2
        for kernel, expanded, channels, squeezed, hard, stride in V3_BLOCKS[mode]:
            if stride == 2:
                if reached >= max(strides):
                    break
                ends.append((len(layers) - 1, width))
                reached *= 2
            out, inner = (
                rounded_width(number * width_mult, round_nearest) for number in (channels, expanded)
            )
            layers.append(_v3_block(width, out, inner, kernel, stride, squeezed, hard, norm))
            width = out
        wide = rounded_width((960 if mode == "large" else 576) * width_mult, round_nearest)
        final = rounded_width(LAST_WIDTH * width_mult, round_nearest) if width_mult > 1 else LAST_WIDTH
        layers += [
            _conv_norm(width, wide, nn.Hardswish, norm),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, final, 1),
            nn.Hardswish(inplace=True),
        ]
        ends.append((len(layers) - 1, final))
        self._finish(layers, ends, strides)
        if initializer is not None:
            initialize(self, initializer)
        else:
            self._initialize()

    def _initialize(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.001)


def _conv_norm(
    inp: int,
    out: int,
    activation: type[nn.Module],
    norm: Mapping[str, Any],
    *,
    kernel: int = 1,
    stride: int = 1,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=False),
        build_norm(out, norm),
        activation(inplace=True),
    )


def _v2_block(
    inp: int, out: int, stride: int, expansion: int, dilation: int, norm: Mapping[str, Any]
) -> InvertedResidual:
    inner = inp * expansion
    conv = nn.Sequential(
        nn.Conv2d(inp, inner, 1, bias=False),
        build_norm(inner, norm),
        nn.ReLU6(inplace=True),
        nn.Conv2d(inner, inner, 3, stride, dilation, dilation, groups=inner, bias=False),
        build_norm(inner, norm),
        nn.ReLU6(inplace=True),
        nn.Conv2d(inner, out, 1, bias=False),
        build_norm(out, norm),
    )
    return InvertedResidual(conv, stride == 1 and inp == out)


def _v3_block(
    inp: int,
    out: int,
    inner: int,
    kernel: int,
    stride: int,
    squeezed: bool,
    hard: bool,
    norm: Mapping[str, Any],
) -> InvertedResidual:
    activation = nn.Hardswish if hard else nn.ReLU
    layers: list[nn.Module] = []
    if inp != inner:
        layers += [nn.Conv2d(inp, inner, 1, bias=False), build_norm(inner, norm), activation(inplace=True)]
    layers += [
        nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
        build_norm(inner, norm),
        SqueezeExcitation(inner) if squeezed else nn.Identity(),
        activation(inplace=True),
        nn.Conv2d(inner, out, 1, bias=False),
        build_norm(out, norm),
    ]
    return InvertedResidual(nn.Sequential(*layers), stride == 1 and inp == out)
