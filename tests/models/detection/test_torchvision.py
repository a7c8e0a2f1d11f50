"""torchvision's weights in our modules give torchvision's features, logits, deltas and boxes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn

from kdcli.errors import RunError
from kdcli.models.network import Network, build_network
from kdcli.models.weights import check_weights, load_weights
from kdcli.spec.schema import ModuleSpec
from tests.models.detection.nets import batch, faster_rcnn, retinanet


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


def teacher(modules: Sequence[ModuleSpec]) -> Network:
    return build_network(modules, path=("teachers", "teacher0"), aligned=True)


def loaded(net: Network, model: torch.nn.Module, folder: Path) -> Network:
    """The network with torchvision's file loaded as any other is, in the form of torchvision's training script."""
    torch.save({"model": model.state_dict(), "epoch": 3, "args": Namespace(lr=0.02)}, folder / "model.pth")
    checked = check_weights(net, folder / "model.pth")
    (notice,) = load_weights(net, folder / "model.pth")
    assert checked == [notice]
    assert (
        "torchvision's names are read as United-Perception's: `backbone.body.*` as the backbone's" in notice
    )
    return net.eval()


def match_eps(net: Network, model: Any) -> None:
    eps = model.backbone.body.bn1.eps
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = eps


@pytest.mark.slow
@torch.no_grad()
def test_faster_rcnn_features_and_proposal_maps_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = with_random_statistics(
        fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    )
    modules = faster_rcnn(4, 256, 50)
    modules[5] = modules[5].model_copy(update={"kwargs": {**modules[5].kwargs, "feat_planes": 1024}})
    net = loaded(teacher(modules), model, tmp_path)
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


@pytest.mark.slow
@torch.no_grad()
def test_retinanet_maps_agree_but_for_the_background_column(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = with_random_statistics(
        retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    )
    modules = retinanet(4, 256, 50)
    kwargs = {**modules[1].kwargs, "use_p5": True, "relu_between_extras": True}
    modules[1] = modules[1].model_copy(update={"kwargs": kwargs})
    net = loaded(teacher(modules), model, tmp_path)
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


def test_a_cut_teacher_names_what_torchvision_calls_the_rest(tmp_path: Path) -> None:
    model: Any = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    cut = teacher([module for module in faster_rcnn(4, 256, 50) if module.name in ("backbone", "neck")])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    _, unused = load_weights(cut, tmp_path / "model.pth")
    assert unused == "14 tensors of `rpn`, `roi_heads` are not used: the teacher's list has no such module"
    assert torch.equal(cut.neck.p3_conv.weight, model.backbone.fpn.layer_blocks[1][0].weight)


@pytest.mark.parametrize(
    "kwargs, said",
    [
        ({"use_p5": False}, "say `use_p5: true` in"),
        ({"relu_between_extras": False}, "say `relu_between_extras: true` in"),
        ({"upsample": "bilinear"}, "say `upsample: nearest` in"),
    ],
)
def test_a_pyramid_that_computes_otherwise_is_refused(
    kwargs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    modules = [module for module in retinanet(4, 256, 50) if module.name in ("backbone", "neck")]
    like = {"use_p5": True, "relu_between_extras": True, "upsample": "nearest"}
    modules[1] = modules[1].model_copy(update={"kwargs": {**modules[1].kwargs, **like, **kwargs}})
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(RunError, match="KD549") as caught:
        check_weights(teacher(modules), tmp_path / "model.pth")
    assert said in str(caught.value.diagnostics[0].help)
