"""Anchors, matches, samples, codes and levels against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from kdcli.models.detection.boxes import (
    by_level,
    clip,
    decode,
    denormalized,
    encode,
    intersection_over_first,
    inverse,
    iou,
    kept_in_groups,
    large_enough,
    levels_of,
    nms,
    normalized,
)
from kdcli.models.detection.dense_post import HandCraftAnchors
from kdcli.models.detection.losses import (
    L1,
    Moved,
    SigmoidCrossEntropy,
    SigmoidFocal,
    SmoothL1,
    SoftmaxCrossEntropy,
)
from kdcli.models.detection.proposals import NmsMerger, TopMerger
from kdcli.models.detection.targets import (
    IGNORED,
    NEGATIVE,
    AllSampler,
    AnchorSupervisor,
    FirstSampler,
    MaxIouMatcher,
    NaiveSampler,
    RoiSupervisor,
)
from tests.parallel.pretend_cuda import pretend_cuda

CPU = torch.device("cpu")


def test_anchors_of_the_modern_geometry_are_centred_at_the_position() -> None:
    anchors = HandCraftAnchors([1.0, 4.0], [2.0], aligned=True)
    # ratio 1: 16 x 16; ratio 4: half as wide, twice as high
    assert anchors.at_origin(8) == [[-8, -8, 8, 8], [-4, -16, 4, 16]]
    laid = anchors.of_level(2, 2, 8, CPU)
    assert laid.shape == (8, 4)
    assert laid[2].tolist() == [0, -8, 16, 8]  # second column
    assert laid[4].tolist() == [-8, 0, 8, 16]  # second row


def test_anchors_that_count_last_pixels_are_rounded() -> None:
    # The well known boxes of stride 16, scale 8: ratios .5, 1, 2.
    anchors = HandCraftAnchors([0.5, 1, 2], [8], aligned=False).at_origin(16)
    assert anchors == [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]]


def test_strides_may_be_given_and_must_be_enough() -> None:
    anchors = HandCraftAnchors([1.0], [1.0], [4], aligned=True)
    assert anchors.of_levels([(1, 1)], [99], CPU)[0].tolist() == [[-2, -2, 2, 2]]
    with pytest.raises(ValueError, match="strides"):
        anchors.of_levels([(1, 1), (1, 1)], [4, 8], CPU)
    with pytest.raises(ValueError, match="strides"):
        anchors.of_levels([(1, 1)], [], CPU)


def test_given_strides_size_the_boxes_and_leave_the_grid_where_it_is() -> None:
    # Boxes of 4 and of 32 pixels, on maps whose positions are 8 and 16 pixels apart.
    anchors = HandCraftAnchors([1.0], [1.0], [4, 32], aligned=True)
    fine, coarse = anchors.of_levels([(1, 2), (2, 1)], [8, 16], CPU)
    assert fine.tolist() == [[-2, -2, 2, 2], [6, -2, 10, 2]]
    assert coarse.tolist() == [[-16, -16, 16, 16], [-16, 0, 16, 32]]
    # Last pixels inside: the first box is 0..3, and the next one 8 pixels on.
    anchors = HandCraftAnchors([1.0], [1.0], [4], aligned=False)
    assert anchors.of_levels([(1, 2)], [8], CPU)[0].tolist() == [[0, 0, 3, 3], [8, 0, 11, 3]]
    # Another stride of the maps is another grid, also for maps of the same size.
    assert anchors.of_levels([(1, 2)], [16], CPU)[0].tolist() == [[0, 0, 3, 3], [16, 0, 19, 3]]


def test_levels_of_one_size_and_stride_keep_their_own_boxes() -> None:
    anchors = HandCraftAnchors([1.0], [1.0], [4, 32], aligned=True)
    small, large = anchors.of_levels([(1, 1), (1, 1)], [8, 8], CPU)
    assert small.tolist() == [[-2, -2, 2, 2]] and large.tolist() == [[-16, -16, 16, 16]]


def test_overlaps_in_both_geometries() -> None:
    a, b = tensor([[0.0, 0.0, 3.0, 3.0]]), tensor([[0.0, 0.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert iou(a, b, 0)[0].tolist() == pytest.approx([3 / 9, 0])
    assert iou(a, b, 1)[0].tolist() == pytest.approx([8 / 16, 0])
    assert iou(b[1:], b[1:], 0).item() == 0  # empty boxes, not NaN
    assert intersection_over_first(b, a, 0)[:, 0].tolist() == pytest.approx([1, 0])
    assert intersection_over_first(a, b, 1)[0].tolist() == pytest.approx([0.5, 0])


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(0, [0.25, 0.5, math.log(0.5), math.log(2)]), (1, [0.2, 0.4, math.log(3 / 5), math.log(9 / 5)])],
)
def test_codes(offset: int, expected: list[float]) -> None:
    boxes, targets = tensor([[0.0, 0.0, 4.0, 4.0]]), tensor([[2.0, 0.0, 4.0, 8.0, 1.0]])
    deltas = encode(boxes, targets, offset)
    assert deltas[0].tolist() == pytest.approx(expected)
    assert decode(boxes, deltas, offset)[0].tolist() == pytest.approx([2, 0, 4, 8], abs=1e-5)
    stds = [0.1, 0.1, 0.2, 0.2]
    scaled = normalized(deltas, [0, 0, 0, 0], stds)
    assert scaled[0, 0] == pytest.approx(expected[0] * 10)
    torch.testing.assert_close(denormalized(scaled, [0, 0, 0, 0], stds), deltas)


def test_decoding_bounds_growth_and_takes_no_rows() -> None:
    grown = decode(tensor([[0.0, 0.0, 16.0, 16.0]]), tensor([[0.0, 0.0, 100.0, 0.0]]), 0)
    assert grown[0, 2] - grown[0, 0] == pytest.approx(1000.0, rel=1e-4)
    assert decode(torch.zeros(0, 4), torch.zeros(0, 12), 0).shape == (0, 12)


def test_clipping_and_size() -> None:
    boxes = tensor([[-5.0, 3.0, 99.0, 99.0, 0.5]])
    assert clip(boxes, (20, 30), 0)[0].tolist() == [0, 3, 30, 20, 0.5]
    assert clip(boxes, (20, 30), 1)[0].tolist() == [0, 3, 29, 19, 0.5]
    one = tensor([[1.0, 1.0, 2.0, 9.0]])
    assert large_enough(one, 1, 0).tolist() == [False]
    assert large_enough(one, 1, 1).tolist() == [True]


def test_nms_depends_on_the_geometry() -> None:
    boxes = tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 3.0]])
    scores = tensor([0.5, 0.9])
    # edges: 1/3; last pixels inside: 4/8
    assert nms(boxes, scores, 0.4, 0).tolist() == [1, 0]
    assert nms(boxes, scores, 0.4, 1).tolist() == [1]


def matcher(low_quality: bool = True, threshold: float = 0.0) -> MaxIouMatcher:
    return MaxIouMatcher(0.3, 0.7, 0.5, low_quality, threshold, offset=0)


def test_matches() -> None:
    truth = tensor([[0.0, 0.0, 10.0, 10.0, 1.0], [20.0, 0.0, 30.0, 10.0, 2.0]])
    candidates = tensor(
        [
            [0.0, 0.0, 10.0, 9.0],  # 0.9 with the first
            [0.0, 0.0, 10.0, 5.0],  # 0.5: neither
            [20.0, 0.0, 30.0, 4.0],  # 0.4: best of the second
            [50.0, 50.0, 60.0, 60.0],  # nothing
            [20.0, 0.0, 30.0, 2.0],  # 0.2
        ]
    )
    assert matcher().match(candidates, truth, None).tolist() == [0, IGNORED, 1, NEGATIVE, NEGATIVE]
    assert matcher(False).match(candidates, truth, None).tolist() == [0, -2, -2, -1, -1]
    assert matcher(True, 0.45).match(candidates, truth, None).tolist() == [0, -2, -2, -1, -1]
    region = tensor([[45.0, 45.0, 70.0, 70.0], [0.0, 0.0, 10.0, 10.0]])
    assert matcher().match(candidates, truth, region).tolist() == [0, -2, 1, IGNORED, -1]


def test_the_limits_belong_to_nobody() -> None:
    truth = tensor([[0.0, 0.0, 10.0, 10.0, 1.0]])
    half = tensor([[0.0, 0.0, 10.0, 5.0]])
    exact = MaxIouMatcher(0.5, 0.5, 0.5, False, offset=0)
    assert exact.match(half, truth, None).tolist() == [IGNORED]


def test_matching_without_truth_or_candidates() -> None:
    assert matcher().match(torch.zeros(2, 4), torch.zeros(0, 5), None).tolist() == [-1, -1]
    assert matcher().match(torch.zeros(0, 4), torch.ones(1, 5), torch.ones(1, 4)).tolist() == []


def test_a_low_quality_match_goes_to_the_truth_it_overlaps_most() -> None:
    truth = tensor([[0.0, 0.0, 10.0, 10.0, 1.0], [0.0, 0.0, 10.0, 2.0, 2.0]])
    only = tensor([[0.0, 0.0, 10.0, 8.0]])
    assert matcher().match(only, truth, None).tolist() == [0]


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_truth_that_nothing_overlaps_has_no_match(threshold: float) -> None:
    truth = tensor([[0.0, 0.0, 10.0, 10.0, 1.0], [80.0, 80.0, 90.0, 90.0, 2.0]])
    candidates = tensor([[0.0, 0.0, 10.0, 2.0], [50.0, 50.0, 60.0, 60.0], [20.0, 0.0, 30.0, 10.0]])
    # The first is the best of the first truth, by 0.2; all are equally far from the second.
    assert matcher(True, threshold).match(candidates, truth, None).tolist() == [0, NEGATIVE, NEGATIVE]


def test_a_low_quality_match_has_an_overlap_however_near_the_best_it_comes() -> None:
    truth = tensor([[0.0, 0.0, 100.0, 100.0, 1.0]])
    # IoU 0.0005 and 0: within the margin of each other.
    candidates = tensor([[0.0, 0.0, 5.0, 1.0], [200.0, 0.0, 205.0, 1.0]])
    assert matcher().match(candidates, truth, None).tolist() == [0, NEGATIVE]


def sampled(sampler: NaiveSampler | AllSampler, target: torch.Tensor) -> list[list[int]]:
    """The places of the positives and of the negatives that are taken."""
    return [torch.nonzero(mask).flatten().tolist() for mask in sampler.sample(target)]


def test_sampling_fills_up_with_negatives() -> None:
    target = tensor([3, -1, 0, -2, -1, 1, -1])
    assert sampled(FirstSampler(4, 0.5), target) == [[0, 2], [1, 4]]
    assert sampled(FirstSampler(6, 0.9), target) == [[0, 2, 5], [1, 4, 6]]
    assert sampled(AllSampler(), target) == [[0, 2, 5], [1, 4, 6]]
    torch.manual_seed(0)
    positive, negative = sampled(NaiveSampler(4, 0.5), target)
    assert len(positive) == 2 and set(positive) < {0, 2, 5}
    assert len(negative) == 2 and set(negative) < {1, 4, 6}


def test_every_negative_is_as_likely_and_a_seed_gives_the_same() -> None:
    target, counts = tensor([0, *[-1] * 8, -2]), torch.zeros(10)
    torch.manual_seed(0)
    for _ in range(800):
        positive, negative = NaiveSampler(5, 0.5).sample(target)
        assert positive.tolist() == [True] + [False] * 9
        counts += negative
    # Four of eight: 400 times each, give or take four standard deviations of 14.
    assert counts[0] == counts[9] == 0 and bool(((counts[1:9] - 400).abs() < 57).all())
    torch.manual_seed(0)
    again = NaiveSampler(5, 0.5).sample(target)[1]
    torch.manual_seed(0)
    assert again.equal(NaiveSampler(5, 0.5).sample(target)[1])


def random_groups(groups: int, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes that overlap often, which places hold one, and labels of three classes."""
    draws = torch.Generator().manual_seed(1)
    corner = torch.rand(groups, most, 2, generator=draws) * 40
    boxes = torch.cat([corner, corner + 10 + torch.rand(groups, most, 2, generator=draws) * 30], 2)
    there = torch.rand(groups, most, generator=draws) < 0.9
    return boxes, there, torch.randint(3, (groups, most), generator=draws)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("rounds", [1, 32])
