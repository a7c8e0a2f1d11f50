"""The classification head: pooling and a linear classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.ranges import Share


class ClsHead(ViewModule):
    """Logits from one of the features.

    Reads `features[input_feature_idx]`: maps [B, C, H, W] (averaged over H and W with use_pool) or
    vectors [B, C]. Output `logits` [B, num_classes], or a list of them for a list of num_classes.
    in_plane: C; by default what the module before gives. dropout: rate before the classifier.
    """

    def __init__(
        self,
        inplanes: int | list[int] | None = None,
        *,
        num_classes: int | list[int],
        in_plane: int | None = None,
        input_feature_idx: int = -1,
        use_pool: bool = True,
        dropout: Share | None = None,
    ) -> None:
        super().__init__()
        found = inplanes[input_feature_idx] if isinstance(inplanes, list) else inplanes
        if in_plane is None and found is None:
            raise ValueError("in_plane is not given, and no module before says its width")
        if in_plane is not None and found is not None and in_plane != found:
            raise ValueError(f"in_plane is {in_plane}, but the module before gives {found} channels")
        width = in_plane if in_plane is not None else found
        assert width is not None
        self.num_classes = num_classes
        self.input_feature_idx = input_feature_idx
        self.pool = nn.AdaptiveAvgPool2d(1) if use_pool else None
        self.drop = nn.Dropout(dropout) if dropout is not None else None
        self.classifier: nn.Linear | nn.ModuleList
        if isinstance(num_classes, list):
            self.classifier = nn.ModuleList(_linear(width, count) for count in num_classes)
        else:
            self.classifier = _linear(width, num_classes)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        x: Tensor = outputs["features"][self.input_feature_idx]
        if self.pool is not None:
            x = self.pool(x).flatten(1)
        if self.drop is not None:
            x = self.drop(x)
        if isinstance(self.classifier, nn.ModuleList):
            return {"logits": [layer(x) for layer in self.classifier]}
        return {"logits": self.classifier(x)}


def _linear(width: int, classes: int) -> nn.Linear:
    layer = nn.Linear(width, classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
