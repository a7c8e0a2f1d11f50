"""Dense heads: class logits and box deltas at every position of every level."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdcli.models.backbones.resnet import last_layer, last_width
from kdcli.models.detection.blocks import PoolSize, known_keys, needed, one_width
from kdcli.models.layers import build_norm, initialize
from kdcli.models.module import Outputs, ViewModule
from kdcli.spec.check.components import refuse_misfits
from kdcli.spec.ranges import Count, CountOrNone, Prior, Width

NORMAL = {"method": "normal", "std": 0.01}


class DenseHead(ViewModule):
    """Runs on the first num_level of `features`.

    Output `preds`: per level (logits [B, A·C, H, W], deltas [B, A·4·L, H, W]), float32; anchors outermost.
    A head with an IoU branch adds its logits [B, A, H, W].
    """

    num_level: int

    def level(self, feature: Tensor, level: int) -> tuple[Tensor, ...]:
        """Logits, deltas and, with an IoU branch, its logits, of the map of this level."""
        raise NotImplementedError(type(self).__name__)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        features = outputs["features"]
        if len(features) < self.num_level:
            raise ValueError(f"num_level is {self.num_level}, and there are {len(features)} features")
        preds = [self.level(features[level], level) for level in range(self.num_level)]
        return {"preds": [tuple(maps.float() for maps in level) for level in preds]}


class NaiveRPN(DenseHead):
    """Object or not, and where: one 3×3 convolution shared by all levels, two 1×1 on it.

    Outputs `preds` and the same as `rpn_preds`. num_classes is 2; class_activation sigmoid has one logit
    an anchor, softmax two.
    Source: "Faster R-CNN", arXiv:1506.01497.
    """

    def __init__(
        self,
        inplanes: int | list[int],
        *,
        feat_planes: Width,
        num_classes: Width,
        num_anchors: Count,
        class_activation: Literal["sigmoid", "softmax"],
        num_level: Count = 5,
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes != 2:
            raise ValueError(f"num_classes of an RPN is 2, not {num_classes}")
        if class_activation not in ("sigmoid", "softmax"):
            raise ValueError(f"class_activation is sigmoid or softmax, not `{class_activation}`")
        self.num_level = num_level
        channels = 1 if class_activation == "sigmoid" else 2
        self.conv3x3 = nn.Conv2d(one_width(inplanes), feat_planes, 3, padding=1)
        self.relu3x3 = nn.ReLU(inplace=True)
        self.conv_cls = nn.Conv2d(feat_planes, num_anchors * channels, 1)
        self.conv_loc = nn.Conv2d(feat_planes, num_anchors * 4, 1)
        initialize(self, initializer or NORMAL)

    def level(self, feature: Tensor, level: int) -> tuple[Tensor, ...]:
        """Logits and deltas of one map."""
        hidden = self.relu3x3(self.conv3x3(feature))
        return self.conv_cls(hidden), self.conv_loc(hidden)

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `features`."""
        preds = super().forward(outputs)["preds"]
        return {"preds": preds, "rpn_preds": preds}


