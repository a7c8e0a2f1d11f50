"""Classification heads of one family of backbones each: ConvNeXt's and the vision transformers'."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.models.heads import ClsHead, build_classifier, one_tensor
from kdcli.models.module import Outputs
from kdcli.spec.ranges import Factor, Share, Width


class ConvNeXtHead(ClsHead):
    """Logits from one of the features: pooled, normed, linear.

    Reads `features[input_feature_idx]`, maps [B, C, H, W] (with use_pool) or vectors [B, C]. Output `logits`
    [B, num_classes], or a list of them. head_init_scale: factor on the classifier's first weights and biases.
    Others as in ClsHead.
    """

    def __init__(
        self,
        inplanes: int | list[int] | None = None,
        *,
        num_classes: Width | list[Width],
        in_plane: Width | None = None,
        input_feature_idx: int = -1,
        head_init_scale: Factor = 1.0,
        use_pool: bool = True,
        dropout: Share | None = None,
    ) -> None:
        super().__init__(
            inplanes,
            num_classes=num_classes,
            in_plane=in_plane,
            input_feature_idx=input_feature_idx,
            use_pool=use_pool,
            dropout=dropout,
        )
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                parameter.mul_(head_init_scale)
        self.layer_norm = nn.LayerNorm(self.width, eps=1e-6)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        x = one_tensor(outputs["features"][self.input_feature_idx])
        if self.pool is not None:
            x = self.pool(x).flatten(1)
        x = self.layer_norm(x)
        if self.drop is not None:
            x = self.drop(x)
        return {"logits": self.logits(x)}


class ViTHead(ClsHead):
    """Logits from the class token, or from the mean of the patches.

    Reads `features[input_feature_idx]`: the pair of a map [B, D, H, W] and the class token [B, D], or the map alone.
    Output `logits` [B, num_classes], or a list of them. cls_type: `token`, anything else is the mean. bn: whether a
    BatchNorm without weights comes first. representation_size: width of a linear layer with tanh before the classifier.
    """

    def __init__(
        self,
        inplanes: int | list[int] | None = None,
        *,
        num_classes: Width | list[Width],
        in_plane: Width | None = None,
        input_feature_idx: int = -1,
        cls_type: Literal["token", "avg_pool"] = "token",
        representation_size: Width | None = None,
        bn: bool | None = None,
    ) -> None:
        super().__init__(
            inplanes,
            num_classes=num_classes,
            in_plane=in_plane,
            input_feature_idx=input_feature_idx,
            use_pool=False,
        )
        if cls_type not in ("token", "avg_pool"):
            raise ValueError(f"cls_type is token or avg_pool, not `{cls_type}`")
        self.cls_type = cls_type
        self.bn = nn.BatchNorm1d(self.width, eps=1e-6, affine=False) if bn else None
        self.pre_logits: nn.Linear | None = None
        if representation_size is not None:
            self.pre_logits = nn.Linear(self.width, representation_size)
            self.tanh = nn.Tanh()
            nn.init.trunc_normal_(self.pre_logits.weight, std=0.02)
            nn.init.zeros_(self.pre_logits.bias)
            self.classifier = build_classifier(representation_size, num_classes)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        feature: Tensor | list[Tensor] = outputs["features"][self.input_feature_idx]
        x = self._vector(feature)
        if self.bn is not None:
            x = self.bn(x)
        if self.pre_logits is not None:
            x = self.tanh(self.pre_logits(x))
        return {"logits": self.logits(x)}

    def _vector(self, feature: Tensor | list[Tensor]) -> Tensor:
        if self.cls_type != "token":
            patches = feature if isinstance(feature, Tensor) else feature[0]
            return patches.flatten(2).mean(-1)
        if isinstance(feature, Tensor):
            raise RunError.of(
                "KD577",
                "`vit_head` reads a class token, and the backbone gives none",
                "set `cls_type: avg_pool`, or `classifier: token` of the backbone",
            )
        return feature[1]
