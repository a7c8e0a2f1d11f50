"""ConvNeXt with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcli.models.layers import ChannelLayerNorm, DropPath, drop_rates, no_download
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, NonNegative, ShareBelowOne, Width

SIZES: dict[str, tuple[list[int], list[int]]] = {
    "convnext_tiny": ([3, 3, 9, 3], [96, 192, 384, 768]),
    "convnext_small": ([3, 3, 27, 3], [96, 192, 384, 768]),
    "convnext_base": ([3, 3, 27, 3], [128, 256, 512, 1024]),
    "convnext_large": ([3, 3, 27, 3], [192, 384, 768, 1536]),
    "convnext_xlarge": ([3, 3, 27, 3], [256, 512, 1024, 2048]),
}
"""Of each name the blocks and the channels of the four stages."""

STRIDES = [4, 8, 16, 32]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "leaky_relu": nn.LeakyReLU,
}


class Block(nn.Module):
    """A 7×7 convolution of each channel, norm, two linear layers, scaled channels, and a shortcut around all."""

    def __init__(self, width: int, drop_path: float, scale: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = activation()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), scale)) if scale > 0 else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W]; the layers from `norm` to `pwconv2` see [B, H, W, C]."""
        branch = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        branch = self.pwconv2(self.act(self.pwconv1(branch)))
        if self.gamma is not None:
            branch = self.gamma * branch
        out: Tensor = x + self.drop_path(branch.permute(0, 3, 1, 2))
        return out


class ConvNeXt(ViewModule):
    """downsample_layers (the stem and three halvings) and stages, by turns.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the stages in out_layers (0 to 3: strides 4, 8, 16, 32),
    and `strides`. name: of SIZES, whose depths and dims may be replaced. drop_path_rate: of the last block, rising
    linearly from 0. layer_scale_init_value: the scale's first value, 0 for no scale. act_func: `gelu` by default.
    pretrained: false. Reads `image` [B, in_chans, H, W].
    Source: "A ConvNet for the 2020s", arXiv:2201.03545.
    """

    def __init__(
        self,
        *,
        name: str,
        in_chans: Width = 3,
        depths: list[Count] | None = None,
        dims: list[Width] | None = None,
        drop_path_rate: ShareBelowOne = 0.0,
        layer_scale_init_value: NonNegative = 1e-6,
        act_func: Literal["gelu", "relu", "selu", "leaky_relu"] | None = None,
        out_layers: list[CountOrNone] | None = None,
        out_strides: list[Count] | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        no_download(pretrained)
        depths, dims = depths or SIZES[name][0], dims or SIZES[name][1]
        if len(depths) != 4 or len(dims) != 4:
            raise ValueError(f"depths and dims are of four stages, not {depths} and {dims}")
        if act_func is not None and act_func not in ACTIVATIONS:
            raise ValueError(f"act_func is one of {', '.join(ACTIVATIONS)}, not `{act_func}`")
        self.out_layers = out_layers if out_layers is not None else [0, 1, 2, 3]
        if not self.out_layers or not set(self.out_layers) <= set(range(4)):
            raise ValueError("out_layers are numbers from 0 to 3, at least one")
        self.out_strides = [STRIDES[index] for index in self.out_layers]
        if out_strides not in (None, self.out_strides):
            raise ValueError(
                f"out_layers {self.out_layers} have the strides {self.out_strides}, not {out_strides}"
            )
        self.outplanes = [dims[index] for index in self.out_layers]
        activation = ACTIVATIONS[act_func or "gelu"]
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(in_chans, dims[0], 4, 4), ChannelLayerNorm(dims[0], eps=1e-6))]
        )
        for before, after in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(ChannelLayerNorm(before, eps=1e-6), nn.Conv2d(before, after, 2, 2))
            )
        rates = iter(drop_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(Block(dim, next(rates), layer_scale_init_value, activation) for _ in range(depth))
            )
            for depth, dim in zip(depths, dims, strict=True)
        )
        for layer in self.modules():
            # Only the convolutions, as in United-Perception; linear layers begin as torch has them.
            if isinstance(layer, nn.Conv2d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        x = outputs["image"]
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        return {"features": [maps[index] for index in self.out_layers], "strides": self.out_strides}
