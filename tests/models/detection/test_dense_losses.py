"""Quality focal loss, losses of overlap and the IoU branch against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from kdcli.models.detection.boxes import encode, paired_iou
from kdcli.models.detection.dense_post import RetinaPostIou
from kdcli.models.detection.losses import (
    L1,
    ComposedLoss,
    IouLoss,
    Moved,
    QualityFocal,
    at_least_one,
    similarity,
)
from kdcli.models.detection.targets import AnchorTargets
from tests.models.detection.nets import improved

LN3 = math.log(3.0)

LOGITS = tensor([[0.0, LN3], [0.0, 0.0], [5.0, -5.0]])
TARGET = tensor([2, 0, -1])
OVERLAPS = tensor([0.5, 0.9, 0.9])


def test_quality_focal_loss() -> None:
    # Row 0, class 2: sigmoid 3/4 against 1/2, entropy -ln(3/16)/2, times (1/4)²; its class 1 and both of row 1:
    # ln 2 times (1/2)². Row 2 is ignored, row 1's overlap is nobody's.
    expected = -math.log(3 / 16) / 2 / 16 + 3 * math.log(2) / 4
    loss = QualityFocal(gamma=2.0)(LOGITS, TARGET, tensor(1), OVERLAPS)
    assert loss == pytest.approx(expected, rel=1e-6)
    twice = QualityFocal(gamma=2.0, loss_weight=4.0)(LOGITS, TARGET, tensor(2), OVERLAPS)
    assert twice == pytest.approx(2 * expected, rel=1e-6)


def test_the_dynamic_normalizer_is_half_the_weights_and_at_least_one() -> None:
    # gamma 0: every weight is 1, four logits count, so that 2 divides whatever the count is.
    entropy = -math.log(3 / 16) / 2 + 3 * math.log(2)
    loss = QualityFocal(gamma=0.0, dynamic_normalizer=True)(LOGITS, TARGET, tensor(9), OVERLAPS)
    assert loss == pytest.approx(entropy / 2, rel=1e-6)
    # gamma 2: (1/16 + 3/4) / 2 is below 1.
    loss = QualityFocal(gamma=2.0, dynamic_normalizer=True)(LOGITS, TARGET, tensor(9), OVERLAPS)
    assert loss == pytest.approx(-math.log(3 / 16) / 2 / 16 + 3 * math.log(2) / 4, rel=1e-6)


# A box of 10 by 10, and one of 10 by 20 with the same upper edge: they share 100 of 200, centres are 5 apart,
# the outer box is 10 by 20 with a squared diagonal of 500.
ASPECT = 4 / math.pi**2 * (math.atan(0.5) - math.atan(1.0)) ** 2
SHAPE = (1 - math.exp(-0.5)) ** 4
TALLER = {
    "iou": 0.5,
    "giou": 0.5,
    "diou": 0.5 - 25 / 500,
    "ciou": 0.45 - ASPECT * ASPECT / (0.5 + ASPECT),
    "eiou": (0.45 - 10**2 / 20**2) * 0.5,
}


@pytest.mark.parametrize("offset", [0, 1])
def test_measures_of_a_box_and_a_taller_one(offset: int) -> None:
    box, taller = (tensor([[0.0, 0.0, 10.0 - offset, side - offset]]) for side in (10.0, 20.0))
    for kind, expected in TALLER.items():
        assert similarity(kind, box, taller, offset) == pytest.approx(expected, rel=1e-5), kind
    # siou's outer box counts no last pixels: 20 or 19 high. The shift lies along an axis: the angle is 0.
    distance = 1 - math.exp(-2 * (5 / (20 - offset)) ** 2)
    assert similarity("siou", box, taller, offset) == pytest.approx(0.5 - 0.5 * (distance + SHAPE), rel=1e-5)


def test_measures_of_boxes_that_lie_across() -> None:
    # They share 25 of 175, the outer box has 225 and a squared diagonal of 450, centres are √50 apart.
    box, other = tensor([[0.0, 0.0, 10.0, 10.0]]), tensor([[5.0, 5.0, 15.0, 15.0]])
    assert similarity("giou", box, other, 0) == pytest.approx(1 / 7 - 50 / 225, rel=1e-5)
    for kind in ("diou", "ciou"):
        assert similarity(kind, box, other, 0) == pytest.approx(1 / 7 - 50 / 450, rel=1e-5)
    # A shift along the diagonal: the angle is 1, so that each side's distance is 1 - exp(-(5/15)²).
    assert similarity("siou", box, other, 0) == pytest.approx(1 / 7 - (1 - math.exp(-1 / 9)), rel=1e-5)
    assert paired_iou(box, other, 0) == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("iou", math.log(2)), ("linear_iou", 0.5), ("square_iou", 0.75)]
    + [(kind, 1 - measure) for kind, measure in TALLER.items() if kind != "iou"],
)
def test_the_loss_moves_both_boxes_from_the_anchor(kind: Any, expected: float) -> None:
    anchor = tensor([[2.0, 3.0, 9.0, 8.0]])
    box, taller = tensor([[0.0, 0.0, 10.0, 10.0]]), tensor([[0.0, 0.0, 10.0, 20.0]])
    stds = (0.1, 0.1, 0.2, 0.2)
    own, wanted = (encode(anchor, boxes, 0) / tensor(stds) for boxes in (box, taller))
    loss = IouLoss(loss_type=kind, loss_weight=3.0)(own, wanted, tensor(2), Moved(anchor, 0, stds=stds))
    assert loss == pytest.approx(1.5 * expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou", "eiou", "siou"])
@pytest.mark.parametrize("offset", [0, 1])
def test_equal_and_distant_boxes_have_a_finite_gradient(kind: Any, offset: int) -> None:
    objects = tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    boxes = tensor([[0.0, 0.0, 10.0, 10.0], [90.0, 0.0, 99.0, 0.5]], requires_grad=True)
    losses = IouLoss(loss_type=kind).of_boxes(boxes, objects, offset)
    losses.sum().backward()
    assert losses[0].detach() == pytest.approx(0, abs=1e-6) and losses[1] > 0.9
    assert boxes.grad is not None and boxes.grad.isfinite().all()


def test_composed_losses_of_deltas_are_means_over_elements() -> None:
    block: list[dict[str, Any]] = [
        {"type": "iou_loss", "kwargs": {"loss_type": "linear_iou"}},
        {"type": "l1_loss", "kwargs": {"loss_weight": 2.0}},
    ]
    anchors = tensor([[0.0, 0.0, 10.0, 10.0]] * 2)
    own, wanted = torch.zeros(2, 4), tensor([[0.0, 0.25, 0.0, math.log(2)], [0.0] * 4])
    # Moved by a quarter of its height and twice as high: 0 .. 10 against -2.5 .. 17.5, an IoU of a half.
    both = 0.5 / 4 + 2 * (0.25 + math.log(2)) / 8
    assert ComposedLoss(block)(own, wanted, tensor(4), Moved(anchors, 0)) == pytest.approx(both, rel=1e-5)
    weights = tensor([0.5, 1.0])
    weighted = ComposedLoss(block)(own, wanted, tensor(4), Moved(anchors, 0, weights=weights))
    assert weighted == pytest.approx(both - 0.5 / 8, rel=1e-5)


def post() -> RetinaPostIou:
    """One class, two anchors."""
    kwargs = dict(improved(2, iou=True)[3].kwargs)
    kwargs["cfg"] = {**kwargs["cfg"], "loc_loss": {"type": "l1_loss"}}
    return RetinaPostIou(**kwargs)


def test_scores_are_multiplied_by_the_iou_branch() -> None:
    # Sigmoids: 1/2 and 3/4, and the other way round.
    maps = tensor([0.0, LN3]).view(1, 2, 1, 1), torch.zeros(1, 8, 1, 1), tensor([LN3, 0.0]).view(1, 2, 1, 1)
    _, (scores,), _ = post().scored({"preds": [maps], "strides": [8]})
    torch.testing.assert_close(scores, tensor([[[3 / 8], [3 / 8]]]))


def test_the_location_loss_is_divided_by_the_sum_of_qualities() -> None:
    head = post().train()

    def targets(levels: Any, batch: Any, answers: Any) -> AnchorTargets:
        return AnchorTargets(
            tensor([[1, 1]]), torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool), qualities
        )

    head.supervisor = SimpleNamespace(targets=targets, quality="iou")
    deltas = torch.full((1, 8, 1, 1), 0.1)
    logits, branch = torch.zeros(1, 2, 1, 1), tensor([LN3, 0.0]).view(1, 2, 1, 1)
    given = {"preds": [(logits, deltas, branch)], "strides": [8], "image_info": [(8.0, 8.0)]}
    for qualities, divisor in ((tensor([0.25, 0.5]), 1.0), (tensor([0.75, 0.75]), 1.5)):
        losses: dict[str, Tensor] = head(given)
        assert losses["retina_loc_loss"] == pytest.approx(0.8 / divisor, rel=1e-6)
        entropy = math.log(2) - float(qualities[0]) * LN3 + math.log(4) - math.log(1)
        assert losses["retina_iou_loss"] == pytest.approx(entropy / 2, rel=1e-6)
    assert at_least_one(tensor(0.2)) == 1 and at_least_one(tensor(3.5)) == 3.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retina_post_iou.*IoU branch"):
        post()._read({"preds": [(torch.zeros(1, 2, 1, 1), torch.zeros(1, 8, 1, 1))], "strides": [8]})
    kwargs = dict(improved(2, iou=True)[3].kwargs)
    kwargs["cfg"] = {**kwargs["cfg"], "roi_supervisor": {"type": "atss"}}
    with pytest.raises(ValueError, match="use_iou: true"):
        RetinaPostIou(**kwargs)
    with pytest.raises(ValueError, match=r"`cfg.loc_loss.kwargs.loss_cfg\[1\].type`.*did you mean"):
        ComposedLoss([{"type": "l1_loss"}, {"type": "iou_los"}])
    with pytest.raises(ValueError, match="loss_type"):
        IouLoss(loss_type="gioo")  # type: ignore[arg-type]
    assert L1().loss_weight == 1
