"""torchvision's weights in our modules give torchvision's features, logits, deltas and boxes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn

from kdcli.models.network import Network
from tests.models.detection.nets import batch, build, faster_rcnn, retinanet

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


def with_random_statistics(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.05, generator=generator)
    return model.eval()


def loaded(net: Network, model: torch.nn.Module) -> Network:
    state = rename_torchvision_detection(model.state_dict())
    found = net.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    return net.eval()


def match_eps(net: Network, model: Any) -> None:
    eps = model.backbone.body.bn1.eps
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = eps


@torch.no_grad()
def test_faster_rcnn_features_and_proposal_maps_agree() -> None:
    torch.manual_seed(0)
    model: Any = with_random_statistics(
        fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    )
    modules = faster_rcnn(4, 256, 50)
    modules[5] = modules[5].model_copy(update={"kwargs": {**modules[5].kwargs, "feat_planes": 1024}})
    net = loaded(build(modules, aligned=True), model)
    match_eps(net, model)
    image = batch()["image"]
    outputs = net(batch())
    theirs = list(model.backbone(image).values())
    for ours, feature in zip(outputs["features"], theirs, strict=True):
        torch.testing.assert_close(ours, feature, rtol=1e-5, atol=1e-5)
    logits, deltas = model.rpn.head(theirs)
    for (our_logits, our_deltas), their_logits, their_deltas in zip(
        outputs["rpn_preds"], logits, deltas, strict=True
    ):
        torch.testing.assert_close(our_logits, their_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(our_deltas, their_deltas, rtol=1e-5, atol=1e-5)
    pooled = outputs["pooled_feats"]
    their_logits, their_deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    torch.testing.assert_close(outputs["bbox_preds"][0], their_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs["bbox_preds"][1], their_deltas, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_retinanet_maps_agree_but_for_the_background_column() -> None:
    torch.manual_seed(0)
    model: Any = with_random_statistics(
        retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    )
    modules = retinanet(4, 256, 50)
    kwargs = {**modules[1].kwargs, "use_p5": True, "relu_between_extras": True}
    modules[1] = modules[1].model_copy(update={"kwargs": kwargs})
    net = loaded(build(modules, aligned=True), model)
    match_eps(net, model)
    image = batch()["image"]
    outputs = net(batch())
    theirs = list(model.backbone(image).values())
    for ours, feature in zip(outputs["features"], theirs, strict=True):
        torch.testing.assert_close(ours, feature, rtol=1e-5, atol=1e-4)
    head = model.head(theirs)
    scores = torch.cat([net.post_process._rows(p[0], 3) for p in outputs["preds"]], 1)
    deltas = torch.cat([net.post_process._rows(p[1], 4) for p in outputs["preds"]], 1)
    torch.testing.assert_close(scores, head["cls_logits"][..., 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, head["bbox_regression"], rtol=1e-4, atol=1e-4)


def test_unknown_names_stay() -> None:
    assert list(rename_torchvision_detection({"other.weight": torch.zeros(1)})) == ["other.weight"]