def test_groups_are_thinned_together_as_one_by_one(
    offset: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, in chunks and with too few rounds too, keeps what NMS of each group keeps."""
    boxes, there, labels = random_groups(7, 120)
    monkeypatch.setattr("kdcli.models.detection.boxes.ROUNDS", rounds)
    monkeypatch.setattr("kdcli.models.detection.boxes.PAIRS", 2 * 120**2)
    for given in (None, labels):
        alone = kept_in_groups(boxes, there, given, 0.5, offset)
        with pretend_cuda():
            on_device = [
                None if t is None else t.to("cuda", non_blocking=True) for t in (boxes, there, given)
            ]
            together = kept_in_groups(*on_device, 0.5, offset)  # type: ignore[arg-type]
            assert together.is_cuda
        assert torch.equal(alone, together) and 0 < int(alone.sum()) < int(there.sum())


def test_levels_in_both_geometries() -> None:
    # sqrt(w·h): 56, 112, 111.9..., 10, 5000
    boxes = tensor(
        [
            [0.0, 0.0, 56.0, 56.0],
            [0.0, 0.0, 112.0, 112.0],
            [0.0, 0.0, 111.0, 112.0],
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 5000.0, 5000.0],
        ]
    )
    assert levels_of(boxes, [0, 1, 2, 3], 56, 0).tolist() == [0, 1, 0, 0, 3]
    # one pixel more a side: 112 x 113 is past 112
    assert levels_of(boxes, [0, 1, 2, 3], 56, 1).tolist() == [0, 1, 1, 0, 3]
    rois = torch.cat([torch.zeros(5, 1), boxes], 1)
    groups = by_level(rois, [0, 1, 2, 3], 56, 0)
    assert [g.tolist() for g in groups] == [[0, 2, 3], [1], [], [4]]
    order = torch.cat(groups)
    assert order[inverse(order)].tolist() == [0, 1, 2, 3, 4]


def test_class_losses_divide_by_what_counts() -> None:
    target = tensor([1, 0, -1])
    binary = SigmoidCrossEntropy()(torch.zeros(3, 1), target)
    assert binary == pytest.approx(math.log(2))
    soft = SoftmaxCrossEntropy()(torch.zeros(3, 4), target)
    assert soft == pytest.approx(math.log(4))
    # p = 1/2 everywhere: (1/2)² ln 2, times alpha for the true class, 1 - alpha for the others
    focal = SigmoidFocal(num_classes=3)(torch.zeros(3, 2), target, tensor(1))
    assert focal == pytest.approx(0.25 * math.log(2) * (0.25 + 3 * 0.75))
    with pytest.raises(ValueError, match="reduction"):
        SoftmaxCrossEntropy(reduction="sum")  # type: ignore[arg-type]


MOVED = Moved(torch.zeros(1, 4), 0)


def test_location_losses() -> None:
    student, target = tensor([[0.0, 1.0, -3.0, 0.05]]), torch.zeros(1, 4)
    assert L1()(student, target, tensor(2), MOVED) == pytest.approx(4.05 / 2)
    # beta 1/4: 0.05² / 2 / 0.25 below it, |d| - 1/8 above
    assert SmoothL1(sigma=2.0)(student, target, tensor(1), MOVED) == pytest.approx(0.875 + 2.875 + 0.005)


MATCHER = {
    "type": "max_iou",
    "kwargs": {
        "positive_iou_thresh": 0.5,
        "negative_iou_thresh": 0.5,
        "ignore_iou_thresh": 0.5,
        "allow_low_quality_match": False,
    },
}
FIRST = {"type": "no_random", "kwargs": {"batch_size": 4, "positive_percent": 0.5}}


def test_anchor_targets() -> None:
    supervisor = AnchorSupervisor(0, MATCHER, {"type": "keep_all"}, foreground=False, offset=0)
    anchors = tensor([[2.0, 2.0, 12.0, 12.0], [30.0, 30.0, 40.0, 40.0], [-5.0, 0.0, 5.0, 10.0]])
    batch = {
        "boxes": [tensor([[2.0, 2.0, 12.0, 14.0, 3.0], [5.0, 5.0, 5.5, 9.0, 1.0]])],
        "image_info": [(50, 50)],
    }
    found = supervisor.targets([anchors], batch)
    # The third anchor leaves the image, the second box is too thin.
    assert found.classes.tolist() == [[3, 0, -1]]
    assert found.positive.tolist() == [[True, False, False]]
    assert found.deltas[0, 0].tolist() == pytest.approx([0, 0.1, 0, math.log(1.2)])
    only_foreground = AnchorSupervisor(-1, MATCHER, {"type": "keep_all"}, foreground=True, offset=0)
    assert only_foreground.targets([anchors], batch).classes.tolist() == [[1, 0, 0]]


def test_roi_targets_have_the_truth_among_the_candidates() -> None:
    supervisor = RoiSupervisor(
        {"means": [0, 0, 0, 0], "stds": [0.1, 0.1, 0.2, 0.2]}, MATCHER, FIRST, offset=0
    )
    proposals = tensor([[0.0, 0.0, 0.0, 10.0, 8.0, 0.9, 1.0], [0.0, 30.0, 30.0, 60.0, 60.0, 0.8, 1.0]])
    truth = tensor([[0.0, 0.0, 10.0, 10.0, 2.0]])
    found = supervisor.targets(proposals, {"boxes": [truth], "image_info": [(50, 40)]})
    assert found.rois.tolist() == [[0, 0, 0, 10, 8], [0, 0, 0, 10, 10], [0, 30, 30, 40, 50]]
    assert found.classes.tolist() == [2, 2, 0]
    assert found.deltas[0].tolist() == pytest.approx([0, 1.25, 0, 5 * math.log(1.25)])
    assert found.deltas[1:].abs().sum() == 0
    assert found.weights.sum(1).tolist() == [4, 4, 0]


def test_mergers() -> None:
    boxes = tensor(
        [
            [0.0, 0.0, 10.0, 10.0, 0.2, 1.0],
            [0.0, 0.0, 10.0, 9.0, 0.9, 1.0],
            [0.0, 0.0, 10.0, 10.0, 0.5, 2.0],
        ]
    )
    assert TopMerger(2).merge(boxes)[:, 4].tolist() == pytest.approx([0.9, 0.5])
    merged = NmsMerger(5, {"nms_iou_thresh": 0.5}, where="x", offset=0).merge(boxes)
    assert merged[:, 4].tolist() == pytest.approx([0.9, 0.5])
