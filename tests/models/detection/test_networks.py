"""Whole detectors of our modules: losses, gradients, boxes, random choices, both geometries."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from kdcli.errors import SpecError
from tests.models.detection.nets import batch, build, faster_rcnn, improved, retinanet, rpn_cfg

DETECTORS: dict[str, Any] = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "improved": improved,
    "improved_iou": partial(improved, iou=True),
    "improved_ota": partial(improved, ota=True),
}
LOSSES = {
    "faster_rcnn": {"rpn_cls_loss", "rpn_loc_loss", "bbox_cls_loss", "bbox_loc_loss"},
    "improved_iou": {"retina_cls_loss", "retina_loc_loss", "retina_iou_loss"},
}


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_losses_are_finite_and_train_everything(name: str, aligned: bool) -> None:
    net = build(DETECTORS[name](), aligned)
    outputs = net(batch())
    losses = {key: value for key, value in outputs.items() if key.endswith("_loss")}
    assert set(losses) == LOSSES.get(name, {"retina_cls_loss", "retina_loc_loss"})
    assert all(value.ndim == 0 and value.isfinite() and value > 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    without = [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_boxes_lie_in_their_image(name: str, aligned: bool) -> None:
    net = build(DETECTORS[name](), aligned).eval()
    given = batch()
    with torch.no_grad():
        found = net(given)["dt_bboxes"]
    assert found.shape[1] == 7 and len(found)
    for image, info in enumerate(given["image_info"]):
        own = found[found[:, 0] == image]
        assert (own[:, 1:5] >= 0).all()
        assert (own[:, 3] <= info[1]).all() and (own[:, 4] <= info[0]).all()
        assert own[:, 6].min() >= 1 and own[:, 6].max() <= 3


def test_images_without_boxes_train_on_the_background() -> None:
    given = batch()
    given["boxes"] = [torch.zeros(0, 5), torch.zeros(0, 5)]
    for modules in (faster_rcnn, retinanet, DETECTORS["improved_iou"]):
        losses = {k: v for k, v in build(modules())(given).items() if k.endswith("_loss")}
        assert all(value.isfinite() for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        assert all(float(v.detach()) == 0 for k, v in losses.items() if k.endswith(("loc_loss", "iou_loss")))


def test_sampling_draws_from_the_main_generator() -> None:
    net = build(faster_rcnn())
    given = batch()

    def total() -> float:
        return float(sum(v.detach() for k, v in net(given).items() if k.endswith("_loss")))

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = total(), total()
    torch.set_rng_state(state)
    assert total() == first != second


def test_an_unknown_key_in_a_block_is_refused_with_its_place() -> None:
    modules = faster_rcnn()
    cfg = rpn_cfg()
    cfg["roi_supervisor"]["kwargs"]["matcher"]["kwargs"]["positive_iou_tresh"] = 0.7
    modules[3] = modules[3].model_copy(update={"kwargs": {"num_classes": 2, "cfg": cfg}})
    with pytest.raises(SpecError, match=r"cfg.roi_supervisor.kwargs.matcher.kwargs.*positive_iou_thresh"):
        build(modules)


def test_more_classes_in_the_head_than_in_the_post_process_is_an_error() -> None:
    modules = retinanet()
    kwargs = {**modules[3].kwargs, "num_classes": 9}
    modules[3] = modules[3].model_copy(update={"kwargs": kwargs})
    with pytest.raises(ValueError, match="num_classes"):
        build(modules)(batch())
