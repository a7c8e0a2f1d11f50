"""torchvision's classifiers as backbones: convolutional ones of five strides, vision transformers."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Count, CountOrNone, Factor, Side

STRIDES = [2, 4, 8, 16, 32]


class TorchvisionStages(ViewModule):
    """MobileNetV2, EfficientNet, RegNet: everything before the pooling, under torchvision's names.

    Outputs `features`: of each level in out_layers (0 to 4: strides 2, 4, 8, 16, 32) the last map
    [B, C, H / stride, W / stride], and `strides`. Reads `image` [B, 3, H, W]. out_strides may repeat
    the strides, as in other backbones. width_mult: MobileNetV2's factor on its channels. weights:
    torchvision's, by name; random without.
    """

    def __init__(
        self,
        *,
        name: str,
        out_layers: list[CountOrNone] | None = None,
        out_strides: list[Count] | None = None,
        width_mult: Factor | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.out_layers = out_layers if out_layers is not None else [4]
        if not self.out_layers or not set(self.out_layers) <= set(range(5)):
            raise ValueError("out_layers are numbers from 0 to 4, at least one")
        self.out_strides = [STRIDES[index] for index in self.out_layers]
        if out_strides not in (None, self.out_strides):
            raise ValueError(
                f"out_layers {self.out_layers} have the strides {self.out_strides}, not {out_strides}"
            )
        extra = {} if width_mult is None else {"width_mult": width_mult}
        model = torchvision.models.get_model(name, weights=weights, **extra)
        self._stages: list[str]
        if hasattr(model, "trunk_output"):
            self.stem, self.trunk_output = model.stem, model.trunk_output
            self._stages = [
                "stem",
                *(f"trunk_output.{child}" for child, _ in self.trunk_output.named_children()),
            ]
        else:
            self.features = model.features
            self._stages = [f"features.{child}" for child, _ in self.features.named_children()]
        self._levels, widths = self._measure()
        self.outplanes = [widths[index] for index in self.out_layers]

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `image`."""
        maps = self._maps(outputs["image"])
        return {
            "features": [maps[self._levels[index]] for index in self.out_layers],
            "strides": self.out_strides,
        }

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for path in self._stages:
            x = self.get_submodule(path)(x)
            maps.append(x)
        return maps

    def _measure(self) -> tuple[list[int], list[int]]:
        """For each stride the last stage that has it, and its channels; run without data."""
        size = 64
        was = self.training
        self.eval()
        state = {key: torch.empty_like(value, device="meta") for key, value in self.state_dict().items()}
        image = torch.empty(1, 3, size, size, device="meta")
        maps = torch.func.functional_call(
            _Maps(self), {f"backbone.{k}": v for k, v in state.items()}, (image,)
        )
        self.train(was)
        levels = [max(i for i, m in enumerate(maps) if m.shape[2] == size // stride) for stride in STRIDES]
        return levels, [maps[level].shape[1] for level in levels]


class _Maps(nn.Module):
    """All stages' maps, as a module that functional_call can run."""

    def __init__(self, backbone: TorchvisionStages) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.backbone._maps(image)


class TorchvisionVit(ViewModule):
    """conv_proj and encoder, under torchvision's names.

    Reads `image` [B, 3, image_size, image_size]. Outputs `features`: one map [B, D, 1, 1], the class
    token after the encoder's norm, so that base_cls_head makes torchvision's own logits; and
    `tokens` [B, 1 + N, D]. weights: torchvision's, by name; random without.
    """

    def __init__(self, *, name: str, image_size: Side = 224, weights: str | None = None) -> None:
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
