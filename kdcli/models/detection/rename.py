"""torchvision's names for the weights of its detectors, turned into this project's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

ROWS: tuple[tuple[str, str], ...] = (
    (r"backbone\.body\.conv1\.(.*)", r"backbone.layer0.0.\1"),
    (r"backbone\.body\.bn1\.(.*)", r"backbone.layer0.1.\1"),
    (r"backbone\.body\.(layer\d.*)", r"backbone.\1"),
    (r"backbone\.fpn\.extra_blocks\.p(\d)\.(.*)", r"neck.p\1_conv.\2"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"roi_head.conv3x3.\1"),
    (r"rpn\.head\.cls_logits\.(.*)", r"roi_head.conv_cls.\1"),
    (r"rpn\.head\.bbox_pred\.(.*)", r"roi_head.conv_loc.\1"),
    (r"roi_heads\.box_head\.(fc[67]\..*)", r"bbox_head.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.*)", r"bbox_head.fc_rcnn_cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"bbox_head.fc_rcnn_loc.\1"),
    (r"head\.classification_head\.cls_logits\.(.*)", r"roi_head.cls_subnet_pred.\1"),
    (r"head\.regression_head\.bbox_reg\.(.*)", r"roi_head.box_subnet_pred.\1"),
)
LEVELS = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?\.(weight|bias)")
STACKS = re.compile(r"head\.(classification|regression)_head\.conv\.(\d)(?:\.0)?\.(weight|bias)")


def rename_torchvision_detection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's fasterrcnn_*_fpn or retinanet_* in our names.

    The modules are called backbone, neck, roi_head and bbox_head. RetinaNet's logits lose the background
    column, which torchvision keeps and never trains. A name that is not known stays as it is.
    """
    # torchvision's RetinaNet begins its pyramid at layer2, Faster R-CNN at layer1.
    start = 3 if "backbone.fpn.extra_blocks.p6.weight" in state else 2
    shared = "head.regression_head.bbox_reg.bias"
    anchors = state[shared].shape[0] // 4 if shared in state else 0
    renamed = {}
    for name, tensor in state.items():
        target = _target(name, start)
        if target.startswith("roi_head.cls_subnet_pred.") and anchors:
            tensor = tensor.reshape(anchors, -1, *tensor.shape[1:])[:, 1:].flatten(0, 1)
        renamed[target] = tensor
    return renamed


def _target(name: str, start: int) -> str:
    if level := LEVELS.fullmatch(name):
        number = start + int(level[2])
        layer = f"c{number}_lateral" if level[1] == "inner" else f"p{number}_conv"
        return f"neck.{layer}.{level[3]}"
    if stack := STACKS.fullmatch(name):
        subnet = "cls_subnet" if stack[1] == "classification" else "box_subnet"
        return f"roi_head.{subnet}.{2 * int(stack[2])}.{stack[3]}"
    for pattern, replacement in ROWS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
