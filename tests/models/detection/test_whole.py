"""torchvision's whole detectors by name, on our batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kdcli.distill.taps import Taps
from kdcli.errors import SpecError
from kdcli.models.network import Network, build_network
from kdcli.spec.schema import ModuleSpec
from tests.models.detection.nets import batch

LOSSES = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": {
        "classifier_loss",
        "box_reg_loss",
        "objectness_loss",
        "rpn_box_reg_loss",
    },
    "ssdlite320_mobilenet_v3_large": {"bbox_regression_loss", "classification_loss"},
    "fcos_resnet50_fpn": {"classification_loss", "bbox_regression_loss", "bbox_ctrness_loss"},
    "retinanet_resnet50_fpn": {"classification_loss", "bbox_regression_loss"},
}


def build(name: str, **kwargs: Any) -> Network:
    torch.manual_seed(0)
    spec = ModuleSpec(name="model", type=f"torchvision.{name}", kwargs={"num_classes": 4, **kwargs})
    return build_network([spec], path=("net",))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_in_training_and_boxes_in_evaluation(name: str) -> None:
    net = build(name)
    given = batch()
    losses = net(given)
    assert set(losses) == LOSSES[name]
    assert all(value.isfinite() for value in losses.values())
    torch.stack([value.sum() for value in losses.values()]).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in net.parameters())
    with torch.no_grad():
        found = net.eval()(given)["dt_bboxes"]
    assert found.shape[1] == 7
    assert set(found[:, 0].int().tolist()) <= {0, 1}
    assert len(found) == 0 or (found[:, 6].min() >= 1 and found[:, 6].max() <= 3)


def test_labels_are_category_ids_where_they_count_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=8)
    given = {**batch(), "annotations": {"categories": (2, 5, 7), "box_offset": 0}}
    seen: list[Any] = []

    def detect(images: Any, targets: Any = None) -> Any:
        if targets is not None:
            seen.extend(targets)
            return {"loss_x": torch.zeros(())}
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 3)
        return [{"boxes": boxes, "scores": torch.ones(3), "labels": torch.tensor([7, 4, 2])} for _ in images]

    detector: Any = net.get_submodule("model").detector
    monkeypatch.setattr(detector, "forward", detect)
    net(given)
    assert [row["labels"].tolist() for row in seen] == [
        [(2, 5, 7)[int(label) - 1] for label in boxes[:, 4]] for boxes in given["boxes"]
    ]
    found = net.eval()(given)["dt_bboxes"]
    assert found[:, 6].tolist() == [3, 1] * len(given["boxes"])  # nothing has the id 4
    # Of three categories without gaps, with a class too many, labels count.
    given["annotations"]["categories"] = (1, 2, 3)
    assert net(given)["dt_bboxes"][:3, 6].tolist() == [7, 4, 2]


def test_edges_lack_a_pixel_of_the_original_image(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("fasterrcnn_mobilenet_v3_large_320_fpn")
    seen: list[Any] = []

    def detect(images: Any, targets: Any = None) -> Any:
        if targets is not None:
            seen.extend(targets)
            return {"loss_x": torch.zeros(())}
        return [{"boxes": row["boxes"], "scores": torch.ones(1), "labels": row["labels"]} for row in seen[:1]]

    detector: Any = net.get_submodule("model").detector
    monkeypatch.setattr(detector, "forward", detect)
    # 10 x 10 pixels of the original, three times as wide and twice as high: the last pixel is (9·3, 9·2).
    given = {
        "image": torch.zeros(1, 3, 96, 96),
        "boxes": [torch.tensor([[0.0, 0.0, 27.0, 18.0, 1.0]])],
        "image_info": [(96.0, 96.0, 2.0, 3.0, 48.0, 32.0)],
        "annotations": {"categories": (1, 2, 3), "box_offset": 1},
    }
    net(given)
    assert seen[0]["boxes"].tolist() == [[0, 0, 30, 20]]
    assert net.eval()(given)["dt_bboxes"][0, 1:5].tolist() == [0, 0, 27, 18]


def test_levels_of_the_pyramid_can_be_tapped() -> None:
    net = build("fasterrcnn_mobilenet_v3_large_320_fpn").eval()
    with Taps(net, ["model.backbone.fpn", "model.backbone.fpn[1]"]) as taps, torch.no_grad():
        view = taps.learn(batch())
    levels = view.features["model.backbone.fpn"]
    assert isinstance(levels, list) and len(levels) == 3
    second = view.features["model.backbone.fpn[1]"]
    assert torch.equal(second, levels[1])  # type: ignore[arg-type]


def test_names_are_torchvisions_own_and_a_copy_is_whole() -> None:
    net = build("fasterrcnn_mobilenet_v3_large_320_fpn").eval()
    names = set(net.state_dict())
    assert all(name.startswith(("model.backbone.", "model.rpn.", "model.roi_heads.")) for name in names)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        assert twin(batch())["dt_bboxes"].isfinite().all()
        assert any(bool(p.any()) for p in twin._modules["model"]._detector[0].parameters())  # type: ignore[union-attr]


def test_masks_are_no_boxes_and_slips_are_pointed_out() -> None:
    with pytest.raises(SpecError, match="KD401"):
        build("maskrcnn_resnet50_fpn")
    with pytest.raises(SpecError) as caught:
        build("fasterrcnn_resnet50_fpm")
    assert "`fasterrcnn_resnet50_fpn`" in (caught.value.diagnostics[0].help or "")
    with pytest.raises(SpecError):
        build("fcos_resnet50_fpn", nonsense=1)
