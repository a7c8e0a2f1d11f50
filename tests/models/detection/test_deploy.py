"""Detectors in fixed sizes find the boxes that the networks' own modules find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor, nn

from kdcli.models.detection.deploy.candidates import ABSENT, suppress
from kdcli.models.detection.deploy.detector import DeployedDetector
from kdcli.models.detection.proposals import SMALL_LEVEL
from kdcli.spec.schema import ModuleSpec
from tests.models.detection.nets import batch, build, faster_rcnn, improved, retinanet, with_res5

SIZES = torch.tensor([[96.0, 96.0], [80.0, 96.0]])


def changed(modules: list[ModuleSpec], index: int, change: Any) -> list[ModuleSpec]:
    """With one module's kwargs changed in place."""
    change(modules[index].kwargs)
    return modules


def predictor_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = kwargs["cfg"]["test"]["roi_predictor"]
    return found


def few_proposals(kwargs: dict[str, Any]) -> None:
    predictor_of(kwargs)["kwargs"].update(
        pre_nms_score_thresh=0.4, pre_nms_top_n=40, post_nms_top_n=12, roi_min_size=6
    )
    predictor_of(kwargs)["kwargs"]["merger"]["kwargs"]["top_n"] = 30


def few_classes(kwargs: dict[str, Any]) -> None:
    predictor_of(kwargs)["kwargs"].update(
        pre_nms_score_thresh=0.3, roi_min_size=12, nms={"type": "naive", "nms_iou_thresh": 0.6}
    )


def all_classes_at_once(kwargs: dict[str, Any]) -> None:
    predictor_of(kwargs)["type"] = "base_multicls"
    predictor_of(kwargs)["kwargs"].update(
        pre_nms_score_thresh=0.3, roi_min_size=20, nms={"type": "naive", "nms_iou_thresh": 0.6}
    )
    predictor_of(kwargs)["kwargs"]["merger"]["type"] = "retina_multicls"


def no_merger(kwargs: dict[str, Any]) -> None:
    del predictor_of(kwargs)["kwargs"]["merger"]
    predictor_of(kwargs)["kwargs"].update(clip_box=False, pre_nms_top_n=-1, post_nms_top_n=15)


def above(kwargs: dict[str, Any]) -> None:
    kwargs["cfg"]["bbox_predictor"]["kwargs"].update(bbox_score_thresh=0.1, top_n=90)


def every_one(kwargs: dict[str, Any]) -> None:
    kwargs["cfg"]["bbox_predictor"]["kwargs"].update(bbox_score_thresh=0.2, top_n=-1)


CASES = {
    "faster": lambda: faster_rcnn(),
    "few proposals": lambda: changed(faster_rcnn(), 3, few_proposals),
    "a layer each": lambda: changed(faster_rcnn(), 4, lambda kwargs: kwargs.update(with_drp=True)),
    "score threshold": lambda: changed(faster_rcnn(), 6, above),
    "no limit": lambda: changed(faster_rcnn(), 6, every_one),
    "retina": lambda: retinanet(),
    "retina thresholds": lambda: changed(retinanet(), 3, few_classes),
    "retina multicls": lambda: changed(retinanet(), 3, all_classes_at_once),
    "improved retina": lambda: improved(),
    "an IoU branch": lambda: improved(iou=True),
    "layer4 as head": lambda: with_res5(faster_rcnn()),
    "retina no merger": lambda: changed(retinanet(), 3, no_merger),
}

# layer4 runs over every proposal.
SLOW = ("layer4 as head",)


def lively(modules: list[ModuleSpec], aligned: bool) -> nn.Module:
    """A network whose scores and boxes differ from place to place."""
    net = build(modules, aligned).eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in net.named_parameters():
        if name.startswith(("roi_head", "bbox_head")) and parameter.dim() > 1:
            fan = parameter[0].numel()
            last = any(word in name for word in ("conv_loc", "box_subnet_pred", "rcnn_loc"))
            with torch.no_grad():
                parameter.normal_(0.0, (0.3 if last else 1.2) / fan**0.5, generator=generator)
                if "rcnn_cls" in name:  # what all inputs share must not decide the class
                    parameter.sub_(parameter.mean(1, keepdim=True))
        elif name.startswith("roi_head.cls_subnet_pred"):
            nn.init.zeros_(parameter)
    return net


def as_rows(found: tuple[Tensor, ...], offset: int) -> Tensor:
    """As `dt_bboxes`."""
    boxes, scores, labels, images = found
    boxes = boxes - boxes.new_tensor([0.0, 0.0, offset, offset])
    return torch.cat([images[:, None], boxes, scores[:, None], labels[:, None] + 1], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in sorted(CASES)],
)
def test_the_same_boxes(case: str, aligned: bool) -> None:
    net = lively(CASES[case](), aligned)
    given = batch()
    with torch.no_grad():
        expected = net(given)["dt_bboxes"]
        found = as_rows(DeployedDetector(net)(given["image"], SIZES), 0 if aligned else 1)  # type: ignore[arg-type]
    assert len(expected) > 20 and set(expected[:, 0].tolist()) == {0.0, 1.0}
    assert len(expected[:, 6].unique()) > 1
    assert found.shape == expected.shape
    apart = torch.cdist(found, expected, p=float("inf"), compute_mode="donot_use_mm_for_euclid_dist")
    assert float(apart.amin(0).max()) < 1e-3 and float(apart.amin(1).max()) < 1e-3
    assert (found[:, 0].diff() >= 0).all()
    assert (found[:, 5].diff()[found[:, 0].diff() == 0] <= 0).all()


def test_small_and_large_levels_are_both_seen() -> None:
    counts = [3 * (96 // stride) ** 2 for stride in (4, 8, 16, 32)]
    assert min(counts) < SMALL_LEVEL < max(counts)


def test_no_box_at_all() -> None:
    modules = changed(
        faster_rcnn(), 6, lambda k: k["cfg"]["bbox_predictor"]["kwargs"].update(bbox_score_thresh=1.0)
    )
    with torch.no_grad():
        boxes, scores, labels, images = DeployedDetector(build(modules).eval())(batch()["image"], SIZES)
    assert boxes.shape == (0, 4) and len(scores) == len(labels) == len(images) == 0


@pytest.mark.parametrize("labelled", [False, True])
def test_suppression_is_that_of_each_group_and_label(labelled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 40, 2, generator=generator) * 900 - 50
    boxes = torch.cat([corners, corners + 30 + torch.rand(3, 40, 2, generator=generator) * 500], dim=2)
    scores = torch.rand(3, 40, generator=generator)
    scores[:, 35:] = ABSENT
    scores[2] = ABSENT
    labels = torch.randint(4, (3, 40), generator=generator)
    kept = suppress(boxes, scores, labels if labelled else None, 4, 0.4)
    groups = labels if labelled else torch.zeros_like(labels)
    for own, score, group, found in zip(boxes, scores, groups, kept, strict=True):
        expected = torchvision.ops.batched_nms(own[:35], score[:35], group[:35], 0.4)
        if float(score.max()) > 0:
            assert sorted(expected.tolist()) == torch.nonzero(found[:35]).flatten().tolist()
            assert 5 < len(expected) < 35


def test_networks_that_are_not_followed() -> None:
    spec = ModuleSpec(
        name="model", type="torchvision.ssdlite320_mobilenet_v3_large", kwargs={"num_classes": 4}
    )
    assert not DeployedDetector.follows(build([spec]))
    assert DeployedDetector.follows(build(retinanet()))
