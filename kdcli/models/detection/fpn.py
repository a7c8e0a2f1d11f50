"""Feature pyramid: a backbone's features brought to one width, from the coarsest level down."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.layers import build_norm, initialize, norm_name
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, Width


class FPN(ViewModule):
    """Feature pyramid network.

    Reads `features`, maps [B, inplanes[i], H_i, W_i] from fine to coarse; output `features`: num_level
    maps of outplanes channels, and `strides`. start_level names the layers: `c2_lateral`, `p2_conv`, ...
    Levels beyond the backbone's come from `p6_pool` (every second position of the level before) or
    `p6_conv` (3×3, stride 2), which reads the last lateral unless use_p5; relu_between_extras puts a ReLU
    between these convolutions (torchvision's RetinaNet has both of these set). bilinear upsampling aligns
    corners by default. normalize adds a norm after each lateral and output convolution, which are then
    called `c2_lateral.conv` and `c2_lateral.bn` (`gn`, `ln`), as in United-Perception.
    Source: "Feature Pyramid Networks for Object Detection", arXiv:1612.03144.
    """

    def __init__(
        self,
        inplanes: int | list[int],
        *,
        outplanes: Width,
        start_level: CountOrNone,
        num_level: Count,
        out_strides: list[Count],
        downsample: Literal["pool", "conv"],
        upsample: Literal["nearest", "bilinear"],
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
        align_corners: bool = True,
        use_p5: bool = False,
        relu_between_extras: bool = False,
    ) -> None:
        super().__init__()
        widths = list(inplanes) if isinstance(inplanes, (list, tuple)) else [inplanes]
        if len(out_strides) != num_level:
            raise ValueError(f"num_level {num_level} needs as many out_strides, not {len(out_strides)}")
        if num_level < len(widths):
            raise ValueError(f"num_level {num_level} is less than the {len(widths)} features before the neck")
        if downsample not in ("pool", "conv"):
            raise ValueError(f"downsample is pool or conv, not `{downsample}`")
        if upsample not in ("nearest", "bilinear"):
            raise ValueError(f"upsample is nearest or bilinear, not `{upsample}`")
        self.outplanes, self.out_strides = outplanes, list(out_strides)
        self.upsample, self.downsample = upsample, downsample
        # Doubling and resizing to the finer map's size agree wherever doubling is possible.
        self.align_corners = align_corners if upsample == "bilinear" else None
        self.relu_between = relu_between_extras
        self.from_output = downsample == "pool" or use_p5
        levels = range(start_level, start_level + num_level)
        self.merged = [(f"c{level}_lateral", f"p{level}_conv") for level in levels[: len(widths)]]
        self.extra = [f"p{level}_{downsample}" for level in levels[len(widths) :]]
        for width, (lateral, output) in zip(widths, self.merged, strict=True):
            self.add_module(lateral, _conv(width, outplanes, 1, normalize))
            self.add_module(output, _conv(outplanes, outplanes, 3, normalize))
        for name in self.extra:
            layer = (
                nn.MaxPool2d(1, 2)
                if downsample == "pool"
                else nn.Conv2d(outplanes, outplanes, 3, stride=2, padding=1)
            )
            self.add_module(name, layer)
        initialize(self, initializer or {"method": "normal", "std": 0.01})

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        laterals: list[Tensor] = [
            self.get_submodule(lateral)(feature)
            for (lateral, _), feature in zip(self.merged, outputs["features"], strict=True)
        ]
        for level in range(len(laterals) - 2, -1, -1):
            size = laterals[level].shape[-2:]
            coarser = F.interpolate(
                laterals[level + 1], size=size, mode=self.upsample, align_corners=self.align_corners
            )
            laterals[level] = laterals[level] + coarser
        features = [
            self.get_submodule(output)(x) for (_, output), x in zip(self.merged, laterals, strict=True)
        ]
        last = features[-1] if self.from_output else laterals[-1]
        for index, name in enumerate(self.extra):
            last = self.get_submodule(name)(last.relu() if index and self.relu_between else last)
            features.append(last)
        return {"features": features, "strides": list(self.out_strides or ())}


def _conv(width: int, outplanes: int, kernel: int, normalize: dict[str, Any] | None) -> nn.Module:
    conv = nn.Conv2d(width, outplanes, kernel, padding=kernel // 2, bias=normalize is None)
    if normalize is None:
        return conv
    norm = build_norm(outplanes, normalize)
    return nn.Sequential(OrderedDict([("conv", conv), (norm_name(normalize), norm)]))
