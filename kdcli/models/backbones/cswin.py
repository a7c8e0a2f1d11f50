"""CSWin Transformer with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.backbones.swin import Mlp
from kdcli.models.feature_layouts import FeatureLayout
from kdcli.models.layers import DropPath, drop_rates, no_download
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, Positive, ShareBelowOne, Side, Width

STRIDES = [4, 8, 16, 32]


class Size(NamedTuple):
    """What a name stands for: side of the images, channels, blocks, stripes and heads of the four stages."""

    image: int
    width: int
    depth: list[int]
    split: list[int]
    heads: list[int]


SIZES = {
    "CSWin_64_12211_tiny_224": Size(224, 64, [1, 2, 21, 1], [1, 2, 7, 7], [2, 4, 8, 16]),
    "CSWin_64_24322_small_224": Size(224, 64, [2, 4, 32, 2], [1, 2, 7, 7], [2, 4, 8, 16]),
    "CSWin_96_24322_base_224": Size(224, 96, [2, 4, 32, 2], [1, 2, 7, 7], [4, 8, 16, 32]),
    "CSWin_144_24322_large_224": Size(224, 144, [2, 4, 32, 2], [1, 2, 7, 7], [6, 12, 24, 24]),
    "CSWin_96_24322_base_384": Size(384, 96, [2, 4, 32, 2], [1, 2, 12, 12], [4, 8, 16, 32]),
    "CSWin_144_24322_large_384": Size(384, 144, [2, 4, 32, 2], [1, 2, 12, 12], [6, 12, 24, 24]),
}


class StripeAttention(nn.Module):
    """Attention inside stripes, with a convolution of the values as embedding of positions.

    direction: `vertical` stripes as high as the map and `split` wide, `horizontal` ones, or the `whole` map.
    """

    def __init__(
        self, width: int, direction: str, split: int, heads: int, scale: float | None, drop: float
    ) -> None:
        super().__init__()
        self.direction, self.split, self.heads = direction, split, heads
        self.scale = scale or (width // heads) ** -0.5
        self.get_v = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.attn_drop = nn.Dropout(drop)

    def forward(self, qkv: Tensor, height: int, width: int) -> Tensor:
        """[3, B, height · width, C] to [B, height · width, C]."""
        tall = self.split if self.direction == "horizontal" else height
        wide = self.split if self.direction == "vertical" else width
        channels, places = qkv.shape[-1], tall * wide
        parts = qkv.reshape(3, -1, height // tall, tall, width // wide, wide, channels)
        # Stripes row by row, inside each the places row by row: [3, B · stripes, tall, wide, C].
        parts = parts.transpose(3, 4).reshape(3, -1, tall, wide, channels)
        values = parts[2].permute(0, 3, 1, 2)
        q, k, v = parts.reshape(3, -1, places, self.heads, channels // self.heads).transpose(2, 3)
        attention = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(-1))
        out = (attention @ v).transpose(1, 2).reshape(-1, places, channels)
        out = out + self.get_v(values).flatten(2).transpose(1, 2)
        out = out.reshape(-1, height // tall, width // wide, tall, wide, channels)
        joined: Tensor = out.transpose(2, 3).reshape(-1, height * width, channels)
        return joined


class Block(nn.Module):
    """Attention in stripes, one half of the channels in vertical and one in horizontal ones, and an MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        split: int,
        whole: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.split = split
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.norm1 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)
        directions = ["whole"] if whole else ["vertical", "horizontal"]
        share = len(directions)
        self.attns = nn.ModuleList(
            StripeAttention(width // share, direction, split, heads // share, scale, attn_drop)
            for direction in directions
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.mlp = Mlp(width, int(width * mlp_ratio), drop)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, height · width, C], same shape."""
        x = x + self.drop_path(self._attended(self.norm1(x), height, width))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attended(self, x: Tensor, height: int, width: int) -> Tensor:
        channels = x.shape[-1]
        right, below = -width % self.split, -height % self.split
        x = x.reshape(-1, height, width, channels)
        if right or below:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        tall, wide = height + below, width + right
        qkv = self.qkv(x.reshape(-1, tall * wide, channels))
        qkv = qkv.reshape(-1, tall * wide, 3, channels).permute(2, 0, 1, 3)
        parts = qkv.chunk(len(self.attns), -1)
        stripes = [attn(part, tall, wide) for attn, part in zip(self.attns, parts, strict=True)]
        out: Tensor = self.proj(torch.cat(stripes, -1))
        if right or below:
            out = out.reshape(-1, tall, wide, channels)[:, :height, :width]
            out = out.reshape(-1, height * width, channels)
        return out


class Merge(nn.Module):
    """A 3×3 convolution of stride 2 from one stage to the next, twice as wide, and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, height · width, C] to [B, ⌈height / 2⌉ · ⌈width / 2⌉, 2 C]."""
        x = x.transpose(1, 2).reshape(-1, x.shape[-1], height, width)
        out: Tensor = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        return out


class CSWin(ViewModule):
    """stage1_conv, stages stage1 to stage4 with merge1 to merge3 between them; a norm (norm0 ...) for each output.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the stages in out_indices (0 to 3: strides 4, 8, 16, 32),
    and `strides`. Inside, layers give tokens [B, H · W, C] without a class token; images need not be of the name's
    size, maps are padded to whole stripes. name: of SIZES, each of whose parts may be replaced: img_size, embed_dim,
    depth, split_size, num_heads. drop_path_rate: of the last block, rising linearly from 0. pretrained: false.
    Reads `image` [B, in_chans, H, W].
    Source: "CSWin Transformer", arXiv:2107.00652.
    """

    feature_layout = FeatureLayout(prefix=0)
    """No token of its layers stands before the patches; how many there are shows their grid."""

    def __init__(
        self,
        *,
        name: str,
        img_size: Side | None = None,
        in_chans: Width = 3,
        embed_dim: Width | None = None,
        depth: list[Count] | None = None,
        split_size: list[Count] | None = None,
        out_indices: list[CountOrNone] | None = None,
        num_heads: list[Count] | None = None,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        qk_scale: Positive | None = None,
        drop_rate: ShareBelowOne = 0.0,
        attn_drop_rate: ShareBelowOne = 0.0,
        drop_path_rate: ShareBelowOne = 0.0,
        out_strides: list[Count] | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        no_download(pretrained)
        usual = SIZES[name]
        size = Size(
            img_size or usual.image,
            embed_dim or usual.width,
            depth or usual.depth,
            split_size or usual.split,
            num_heads or usual.heads,
        )
        widths = _widths(size)
        self.out_indices = sorted(set(out_indices)) if out_indices is not None else [0, 1, 2, 3]
        if not self.out_indices or not set(self.out_indices) <= set(range(4)):
            raise ValueError("out_indices are numbers from 0 to 3, at least one")
        self.out_strides = [STRIDES[index] for index in self.out_indices]
        if out_strides not in (None, self.out_strides, STRIDES):
            raise ValueError(
                f"out_indices {self.out_indices} have the strides {self.out_strides}, not {out_strides}"
            )
        self.outplanes = [widths[index] for index in self.out_indices]
        self.stage1_conv = nn.Conv2d(in_chans, size.width, 7, 4, 2)
        self.stage1_norm = nn.LayerNorm(size.width)
        rates = iter(drop_rates(drop_path_rate, sum(size.depth)))
        for index, width in enumerate(widths):
            split = size.split[index]
            whole = index == 3 or size.image // STRIDES[index] == split
            blocks = [
                Block(
                    width,
                    size.heads[index],
                    split,
                    whole,
                    mlp_ratio,
                    qkv_bias,
                    qk_scale,
                    drop_rate,
                    attn_drop_rate,
                    next(rates),
                )
                for _ in range(size.depth[index])
            ]
            self.add_module(f"stage{index + 1}", nn.ModuleList(blocks))
            if index < 3:
                self.add_module(f"merge{index + 1}", Merge(width))
        for index in self.out_indices:
            self.add_module(f"norm{index}", nn.LayerNorm(widths[index]))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        x = self.stage1_conv(outputs["image"])
        height, width = x.shape[2:]
        x = self.stage1_norm(x.flatten(2).transpose(1, 2))
        maps = []
        for index in range(4):
            if index:
                x = self.get_submodule(f"merge{index}")(x, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
            for block in self.get_submodule(f"stage{index + 1}").children():
                x = block(x, height, width)
            if index in self.out_indices:
                normed = self.get_submodule(f"norm{index}")(x)
                maps.append(
                    normed.reshape(-1, height, width, normed.shape[-1]).permute(0, 3, 1, 2).contiguous()
                )
        return {"features": maps, "strides": self.out_strides}


def _widths(size: Size) -> list[int]:
    """The channels of the four stages; raises ValueError where the parts don't fit each other."""
    for title, numbers in (("depth", size.depth), ("split_size", size.split), ("num_heads", size.heads)):
        if len(numbers) != 4:
            raise ValueError(f"{title} has a number for each of the four stages, not {numbers}")
    widths = [size.width * 2**index for index in range(4)]
    for index, (width, heads) in enumerate(zip(widths, size.heads, strict=True)):
        if width % heads or (index < 3 and heads % 2):
            raise ValueError(
                f"num_heads: {width} channels can't be shared by {heads} heads, half of them in each direction"
            )
    return widths
