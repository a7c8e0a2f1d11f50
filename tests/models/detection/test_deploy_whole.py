"""torchvision's detectors in fixed sizes find the boxes that torchvision's own code finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.exports import EXPORTS
from kdcli.exports.export import prove
from kdcli.models.network import Network
from kdcli.tasks.detection.deploy import Detector
from tests.models.detection.test_whole import build

IMAGE = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
SIZES = torch.tensor([[96.0, 128.0], [80.0, 120.0]])
NETS: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"box_score_thresh": 0.1, "rpn_score_thresh": 0.3},
    "retinanet_resnet50_fpn": {"detections_per_img": 50, "topk_candidates": 100},
}


@torch.no_grad()
def lively(name: str) -> Network:
    """A network whose scores and boxes differ from place to place."""
    net = build(name, **NETS[name]).eval()
    generator = torch.Generator().manual_seed(1)
    for path, parameter in net.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (1.4 / parameter[0].numel()) ** 0.5, generator=generator)
            if "bbox_pred" in path or "bbox_reg" in path:
                parameter.mul_(0.2)
        elif path.endswith("cls_logits.bias"):
            parameter.zero_()
    backbone: Any = net.get_submodule("model.backbone")
    for level, block in enumerate(backbone.fpn.layer_blocks):
        block[0].weight.div_(list(backbone(IMAGE).values())[level].std())
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETS))
def test_the_same_boxes(name: str) -> None:
    student = Detector(lively(name), 0)
    assert student.followed
    whole = SIZES[:1].expand(2, 2)
    with torch.no_grad():
        own = student.net({"image": IMAGE, "image_info": [(96.0, 128.0, 1.0, 1.0, 96.0, 128.0)] * 2})
        boxes, scores, _, _ = student.eager(IMAGE, whole)
    assert torch.equal(own["dt_bboxes"][:, 1:5], boxes) and torch.equal(own["dt_bboxes"][:, 5], scores)
    proof = prove(student, student, (IMAGE, SIZES), 1e-5)
    assert proof.boxes is not None and proof.boxes > 50 and proof.alone == 0
    assert len(student.eager(IMAGE, SIZES)[2].unique()) > 1


def test_a_box_offset_does_not_move_them() -> None:
    net = lively("fasterrcnn_mobilenet_v3_large_320_fpn")
    student = Detector(net, 1)
    assert prove(student, student, (IMAGE, SIZES), 1e-5).alone == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [("fasterrcnn_mobilenet_v3_large_320_fpn", "onnx"), ("retinanet_resnet50_fpn", "torch-export")],
)
def test_files_answer_alike(name: str, format: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    student = Detector(lively(name), 0).warm_up(IMAGE, SIZES)
    maker = EXPORTS[format].load()()
    path = tmp_path / f"student{maker.suffix}"
    maker.write(student, (IMAGE, SIZES), path, {"kdcli": "0"})
    proof = prove(student, maker.read(path, student), (IMAGE, SIZES), 1e-3)
    assert proof.boxes is not None and proof.boxes > 50 and proof.difference < 0.01
