"""Every option of a mimic method does something: moved from its setting, it changes the job's losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch

from kdcli.distill.mimickers import MIMICKERS
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.distill.taps import View
from kdcli.models.detection.roi_pool import RoiAlign
from tests.distill.test_detector_mimickers import DEFEAT, Net, context

BATCH = {
    "boxes": [torch.tensor([[0.0, 0.0, 8.0, 8.0, 1.0], [4.0, 4.0, 30.0, 30.0, 2.0]])],
    "image": torch.zeros(1, 3, 32, 32),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "FRS": {},
    "SampleFeature": {"rcnn_fpn_levels": [0, 1], "rcnn_fpn_strides": [4, 8], "rcnn_fpn_base_scale": 8},
    "DeFeat": DEFEAT,
}
OTHERS: dict[str, dict[str, Any]] = {
    "FRS": {"mask_count": "elements", "pred_gradient": False},
    "SampleFeature": {
        "rcnn_fpn_levels": [1, 2],
        "rcnn_fpn_strides": [2, 8],
        "rcnn_fpn_base_scale": 64,
        "teacher_proposal": False,
        "student_roipooler": "other_pool",
        "teacher_roipooler": ["other_pool"],
    },
    "DeFeat": {
        "rpn_fpn_strides": [2, 16],
        "rpn_fpn_base_scale": 64,
        "neck_feature_nums": 1,
    },
}
"""Another value of each option."""

TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("DeFeat", "neck_feature_nums"): {"rpn_fpn_levels": [0], "rpn_fpn_strides": [4]},
    # Of three cells a side, where the usual one has one: both networks pool to one size.
    ("SampleFeature", "student_roipooler"): {"teacher_roipooler": ["other_pool"]},
    ("SampleFeature", "teacher_roipooler"): {"student_roipooler": "other_pool"},
}
"""What has to change with an option."""


def views(seed: int) -> View:
    """Three maps of strides 4, 8, 16 of a 32x32 image, their scores and two proposals."""
    random = torch.Generator().manual_seed(seed)

    def draw(size: int, channels: int) -> torch.Tensor:
        return torch.randn(1, channels, size, size, generator=random, dtype=torch.float64)

    maps: dict[str, Any] = {f"m{size}": draw(size, 2).requires_grad_() for size in (8, 4, 2)}
    rois = torch.tensor(
        [[0.0, 4.0, 4.0, 12.0 + seed, 12.0, 0.9, 1.0], [0.0, 0.0, 0.0, 24.0, 24.0 + seed, 0.8, 1.0]]
    )
    preds: Any = [(draw(size, 3).requires_grad_(), None) for size in (8, 4, 2)]
    return View(maps, {"preds": preds, "rpn_dt_bboxes": rois.double()})


class Pooled(Net):
    """A network with a second pooling layer, of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.other_pool = RoiAlign(3, 1, aligned=True)


def losses_of(method: str, options: Mapping[str, Any]) -> list[float]:
    """Each loss, and what it moves: the length of its gradient."""
    student, teachers = views(0), {"teacher": views(1)}
    made = MIMICKERS[method].load()(
        context(student, teachers, own=Pooled(), theirs=Pooled(), options=dict(options))
    )
    losses = made(student, teachers, BATCH, StepInfo(), made.kdcli_record.losses)
    scores = [score for score, _ in student.outputs["preds"]]
    reached = [*student.features.values(), *scores]
    found = []
    for name in sorted(losses):
        loss = losses[name]
        found.append(float(loss.detach()))
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, reached, allow_unused=True, retain_graph=True)  # type: ignore[arg-type]
            found.append(sum(float(g.norm()) for g in gradients if g is not None))
    return found


ONE_VALUE = {("DeFeat", "rpn_fpn_levels"): "as many successive levels from 0 on as there are neck layers"}
"""Options that the other options settle: any other value is KD462 (test_detector_mimickers.py)."""


@pytest.mark.parametrize("method", OTHERS)
def test_each_option_of_a_method_changes_its_losses(method: str) -> None:
    settled = {name for owner, name in ONE_VALUE if owner == method}
    assert OTHERS[method].keys() | settled == {field.name for field in fields(MIMICKERS[method].options)}
    before = losses_of(method, OPTIONS[method])
    for name, value in OTHERS[method].items():
        after = losses_of(method, {**OPTIONS[method], **TOGETHER.get((method, name), {}), name: value})
        assert after != pytest.approx(before, rel=1e-9), name


def test_every_method_with_options_is_among_them() -> None:
    assert OTHERS.keys() == {name for name, record in MIMICKERS.items() if fields(record.options)}
