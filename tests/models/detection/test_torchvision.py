"""torchvision's weights in our modules give torchvision's features, logits, deltas and boxes."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn

from kdcli.models.detection.rename import rename_torchvision_detection
from kdcli.models.network import Network
from tests.models.detection.nets import batch, build, faster_rcnn, retinanet


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
