"""Vision Transformer (ViT, DeiT) with United-Perception's arguments, parameter names and outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.models.feature_layouts import FeatureLayout
from kdcli.models.layers import DropPath, no_download
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, Range, ShareBelowOne, Side, Width


class Size(NamedTuple):
    """What a name stands for: side of a patch, width of a token, blocks, width of the MLP, heads."""

    patch: int
    width: int
    depth: int
    mlp: int
    heads: int


SIZES = {
    "vit_base_patch32_224": Size(32, 768, 12, 3072, 12),
    "vit_base_patch16_224": Size(16, 768, 12, 3072, 12),
    "vit_large_patch16_224": Size(16, 1024, 24, 4096, 16),
    "vit_huge_patch14_224": Size(14, 1280, 32, 5120, 16),
    "deit_tiny_patch16_224": Size(16, 192, 12, 768, 3),
    "deit_small_patch16_224": Size(16, 384, 12, 1536, 6),
    "deit_base_patch16_224": Size(16, 768, 12, 3072, 12),
}


class Attention(nn.Module):
    """Attention of every token to every token."""

    def __init__(
        self, width: int, heads: int, dropout: float, attention_dropout: float, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.to_qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.to_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.attention_dropout = nn.Dropout(attention_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width], same shape."""
        batch, tokens, width = x.shape
        q, k, v = (
            self.to_qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        attention = self.attention_dropout(((q @ k.transpose(-2, -1)) * self.scale).softmax(-1))
        out: Tensor = self.dropout(self.to_out((attention @ v).transpose(1, 2).reshape(batch, tokens, width)))
        return out


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, dropout after each."""

    def __init__(self, width: int, hidden: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.mlp1 = nn.Linear(width, hidden)
        # United-Perception computes GELU by its tanh formula.
        self.act = nn.ReLU() if activation == "relu" else nn.GELU(approximate="tanh")
        self.mlp2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width], same shape."""
        out: Tensor = self.dropout(self.mlp2(self.dropout(self.act(self.mlp1(x)))))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and with a shortcut."""

    def __init__(
        self,
        width: int,
        mlp: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
        qkv_bias: bool,
        activation: str,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, attention_dropout, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, mlp, dropout, activation)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width], same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.feedforward(self.norm2(x)))
        return out


class VisionTransformer(ViewModule):
    """embedding, blocks `layers.encoder_0` ..., encoder_norm.

    Outputs `features`: for each block in out_indices (-1: the last) what `vit_head` reads, the pair of a map
    [B, D, H / patch, W / patch] and the class token [B, D], with classifier `gap` the map alone; and `strides`, the
    side of a patch. Inside, layers give tokens [B, 1 + H · W / patch², D], the class token first. last_norm: whether
    the last block's tokens go through encoder_norm. drop_path: the rate of every block. name: of SIZES, each of whose
    parts may be replaced. pretrained: false.
    Reads `image` [B, in_channel, image_size, image_size].
    Source: "An Image is Worth 16x16 Words", arXiv:2010.11929.
    """

    def __init__(
        self,
        *,
        name: str,
        image_size: Side = 224,
        patch_size: Side | None = None,
        hidden_dim: Width | None = None,
        depth: Count | None = None,
        mlp_dim: Width | None = None,
        in_channel: Width = 3,
        heads: Count | None = None,
        dropout: ShareBelowOne = 0.1,
        attention_dropout: ShareBelowOne = 0.1,
        classifier: Literal["token", "gap"] = "token",
        drop_path: ShareBelowOne = 0.1,
        activation: Literal["gelu", "relu"] = "gelu",
        qkv_bias: bool = True,
        out_indices: Annotated[int, Range(at_least=-1000)] | list[Annotated[int, Range(at_least=-1000)]] = -1,
        last_norm: bool = True,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        no_download(pretrained)
        usual = SIZES[name]
        size = Size(
            patch_size or usual.patch,
            hidden_dim or usual.width,
            depth or usual.depth,
            mlp_dim or usual.mlp,
            heads or usual.heads,
        )
        if image_size % size.patch:
            raise ValueError(f"image_size {image_size} is no multiple of patch_size {size.patch}")
        if size.width % size.heads:
            raise ValueError(f"heads: tokens of {size.width} can't be shared by {size.heads} heads")
        if classifier not in ("token", "gap") or activation not in ("gelu", "relu"):
            raise ValueError("classifier is token or gap, activation gelu or relu")
        given = [out_indices] if isinstance(out_indices, int) else out_indices
        self.out_indices = sorted({index % size.depth for index in given})
        if not given or any(not -size.depth <= index < size.depth for index in given):
            raise ValueError(f"out_indices are numbers from {-size.depth} to {size.depth - 1}, at least one")
        self.image_size, self.last_norm = image_size, last_norm
        self.num_prefix_tokens = 1 if classifier == "token" else 0
        self.outplanes = [size.width] * len(self.out_indices)
        self.out_strides = [size.patch] * len(self.out_indices)
        tokens = (image_size // size.patch) ** 2 + self.num_prefix_tokens
        self.embedding = nn.Conv2d(in_channel, size.width, size.patch, size.patch)
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, size.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width)) if classifier == "token" else None
        self.layers = nn.Sequential()
        for index in range(size.depth):
            block = Block(
                size.width, size.mlp, size.heads, dropout, attention_dropout, drop_path, qkv_bias, activation
            )
            self.layers.add_module(f"encoder_{index}", block)
        self.encoder_norm = nn.LayerNorm(size.width)
        self.dropout = nn.Dropout(dropout)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def feature_layout(self, image: tuple[int, int]) -> FeatureLayout:
        """What its layers give of an image of this height and width: the class token first, if any, then patches."""
        patch = self.embedding.stride[0]
        grid = (image[0] // patch, image[1] // patch)
        return FeatureLayout(prefix=self.num_prefix_tokens, class_token=self.cls_token is not None, grid=grid)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        image: Tensor = outputs["image"]
        if tuple(image.shape[2:]) != (self.image_size, self.image_size):
            height, width = image.shape[2:]
            raise RunError.of(
                "KD416",
                f"the images are {height} by {width} pixels, but the model's image_size is {self.image_size}",
                "set `image_size`, or resize the images",
            )
        patches = self.embedding(image)
        grid = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), x], 1)
        x = self.dropout(x + self.pos_embedding)
        features: list[Tensor | list[Tensor]] = []
        for index, block in enumerate(self.layers):
            x = block(x)
            if self.last_norm and index == len(self.layers) - 1:
                x = self.encoder_norm(x)
            if index in self.out_indices:
                patch_map = x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
                features.append([patch_map, x[:, 0]] if self.cls_token is not None else patch_map)
        return {"features": features, "strides": self.out_strides}
