"""Parameters of the heads, by United-Perception's names, and what levels share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdcli.models import DETECTION, MODULES
from kdcli.models.detection.heads import BboxRes5, RetinaHeadWithBN
from kdcli.models.detection.roi_pool import first_of_images
from tests.models.detection.nets import batch, build, faster_rcnn, with_res5


def dense(name: str, **more: Any) -> nn.Module:
    """Two levels, one convolution, two anchors, two classes and the background."""
    kwargs = {"feat_planes": 4, "num_classes": 3, "num_conv": 1, "num_anchors": 2, "num_level": 2, **more}
    made: nn.Module = DETECTION[name].load()([8, 8], **kwargs)
    return made


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (4,) for part in parts}, f"{name}.num_batches_tracked": ()}


SUBNETS = {
    key: shape
    for subnet in ("cls_subnet", "box_subnet")
    for level in (0, 1)
    for key, shape in (
        (f"{subnet}.{level}.0.0.weight", (4, 8, 3, 3)),
        *norm(f"{subnet}.{level}.0.1").items(),
    )
}
ENDS = {
    "cls_subnet_pred.weight": (4, 4, 3, 3),
    "cls_subnet_pred.bias": (4,),
    "box_subnet_pred.weight": (8, 4, 3, 3),
    "box_subnet_pred.bias": (8,),
}
BRANCH = {"iou_pred.weight": (2, 4, 3, 3), "iou_pred.bias": (2,)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("RetinaHeadWithBN", {**SUBNETS, **ENDS}), ("RetinaHeadWithBNIOU", {**SUBNETS, **ENDS, **BRANCH})],
)
def test_names_of_heads_with_norms_by_level(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    assert list(shapes_of(dense(name)).items()) == list(expected.items())


def test_names_of_a_head_with_an_iou_branch() -> None:
    stacks = {
        "cls_subnet.0.weight": (4, 8, 3, 3),
        "cls_subnet.0.bias": (4,),
        "box_subnet.0.weight": (4, 8, 3, 3),
        "box_subnet.0.bias": (4,),
    }
    assert shapes_of(dense("RetinaHeadWithIOU")) == {**stacks, **ENDS, **BRANCH}
    assert dense("RetinaHeadWithIOU", num_anchors=1).iou_pred.out_channels == 1


def test_levels_share_convolutions_and_have_norms_of_their_own() -> None:
    head = dense("RetinaHeadWithBN")
    assert isinstance(head, RetinaHeadWithBN)
    first, second = (subnet[0] for subnet in head.cls_subnet)  # type: ignore[misc]
    assert first[0] is second[0] and first[1] is not second[1]
    with torch.no_grad():
        second[1].weight.zero_()
        second[1].bias.fill_(1.0)
    feature = torch.randn(1, 8, 4, 4)
    fine, coarse = head({"features": [feature, feature]})["preds"]
    ones = head.cls_subnet_pred(torch.ones(1, 4, 4, 4))
    torch.testing.assert_close(coarse[0], ones)
    assert not torch.allclose(fine[0], ones)


def test_names_of_a_last_layer_as_head() -> None:
    cfg = {"roipooling": {"pool_size": 14}}
    head = BboxRes5(1024, backbone="resnet50", num_classes=3, cfg=cfg)
    shapes = shapes_of(head)
    first = {
        "layer4.0.conv1.weight": (512, 1024, 1, 1),
        "layer4.0.conv2.weight": (512, 512, 3, 3),
        "layer4.0.conv3.weight": (2048, 512, 1, 1),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.2.conv1.weight": (512, 2048, 1, 1),
        "fc_cls.weight": (3, 2048),
        "fc_loc.weight": (12, 2048),
    }
    assert {key: shapes[key] for key in first} == first
    assert "layer4.3.conv1.weight" not in shapes and "layer4.1.downsample.0.weight" not in shapes
    logits, deltas = head({"pooled_feats": torch.randn(2, 1024, 14, 14)})["bbox_preds"]
    assert logits.shape == (2, 3) and deltas.shape == (2, 12)
    with pytest.raises(ValueError, match="multiple of 7"):
        BboxRes5(8, backbone="resnet18", num_classes=3, cfg={"roipooling": {"pool_size": 8}})


@pytest.mark.slow
def test_a_detector_without_a_pyramid() -> None:
    net = build(with_res5(faster_rcnn()))
    losses = [value for key, value in net(batch()).items() if key.endswith("_loss")]
    assert len(losses) == 4 and all(value.isfinite() for value in losses)
    torch.stack(losses).sum().backward()
    assert not [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        assert net.eval()(batch())["dt_bboxes"].shape[1] == 7


def test_xmnet() -> None:
    made = MODULES["xmnet"].load()(out_layers=[0, 2, 3, 4])
    assert made.outplanes == [24, 80, 128, 160] and made.out_strides == [2, 8, 16, 32]
    features = made.eval()({"image": torch.zeros(1, 3, 64, 64)})["features"]
    assert [tuple(f.shape[1:]) for f in features] == [(24, 32, 32), (80, 8, 8), (128, 4, 4), (160, 2, 2)]
    shapes = shapes_of(made)
    some = {
        "features.0.conv.weight": (32, 3, 3, 3),
        "features.0.bn.weight": (32,),
        "features.1.fc1.weight": (32, 32, 3, 3),
        "features.1.fc2.weight": (24, 32, 1, 1),
        "features.2.fc1.weight": (96, 24, 3, 3),
        "features.12.norm2.bias": (128,),
        "features.13.b1.0.weight": (128,),
        "features.13.b1.1.weight": (640, 128, 1, 1),
        "features.13.b2.0.weight": (640, 1, 3, 3),
        "features.13.b2.3.bias": (160,),
        "features.18.b1.1.weight": (800, 160, 1, 1),
    }
    assert {key: shapes[key] for key in some} == some and "features.19.b2.3.bias" not in shapes
    assert sum(p.numel() for p in made.parameters()) == 4_751_792
    with pytest.raises(ValueError, match="strides"):
        MODULES["xmnet"].load()(out_layers=[4], out_strides=[16])


def test_a_check_takes_the_first_proposals_of_each_image() -> None:
    rois = torch.tensor([[0, 1.0], [1, 2.0], [0, 3.0], [0, 4.0], [2, 5.0], [1, 6.0]])
    assert first_of_images(rois, 2)[:, 1].tolist() == [1, 2, 3, 5, 6]
    assert first_of_images(rois[:0], 2).shape == (0, 2)
