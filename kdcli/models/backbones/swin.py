"""Swin Transformer with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.feature_layouts import FeatureLayout
from kdcli.models.layers import DropPath, drop_rates, no_download
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, Positive, Range, ShareBelowOne, Side, Width

OTHER_REGION = -100.0
"""What is added to the attention between patches that only the cyclic shift made neighbours."""


class Mlp(nn.Module):
    """Two linear layers with GELU between them, dropout after each."""

    def __init__(self, width: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape [..., width]."""
        out: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return out


def windows_of(x: Tensor, size: int) -> Tensor:
    """[B, H, W, C], H and W multiples of size, to [B · windows, size², C], windows row by row."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def joined(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """The map [B, height, width, C] of which windows_of made these windows."""
    x = windows.reshape(-1, height // size, width // size, size, size, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def shift_mask(height: int, width: int, size: int, shift: int, like: Tensor) -> Tensor:
    """[windows, size², size²]: 0 where two patches were neighbours before the cyclic shift, else OTHER_REGION."""

    def regions(length: int) -> Tensor:
        place = torch.arange(length, device=like.device)
        return (place >= length - size).long() + (place >= length - shift).long()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = windows_of(region[None, :, :, None], size)[:, :, 0]
    other = region[:, :, None] != region[:, None, :]
    return torch.zeros(other.shape, dtype=like.dtype, device=like.device).masked_fill(other, OTHER_REGION)


def relative_positions(size: int) -> Tensor:
    """[size², size²]: for each two patches of a window the row of the table that holds the bias of their distance.

    The row is (dy + size − 1) · (2 size − 1) + dx + size − 1.
    """
    place = torch.arange(size)
    y, x = place.repeat_interleave(size), place.repeat(size)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + size - 1) * (2 * size - 1) + dx + size - 1


class WindowAttention(nn.Module):
    """Attention inside windows, with a trained bias for each distance of two patches."""

    relative_position_index: Tensor

    def __init__(
        self,
        width: int,
        window: int,
        heads: int,
        qkv_bias: bool,
        scale: float | None,
        attn_drop: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale or (width // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B · windows, N, C], same shape; mask [windows, N, N] is added to the attention."""
        count, places, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(count, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        attention = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        attention = attention + bias.reshape(places, places, self.heads).permute(2, 0, 1)
        if mask is not None:
            windows = mask.shape[0]
            attention = attention.reshape(-1, windows, self.heads, places, places) + mask[:, None].to(
                attention.dtype
            )
            attention = attention.reshape(-1, self.heads, places, places)
        attention = self.attn_drop(attention.softmax(-1))
        out: Tensor = self.proj_drop(self.proj((attention @ v).transpose(1, 2).reshape(count, places, width)))
        return out


class Block(nn.Module):
    """Attention in windows, shifted or not, and an MLP, each behind a norm and with a shortcut."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads, qkv_bias, scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), drop)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, height · width, C], same shape."""
        x = x + self.drop_path(self._attended(self.norm1(x), height, width))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attended(self, x: Tensor, height: int, width: int) -> Tensor:
        size = self.window
        places, channels = height * width, x.shape[-1]
        # A map no larger than one window has no neighbours to shift in.
        shift = self.shift if min(height, width) > size else 0
        x = x.reshape(-1, height, width, channels)
        right, below = -width % size, -height % size
        if right or below:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        tall, wide = height + below, width + right
        mask = None
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
            mask = shift_mask(tall, wide, size, shift, x)
        x = joined(self.attn(windows_of(x, size), mask), size, tall, wide)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width].reshape(-1, places, channels)


class PatchMerging(nn.Module):
    """Each 2×2 patches beside each other become one, twice as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, height · width, C] to [B, ⌈height / 2⌉ · ⌈width / 2⌉, 2 C]."""
        channels = x.shape[-1]
        x = x.reshape(-1, height, width, channels)
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        places = x.shape[1] * x.shape[2] // 4
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        out: Tensor = self.reduction(self.norm(x.reshape(-1, places, 4 * channels)))
        return out


class Stage(nn.Module):
    """Blocks of one size, `downsample` behind them except in the last stage."""

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """[B, height · width, C]: the same after the blocks, and what the next stage reads."""
        for block in self.blocks:
            x = block(x, height, width)
        return x, x if self.downsample is None else self.downsample(x, height, width)


