"""Arguments of predictors, supervisors, losses and heads of detectors: a number by hand for each."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tensor

from kdcli.models.detection.bbox_post import BboxPredictor
from kdcli.models.detection.heads import BboxFC, NaiveRPN, RetinaSubNet
from kdcli.models.detection.losses import (
    L1,
    Moved,
    SigmoidCrossEntropy,
    SigmoidFocal,
    SmoothL1,
    SoftmaxCrossEntropy,
)
from kdcli.models.detection.proposals import DensePredictor, NmsMerger
from kdcli.models.detection.roi_pool import RoiAlign
from kdcli.models.detection.targets import AnchorSupervisor, MaxIouMatcher, NaiveSampler

BOXES = tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # scores 0.9 and 0.1
        [0.0, 0.0, 10.0, 8.0],  # 0.8 and 0.2: IoU 0.8 with the first
        [0.0, 0.0, 10.0, 4.0],  # 0.7 and 0.3: IoU 0.4 and 0.5
        [20.0, 0.0, 22.0, 2.0],  # 0.6 and 0.4: small
        [30.0, 0.0, 50.0, 10.0],  # 0.5 and 0.55: half outside
    ]
)
SCORES = tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.5, 0.55]])
INFO = [(40.0, 40.0, 1.0)]
ALL: dict[str, Any] = {
    "pre_nms_score_thresh": 0.0,
    "pre_nms_top_n": -1,
    "post_nms_top_n": -1,
    "roi_min_size": 0,
}
IN_ALL = [0.9, 0.8, 0.7, 0.6, 0.5, 0.55, 0.4, 0.3, 0.2, 0.1]


def proposals(boxes: Tensor = BOXES, scores: Tensor = SCORES, **kwargs: Any) -> Tensor:
    predictor = DensePredictor(**{**ALL, **kwargs}, where="x", offset=0)
    return predictor.predict([boxes], [scores[None]], [torch.zeros(1, len(boxes), 4)], INFO)


@pytest.mark.parametrize(
    ("kwargs", "scores"),
    [
        ({}, IN_ALL),
        ({"pre_nms_top_n": 3}, [0.9, 0.8, 0.7, 0.55, 0.4, 0.3]),
        ({"post_nms_top_n": 1}, [0.9, 0.55]),
        ({"roi_min_size": 3}, [0.9, 0.8, 0.7, 0.5, 0.55, 0.3, 0.2, 0.1]),
        ({"nms": {"nms_iou_thresh": 0.7}}, [0.9, 0.7, 0.6, 0.5, 0.55, 0.4, 0.3, 0.2]),
        ({"nms": {"nms_iou_thresh": 0.45}}, [0.9, 0.7, 0.6, 0.5, 0.55, 0.4, 0.3, 0.1]),
        # of the two best of each class before the suppression one is left of the first, after it two
        ({"nms": {"nms_iou_thresh": 0.7}, "pre_nms_top_n": 2}, [0.9, 0.55, 0.4]),
        ({"nms": {"nms_iou_thresh": 0.7}, "post_nms_top_n": 2}, [0.9, 0.7, 0.55, 0.4]),
        ({"merger": {"type": "rpn", "kwargs": {"top_n": 3}}}, [0.9, 0.8, 0.7]),
        # both classes at once: the best of all ten
        ({"by_class": False, "pre_nms_top_n": 4}, [0.9, 0.8, 0.7, 0.6]),
    ],
)
def test_what_a_predictor_of_proposals_keeps(kwargs: dict[str, Any], scores: list[float]) -> None:
    assert proposals(**kwargs)[:, 5].tolist() == pytest.approx(scores)


def test_a_threshold_of_scores_is_for_large_levels() -> None:
    # Five anchors are a small level, which keeps its faint ones; a hundred of them are none.
    assert proposals(pre_nms_score_thresh=0.5)[:, 5].tolist() == pytest.approx(IN_ALL)
    many, scores = BOXES.repeat(100, 1), SCORES.repeat(100, 1)
    found = proposals(many, scores, pre_nms_score_thresh=0.5)
    assert found[:, 5].unique().tolist() == pytest.approx([0.55, 0.6, 0.7, 0.8, 0.9])


def test_boxes_are_cut_to_the_image_unless_the_spec_says_otherwise() -> None:
    assert proposals()[4, 1:5].tolist() == [30, 0, 40, 10]
    assert proposals(clip_box=False)[4, 1:5].tolist() == [30, 0, 50, 10]


@pytest.mark.parametrize(
    ("top_n", "threshold", "scores"),
    [
        (-1, 0.7, [0.9, 0.7, 0.6, 0.5]),
        (-1, 0.45, [0.9, 0.7, 0.6, 0.5]),
        (-1, 0.35, [0.9, 0.6, 0.5]),
        (2, 0.7, [0.9, 0.7]),
    ],
)
def test_a_merger_suppresses_over_all_levels(top_n: int, threshold: float, scores: list[float]) -> None:
    boxes = torch.cat([BOXES, SCORES[:, :1], torch.ones(5, 1)], dim=1)
    merged = NmsMerger(top_n, {"nms_iou_thresh": threshold}, where="x", offset=0).merge(boxes)
    assert merged[:, 4].tolist() == pytest.approx(scores)


@pytest.mark.parametrize(
    ("kwargs", "scores"),
    [
        ({}, [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"bbox_score_thresh": 0.5}, [0.9, 0.8, 0.7, 0.6, 0.55]),
        ({"top_n": 2}, [0.9, 0.8]),
        ({"nms": {"nms_iou_thresh": 0.7}}, [0.9, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2]),
        ({"nms": {"nms_iou_thresh": 0.45}}, [0.9, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.1]),
    ],
)
def test_what_a_predictor_of_boxes_keeps(kwargs: dict[str, Any], scores: list[float]) -> None:
    found = of_boxes(torch.zeros(5, 4), **kwargs)
    assert found[:, 5].tolist() == pytest.approx(scores)


def of_boxes(deltas: Tensor, **kwargs: Any) -> Tensor:
    plain = {"means": [0, 0, 0, 0], "stds": [1, 1, 1, 1]}
    given = {
        "bbox_normalize": plain,
        "bbox_score_thresh": 0.0,
        "top_n": -1,
        "share_location": True,
        "nms": {"nms_iou_thresh": 1.0},
        **kwargs,
    }
    predictor = BboxPredictor(**given, offset=0)
    rois = torch.cat([torch.zeros(5, 1), BOXES], dim=1)
    return predictor.predict(rois, SCORES, deltas, INFO, 0)


def test_deltas_are_freed_of_their_means_and_deviations() -> None:
    # dx 0.5 * 0.2 + 0.1 of a width of 10, dy as far: the first box goes 2 to the right and down
    normal = {"means": [0.1, 0.1, 0, 0], "stds": [0.2, 0.2, 1, 1]}
    found = of_boxes(torch.tensor([[0.5, 0.5, 0.0, 0.0]]).repeat(5, 1), bbox_normalize=normal)
    assert found[0, 1:5].tolist() == pytest.approx([2, 2, 12, 12])


def test_each_class_has_its_deltas_where_they_are_not_shared() -> None:
    deltas = torch.zeros(5, 8)
    deltas[:, 4] = 0.5
    found = of_boxes(deltas, share_location=False)
    first, second = (found[found[:, 6] == label][:, 1:5] for label in (1, 2))
    assert first[0].tolist() == [0, 0, 10, 10]
    # the best of the second class is the last box, 10 of its 20 to the right; then cut at 40
    assert second[0].tolist() == [40, 0, 40, 10]


TRUTH = tensor([[0.0, 0.0, 10.0, 10.0, 1.0]])
BY_OVERLAP = tensor([[0.0, 0.0, 10.0, share] for share in (9.0, 6.0, 4.0, 2.0)])
"""IoU 0.9, 0.6, 0.4 and 0.2."""


@pytest.mark.parametrize(
    ("negative", "positive", "expected"),
    [
        (0.3, 0.7, [0, -2, -2, -1]),
        (0.5, 0.7, [0, -2, -1, -1]),
        (0.3, 0.5, [0, 0, -2, -1]),
        (0.5, 0.5, [0, 0, -1, -1]),
        (0.1, 0.95, [-2, -2, -2, -2]),
    ],
)
def test_thresholds_of_a_matcher(negative: float, positive: float, expected: list[int]) -> None:
    matcher = MaxIouMatcher(negative, positive, 0.5, False, offset=0)
    assert matcher.match(BY_OVERLAP, TRUTH, None).tolist() == expected


@pytest.mark.parametrize(
    ("ignore", "expected"), [(0.3, [-2, -2, -2, -1]), (0.5, [-2, -2, -1, -1]), (0.8, [-1, -1, -1, -1])]
)
def test_a_region_that_is_ignored_needs_its_share(ignore: float, expected: list[int]) -> None:
    # Of the candidates, 10 wide, so much lies within: 7/9 .. 4/6, 2/4, none; all are negatives otherwise.
    region = tensor([[0.0, 2.0, 10.0, 9.0]])
    matcher = MaxIouMatcher(0.95, 0.95, ignore, False, offset=0)
    assert matcher.match(BY_OVERLAP, TRUTH, region).tolist() == expected


def test_how_many_are_sampled() -> None:
    target = torch.cat([torch.zeros(20, dtype=torch.long), torch.full((50,), -1)])
    for size, share, expected in (
        (40, 0.25, (10, 30)),
        (40, 0.5, (20, 20)),
        (16, 0.5, (8, 8)),
        (60, 1.0, (20, 40)),
    ):
        taken = NaiveSampler(batch_size=size, positive_percent=share).sample(target)
        assert tuple(int(mask.sum()) for mask in taken) == expected


def matching(low_quality: bool) -> dict[str, Any]:
    kwargs = {
        "negative_iou_thresh": 0.3,
        "positive_iou_thresh": 0.7,
        "ignore_iou_thresh": 0.5,
        "allow_low_quality_match": low_quality,
    }
    return {"type": "max_iou", "kwargs": kwargs}


@pytest.mark.parametrize(
    ("border", "first", "classes"),
    [
        (0, True, [-1, 1, 0]),  # the best anchor is outside: the second becomes the truth's best
        (0, False, [-1, -1, 0]),  # matched before it is left out: the second is neither
        (4, True, [1, -1, 0]),  # four pixels outside are still inside
        (-1, True, [1, -1, 0]),
    ],
)
def test_anchors_outside_the_image(border: int, first: bool, classes: list[int]) -> None:
    anchors = tensor([[-3.0, 1.0, 7.0, 11.0], [1.0, 3.0, 9.0, 11.0], [30.0, 30.0, 39.0, 39.0]])
    truth = tensor([[-3.0, 1.0, 7.0, 10.0, 1.0]])
    supervisor = AnchorSupervisor(
        border, matching(True), {"type": "keep_all"}, first, foreground=True, offset=0
    )
    found = supervisor.targets([anchors], {"boxes": [truth], "image_info": INFO})
    assert found.classes.tolist() == [classes]


LN2 = math.log(2)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SoftmaxCrossEntropy(loss_weight=3.0), 3 * math.log(2)),
        (SigmoidCrossEntropy(loss_weight=3.0), 3 * 2 * LN2),
        # scores of 1/2: (1/2)^gamma * ln 2, alpha for the true class and 1 - alpha for the other
        (SigmoidFocal(loss_weight=3.0), 3 * 0.25 * LN2 * (0.25 + 0.75)),
        (SigmoidFocal(gamma=3.0), 0.125 * LN2),
        (SigmoidFocal(gamma=0.0, alpha=0.5), LN2),
    ],
    ids=["softmax", "sigmoid", "focal", "focal gamma", "focal alpha"],
)
def test_a_loss_of_one_row_of_two_classes(loss: Any, expected: float) -> None:
    assert loss(torch.zeros(1, 2), tensor([1])).item() == pytest.approx(expected)


def test_the_two_sides_of_a_focal_loss() -> None:
    # Of the background alone: 1 - alpha, for both classes.
    loss = SigmoidFocal(alpha=0.1, gamma=1.0)
    assert loss(torch.zeros(1, 2), tensor([0])).item() == pytest.approx(0.9 * 0.5 * 2 * LN2)
    assert loss(torch.zeros(1, 2), tensor([2])).item() == pytest.approx((0.1 + 0.9) * 0.5 * LN2)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (L1(loss_weight=2.0), 2 * 2.25),
        (SmoothL1(loss_weight=2.0), 2 * (1.5 + 0.25**2 / 2)),
        (SmoothL1(sigma=3.0), 2 - 1 / 18 + 0.25 - 1 / 18),
    ],
    ids=["l1", "smooth", "smooth sigma"],
)
def test_a_location_loss_of_two_and_a_quarter(loss: Any, expected: float) -> None:
    value = loss(tensor([[2.0, 0.25, 0.0, 0.0]]), torch.zeros(1, 4), tensor(1), Moved(torch.zeros(1, 4), 0))
    assert value.item() == pytest.approx(expected)


def retina(**kwargs: Any) -> RetinaSubNet:
    return RetinaSubNet(8, feat_planes=8, **{"num_classes": 4, **kwargs})


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_a_head_begins_at_its_prior(prior: float) -> None:
    bias = retina(init_prior=prior).cls_subnet_pred.bias.detach()
    assert bias.sigmoid().tolist() == pytest.approx([prior] * 27)
    # softmax: the three foreground classes of an anchor share it
    bias = retina(init_prior=prior, class_activation="softmax").cls_subnet_pred.bias.detach()
    assert bias.view(9, 4).softmax(1)[:, 1:].sum(1).tolist() == pytest.approx([prior] * 9)
    cfg = {"class_activation": "sigmoid", "roipooling": {"pool_size": 2}, "init_prior": prior}
    assert BboxFC(
        3, feat_planes=5, num_classes=4, cfg=cfg
    ).fc_rcnn_cls.bias.sigmoid().tolist() == pytest.approx([prior] * 3)


def test_the_layers_of_a_head() -> None:
    head = retina(num_conv=2, num_anchors=3, normalize={"type": "gn", "kwargs": {"num_groups": 2}})
    kinds = [type(layer) for layer in head.cls_subnet]
    assert kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
    assert head.cls_subnet_pred.out_channels == 9 and head.box_subnet_pred.out_channels == 12
    assert retina(share_location=False).box_subnet_pred.out_channels == 9 * 4 * 3
    shared = retina(share_subnet=True)
    assert not hasattr(shared, "box_subnet") and hasattr(retina(), "box_subnet")
    scores, boxes = shared.level(torch.rand(1, 8, 3, 3), 0)
    assert scores.shape == (1, 27, 3, 3) and boxes.shape == (1, 36, 3, 3)
    assert len(list(retina(num_conv=0).cls_subnet)) == 0
    for activation, channels in (("sigmoid", 3), ("softmax", 6)):
        rpn = NaiveRPN(
            8, feat_planes=4, num_classes=2, num_anchors=3, class_activation=activation, num_level=2
        )
        assert rpn.conv_cls.out_channels == channels and rpn.conv_loc.out_channels == 12
    cfg = {"class_activation": "softmax", "roipooling": {"pool_size": 2}, "share_location": True}
    fc = BboxFC(3, feat_planes=5, num_classes=4, cfg=cfg)
    assert (fc.fc6.in_features, fc.fc6.out_features, fc.fc_rcnn_cls.out_features) == (12, 5, 4)
    assert fc.fc_rcnn_loc.out_features == 4


def test_bins_and_samples_of_a_pooling_layer() -> None:
    ramp = torch.arange(8.0).expand(8, 8)[None, None]
    roi = tensor([[0.0, 0.0, 0.0, 8.0, 8.0]])
    # Edges at 0 and 4 cells: halves of a ramp, sampled half a cell before its numbers.
    assert RoiAlign(1, 2, aligned=True)(roi, ramp, 2).item() == pytest.approx(1.5)
    assert RoiAlign(2, 2, aligned=True)(roi, ramp, 2)[0, 0, 0].tolist() == pytest.approx([0.5, 2.5])
    assert RoiAlign(1, 2, aligned=False)(roi, ramp, 2).item() == pytest.approx(2.0)
    square = ramp**2
    # One sample at 1.5 lies between 1 and 4; two at 0.5 and 2.5 between 0 and 1, 4 and 9.
    assert RoiAlign(1, 1, aligned=True)(roi, square, 2).item() == pytest.approx(2.5)
    assert RoiAlign(1, 2, aligned=True)(roi, square, 2).item() == pytest.approx((0.5 + 6.5) / 2)


HAND: dict[Any, set[str]] = {
    DensePredictor: {*ALL, "merger", "nms", "clip_box", "where", "by_class", "offset"},
    BboxPredictor: {"bbox_normalize", "bbox_score_thresh", "top_n", "share_location", "nms", "offset"},
    MaxIouMatcher: {
        "negative_iou_thresh",
        "positive_iou_thresh",
        "ignore_iou_thresh",
        "allow_low_quality_match",  # test_parts.py
        "low_quality_thresh",  # test_parts.py
        "offset",
    },
    NaiveSampler: {"batch_size", "positive_percent"},
    AnchorSupervisor: {
        "allowed_border",
        "matcher",
        "sampler",
        "filter_outside_before_match",
        "foreground",
        "offset",
    },
    SigmoidFocal: {"alpha", "gamma", "loss_weight"},
    SmoothL1: {"sigma", "loss_weight"},
    SoftmaxCrossEntropy: {"loss_weight"},
    SigmoidCrossEntropy: {"loss_weight"},
    L1: {"loss_weight"},
    RetinaSubNet: {
        "inplanes",
        "feat_planes",
        "num_classes",
        "normalize",
        "initializer",
        "num_conv",
        "class_activation",
        "init_prior",
        "num_anchors",
        "num_level",
        "share_subnet",
        "share_location",
    },
}
AS_IT_IS = {"name", "ignore_index", "reduction", "class_dim", "num_classes", "init_prior"}
"""Of losses: United-Perception's arguments that may only say what is so, and its `init_prior`, which the head reads."""


@pytest.mark.parametrize("kind", HAND, ids=lambda kind: kind.__name__)
def test_no_argument_is_without_a_number(kind: Any) -> None:
    named = {*inspect.signature(kind).parameters}
    if kind in (SigmoidFocal, SmoothL1, SoftmaxCrossEntropy, SigmoidCrossEntropy, L1):
        named -= AS_IT_IS
    assert named == HAND[kind]
