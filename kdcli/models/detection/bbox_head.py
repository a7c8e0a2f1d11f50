"""The second stage's head: class and box of each pooled proposal by two hidden layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdcli.models.detection.blocks import known_keys, needed, one_width
from kdcli.models.detection.dense_heads import NORMAL, prior_bias
from kdcli.models.initializers import initialize
from kdcli.models.module import Outputs, ViewModule


class BboxFC(ViewModule):
    """Fully connected head.

    Reads `pooled_feats` [R, C, p, p]; output `bbox_preds`: [logits [R, K], deltas [R, 4·K]], float32.
    num_classes counts the background; K is num_classes, one less with class_activation sigmoid.
    share_location: one set of deltas, [R, 4]. cfg: class_activation, roipooling (its pool_size),
    share_location, init_prior.
    Source: "Feature Pyramid Networks for Object Detection", arXiv:1612.03144.
    """

    def __init__(
        self,
        inplanes: int | list[int],
        *,
        feat_planes: int,
        num_classes: int,
        cfg: dict[str, Any],
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        known_keys(cfg, "cfg", ("class_activation", "roipooling", "share_location", "init_prior"))
        activation = cfg.get("class_activation", "softmax")
        if activation not in ("sigmoid", "softmax"):
            raise ValueError(f"cfg.class_activation is sigmoid or softmax, not `{activation}`")
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: at least 2, not {num_classes}")
        pool_size = int(needed(needed(cfg, "cfg", "roipooling"), "cfg.roipooling", "pool_size"))
        self.num_classes = num_classes
        classes = num_classes if activation == "softmax" else num_classes - 1
        self.relu = nn.ReLU(inplace=True)
        self.fc6 = nn.Linear(pool_size * pool_size * one_width(inplanes), feat_planes)
        self.fc7 = nn.Linear(feat_planes, feat_planes)
        self.fc_rcnn_cls = nn.Linear(feat_planes, classes)
        self.fc_rcnn_loc = nn.Linear(feat_planes, 4 if cfg.get("share_location", False) else 4 * classes)
        initialize(self, initializer or NORMAL)
        initialize(self.fc_rcnn_cls, {"method": "normal", "std": 0.01})
        initialize(self.fc_rcnn_loc, {"method": "normal", "std": 0.001})
        if activation == "sigmoid":
            prior_bias(self.fc_rcnn_cls, activation, float(cfg.get("init_prior", 0.01)), num_classes)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `pooled_feats`."""
        hidden = self.relu(self.fc6(outputs["pooled_feats"].flatten(1)))
        hidden = self.relu(self.fc7(hidden))
        return {"bbox_preds": [self.fc_rcnn_cls(hidden).float(), self.fc_rcnn_loc(hidden).float()]}