class RetinaSubNet(DenseHead):
    """Classes and boxes by two stacks of 3×3 convolutions, shared by all levels, norms included.

    num_classes counts the background, which sigmoid leaves out. init_prior: the foreground's score at
    the start. num_anchors: 9 where not given. share_subnet: one stack for both. share_location false: deltas
    of each class.
    Source: "Focal Loss for Dense Object Detection", arXiv:1708.02002.
    """

    norms_by_level: ClassVar[bool] = False
    with_iou: ClassVar[bool] = False
    anchors: ClassVar[int] = 9

    def __init__(
        self,
        inplanes: int | list[int],
        *,
        feat_planes: Width,
        num_classes: Width,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
        num_conv: CountOrNone = 4,
        class_activation: Literal["sigmoid", "softmax"] = "sigmoid",
        init_prior: Prior = 0.01,
        num_anchors: Count | None = None,
        num_level: Count = 5,
        share_subnet: bool = False,
        share_location: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: at least 2, not {num_classes}")
        if class_activation not in ("sigmoid", "softmax"):
            raise ValueError(f"class_activation is sigmoid or softmax, not `{class_activation}`")
        self.num_level, self.share_subnet = num_level, share_subnet
        width = one_width(inplanes)
        channels = num_classes - 1 if class_activation == "sigmoid" else num_classes
        self.cls_subnet = self._subnet(num_conv, width, feat_planes, normalize)
        if not share_subnet:
            self.box_subnet = self._subnet(num_conv, width, feat_planes, normalize)
        num_anchors = num_anchors or self.anchors
        boxes = 1 if share_location else channels
        self.cls_subnet_pred = nn.Conv2d(feat_planes, num_anchors * channels, 3, padding=1)
        self.box_subnet_pred = nn.Conv2d(feat_planes, num_anchors * 4 * boxes, 3, padding=1)
        if self.with_iou:
            self.iou_pred = nn.Conv2d(feat_planes, num_anchors, 3, padding=1)
        initialize(self, initializer or NORMAL)
        prior_bias(self.cls_subnet_pred, class_activation, init_prior, num_classes)

    def _subnet(
        self, count: int, width: int, planes: int, normalize: dict[str, Any] | None
    ) -> nn.Sequential | nn.ModuleList:
        if self.norms_by_level:
            return _stacks(self.num_level, count, width, planes, normalize or {"type": "solo_bn"})
        return _stack(count, width, planes, normalize)

    def level(self, feature: Tensor, level: int) -> tuple[Tensor, ...]:
        """Logits, deltas and, with an IoU branch, its logits, of one map."""
        hidden = self._hidden(self.cls_subnet, feature, level)
        boxes = hidden if self.share_subnet else self._hidden(self.box_subnet, feature, level)
        answers = self.cls_subnet_pred(hidden), self.box_subnet_pred(boxes)
        return (*answers, self.iou_pred(boxes)) if self.with_iou else answers

    def _hidden(self, subnet: nn.Module, feature: Tensor, level: int) -> Tensor:
        hidden: Tensor = (subnet[level] if isinstance(subnet, nn.ModuleList) else subnet)(feature)
        return hidden


class RetinaHeadWithBN(RetinaSubNet):
    """RetinaSubNet whose levels share the convolutions and have norms of their own; normalize: solo_bn by default.

    A shared convolution has a name for each level (`cls_subnet.0.0.0`, `cls_subnet.1.0.0`, ...).
    """

    norms_by_level = True


class RetinaHeadWithIOU(RetinaSubNet):
    """RetinaSubNet with an IoU branch: the overlap of each box with its object, as a logit, for `retina_post_iou`.

    num_anchors: 1 where not given.
    Source: "Bridging the Gap Between Anchor-based and Anchor-free Detection", arXiv:1912.02424.
    """

    with_iou = True
    anchors = 1


class RetinaHeadWithBNIOU(RetinaHeadWithBN):
    """RetinaHeadWithBN with an IoU branch, for `retina_post_iou`."""

    with_iou = True


def prior_bias(layer: nn.Conv2d | nn.Linear, activation: str, prior: float, num_classes: int) -> None:
    """Set the bias so that every foreground class starts at (sigmoid) or all of them at (softmax) `prior`."""
    assert layer.bias is not None
    if not 0 < prior < 1:
        raise ValueError(f"init_prior lies between 0 and 1, not {prior}")
    if activation == "sigmoid":
        nn.init.constant_(layer.bias, -math.log(1.0 / prior - 1.0))
        return
    nn.init.normal_(layer.bias, 0.0, 0.01)
    per_anchor = layer.bias.data.view(-1, num_classes)
    per_anchor[:, 0] = per_anchor[:, 1:].exp().sum(1).log() + math.log((1.0 - prior) / prior)


def _stack(count: int, width: int, planes: int, normalize: dict[str, Any] | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        before = width if index == 0 else planes
        layers.append(nn.Conv2d(before, planes, 3, padding=1, bias=normalize is None))
        if normalize is not None:
            layers.append(build_norm(planes, normalize))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _stacks(levels: int, count: int, width: int, planes: int, normalize: dict[str, Any]) -> nn.ModuleList:
    """For each level the same convolutions with norms of its own."""
    convs = [
        nn.Conv2d(width if index == 0 else planes, planes, 3, padding=1, bias=False) for index in range(count)
    ]
    return nn.ModuleList(
        nn.Sequential(
            *(nn.Sequential(conv, build_norm(planes, normalize), nn.ReLU(inplace=True)) for conv in convs)
        )
        for _ in range(levels)
    )


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
        feat_planes: Width,
        num_classes: Width,
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
        pooling = needed(cfg, "cfg", "roipooling")
        refuse_misfits(cfg, {"init_prior": Prior}, "cfg")
        refuse_misfits(pooling, {"pool_size": PoolSize}, "cfg.roipooling")
        pool_size = int(needed(pooling, "cfg.roipooling", "pool_size"))
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


class BboxRes5(ViewModule):
    """A ResNet's last layer as the head: layer4 over each pooled RoI, its mean, then classes and boxes.

    Reads `pooled_feats` [R, C, p, p]; output `bbox_preds` as BboxFC has it. backbone: resnet18 to resnet152,
    whose layer4 it is; layer4 strides so that p becomes 7. cfg: class_activation, roipooling (its pool_size),
    share_location.
    Source: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """

    def __init__(
        self,
        inplanes: int | list[int],
        *,
        backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
        num_classes: Width,
        cfg: dict[str, Any],
        deformable: Literal[False] = False,
        normalize: dict[str, Any] | None = None,
        initializer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        known_keys(cfg, "cfg", ("class_activation", "roipooling", "share_location"))
        activation = cfg.get("class_activation", "softmax")
        if activation not in ("sigmoid", "softmax"):
            raise ValueError(f"cfg.class_activation is sigmoid or softmax, not `{activation}`")
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: at least 2, not {num_classes}")
        if deformable:
            raise ValueError("`deformable` is false")
        pooling = needed(cfg, "cfg", "roipooling")
        refuse_misfits(pooling, {"pool_size": PoolSize}, "cfg.roipooling")
        pool_size = int(needed(pooling, "cfg.roipooling", "pool_size"))
        if pool_size % SMALLEST_POOL:
            raise ValueError(f"cfg.roipooling.pool_size is a multiple of {SMALLEST_POOL}, not {pool_size}")
        self.num_classes = num_classes
        self.layer4 = last_layer(
            backbone, one_width(inplanes), pool_size // SMALLEST_POOL, normalize or {"type": "freeze_bn"}
        )
        self.avgpool = nn.AvgPool2d(SMALLEST_POOL, stride=1)
        planes = last_width(backbone)
        classes = num_classes if activation == "softmax" else num_classes - 1
        self.fc_cls = nn.Linear(planes, classes)
        self.fc_loc = nn.Linear(planes, 4 if cfg.get("share_location", False) else 4 * classes)
        initialize(self, initializer or NORMAL)
        initialize(self.fc_cls, {"method": "normal", "std": 0.01})
        initialize(self.fc_loc, {"method": "normal", "std": 0.001})

    def forward(self, outputs: Outputs) -> dict[str, Any]:
        """Reads `pooled_feats`."""
        hidden = self.avgpool(self.layer4(outputs["pooled_feats"])).flatten(1)
        return {"bbox_preds": [self.fc_cls(hidden).float(), self.fc_loc(hidden).float()]}


SMALLEST_POOL = 7
