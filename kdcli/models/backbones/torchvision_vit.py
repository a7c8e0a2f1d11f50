"""Torchvision's vision transformers as backbones."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models
from torch import Tensor

from kdcli.errors import RunError
from kdcli.models.module import Outputs, ViewModule


class TorchvisionVit(ViewModule):
    """conv_proj and encoder, under torchvision's names.

    Reads `image` [B, 3, image_size, image_size]. Outputs `features`: one map [B, D, 1, 1], the class
    token after the encoder's norm, so that base_cls_head makes torchvision's own logits; and
    `tokens` [B, 1 + N, D]. weights: torchvision's, by name; random without.
    """

    def __init__(self, *, name: str, image_size: int = 224, weights: str | None = None) -> None:
        super().__init__()
        model = torchvision.models.get_model(name, weights=weights, image_size=image_size)
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token
        self.encoder = model.encoder
        self._size = image_size
        self.outplanes = [model.hidden_dim]
        self.out_strides = [model.patch_size]

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        image: Tensor = outputs["image"]
        if tuple(image.shape[2:]) != (self._size, self._size):
            height, width = image.shape[2:]
            raise RunError.of(
                "KD416",
                f"the images are {height} by {width} pixels, but the model's image_size is {self._size}",
                "set `image_size`, or resize the images",
            )
        patches = self.conv_proj(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), patches], 1)
        tokens = self.encoder(tokens)
        return {"features": [tokens[:, 0, :, None, None]], "tokens": tokens, "strides": self.out_strides}