class PatchEmbed(nn.Module):
    """A convolution that reads each patch once, and a norm."""

    def __init__(self, patch: int, channels: int, width: int, normed: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch)
        self.norm = nn.LayerNorm(width) if normed else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, width, ⌈H / patch⌉, ⌈W / patch⌉]."""
        right, below = -x.shape[3] % self.patch, -x.shape[2] % self.patch
        if right or below:
            x = F.pad(x, (0, right, 0, below))
        x = self.proj(x)
        return x if self.norm is None else self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Swin(ViewModule):
    """patch_embed, and stages `layers`; a norm (norm0 ...) for each output.

    Outputs `features`: maps [B, C, H / stride, W / stride] of the stages in out_indices (0 to 3), and `strides`:
    patch_size, twice that, and so on. Inside, layers give tokens [B, H · W, C] without a class token.
    pretrain_img_size: of it a window is made smaller where a stage is; other images may come, and are padded to whole
    windows. ape: a trained embedding of positions, resized to the images. drop_path_rate: of the last block, rising
    linearly from 0. frozen_stages: 0 freezes patch_embed, 1 the embedding of positions too, n from 2 on the first
    n − 1 stages too. out_stride: as many as out_indices or of all stages. All names (`swin_tiny` ...) have one and
    the same default size. pretrained: false.
    Reads `image` [B, in_chans, H, W].
    Source: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv:2103.14030.
    """

    feature_layout = FeatureLayout(prefix=0)
    """No token of its layers stands before the patches; how many there are shows their grid."""

    def __init__(
        self,
        *,
        pretrain_img_size: Side = 224,
        patch_size: Side = 4,
        in_chans: Width = 3,
        embed_dim: Width = 96,
        depths: list[Count] | None = None,
        num_heads: list[Count] | None = None,
        window_size: Side = 7,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        qk_scale: Positive | None = None,
        drop_rate: ShareBelowOne = 0.0,
        attn_drop_rate: ShareBelowOne = 0.0,
        drop_path_rate: ShareBelowOne = 0.2,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: list[CountOrNone] | None = None,
        frozen_stages: Annotated[int, Range(at_least=-1)] = -1,
        out_stride: list[Count] | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        no_download(pretrained)
        depths, num_heads = depths or [2, 2, 6, 2], num_heads or [3, 6, 12, 24]
        widths = [embed_dim * 2**index for index in range(len(depths))]
        _check_heads(widths, num_heads, depths)
        self.out_indices = out_indices if out_indices is not None else list(range(len(depths)))
        if not self.out_indices or not set(self.out_indices) <= set(range(len(depths))):
            raise ValueError(f"out_indices are numbers from 0 to {len(depths) - 1}, at least one")
        self.out_indices = sorted(set(self.out_indices))
        all_strides = [patch_size * 2**index for index in range(len(depths))]
        self.out_strides = [all_strides[index] for index in self.out_indices]
        if out_stride not in (None, self.out_strides, all_strides):
            raise ValueError(
                f"out_indices {self.out_indices} have the strides {self.out_strides}, not {out_stride}"
            )
        self.outplanes = [widths[index] for index in self.out_indices]
        self.frozen_stages = frozen_stages
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_norm)
        grid = pretrain_img_size // patch_size
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, grid, grid))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        for index, (depth, width, heads) in enumerate(zip(depths, widths, num_heads, strict=True)):
            window = min(window_size, grid // 2**index)
            if window < 1 or (depth > 1 and window <= window_size // 2):
                raise ValueError(
                    f"pretrain_img_size {pretrain_img_size} leaves stage {index} a map of {grid // 2**index} by "
                    f"{grid // 2**index}: too small for a shift by half a window of {window_size}"
                )
            blocks = [
                Block(
                    width,
                    heads,
                    window,
                    window_size // 2 if number % 2 else 0,
                    mlp_ratio,
                    qkv_bias,
                    qk_scale,
                    drop_rate,
                    attn_drop_rate,
                    next(rates),
                )
                for number in range(depth)
            ]
            self.layers.append(Stage(blocks, PatchMerging(width) if index < len(depths) - 1 else None))
        for index in self.out_indices:
            self.add_module(f"norm{index}", nn.LayerNorm(widths[index]))
        self.train()

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        x = self.patch_embed(outputs["image"])
        height, width = x.shape[2:]
        if self.absolute_pos_embed is not None:
            x = x + F.interpolate(self.absolute_pos_embed, size=(height, width), mode="bicubic")
        x = self.pos_drop(x.flatten(2).transpose(1, 2))
        maps = []
        for index, layer in enumerate(self.layers):
            out, x = layer(x, height, width)
            if index in self.out_indices:
                normed = getattr(self, f"norm{index}")(out)
                maps.append(
                    normed.reshape(-1, height, width, normed.shape[-1]).permute(0, 3, 1, 2).contiguous()
                )
            height, width = (height + 1) // 2, (width + 1) // 2
        return {"features": maps, "strides": self.out_strides}

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen stages."""
        super().train(mode)
        if self.frozen_stages >= 0:
            self.patch_embed.eval().requires_grad_(False)
        if self.frozen_stages >= 1 and self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)
        if self.frozen_stages >= 2:
            self.pos_drop.eval()
            for layer in self.layers[: self.frozen_stages - 1]:
                layer.eval().requires_grad_(False)
        return self


def _check_heads(widths: list[int], heads: list[int], depths: list[int]) -> None:
    if len(heads) != len(depths):
        raise ValueError(
            f"num_heads has {len(heads)} numbers, depths {len(depths)}: one each for every stage"
        )
    for width, count in zip(widths, heads, strict=True):
        if width % count:
            raise ValueError(f"num_heads: {width} channels can't be shared by {count} heads")
