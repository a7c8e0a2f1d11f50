"""Targets of anchors by the objects' own statistics (ATSS) or by the head's answers (SimOTA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.models.detection.blocks import build_block
from kdcli.models.detection.boxes import (
    decode,
    encode,
    host_counts,
    iou,
    large_enough,
    numbers,
    paired_iou,
    true_places,
)
from kdcli.models.detection.losses import IGNORED_TARGET
from kdcli.models.detection.targets import (
    SMALLEST_TRUTH,
    AnchorTargets,
    Answers,
    anchor_supervisor,
    ignores_of,
)
from kdcli.spec.ranges import Count, Positive, Width

Quality = Literal["iou", "centerness"]


@dataclass(frozen=True, slots=True)
class Truth:
    """The objects of an image of the batch [M, 5], at least one; wide: bool [M], those that anchors can be of."""

    image: int
    objects: Tensor
    wide: Tensor


class Assigner:
    """Gives each anchor the object that it is trained towards, or none; every anchor counts in the class loss.

    Anchors whose centre lies in an ignored region count nowhere, except in an image without objects, whose
    anchors are all background, as in United-Perception. quality: the target of an IoU branch, the overlap of
    the predicted box or how near the anchor's centre is to the object's.
    """

    def __init__(self, quality: Quality | None, *, offset: int) -> None:
        self.quality, self.offset = quality, offset

    def assign(
        self, levels: Sequence[Tensor], truths: Sequence[Truth], batch: Mapping[str, Any], answers: Answers
    ) -> list[Tensor]:
        """Of each truth, which names its image: int64 [K], the row of the object of each anchor, -1 for none."""
        raise NotImplementedError(type(self).__name__)

    @torch.no_grad()
    def targets(self, levels: Sequence[Tensor], batch: Mapping[str, Any], answers: Answers) -> AnchorTargets:
        """levels: anchors [K_i, 4] of each; reads `boxes`, `ignores`, `image_info`, `strides`."""
        anchors = torch.cat(list(levels))
        centres = centres_of(anchors)
        truths: Sequence[Tensor] = batch["boxes"]
        classes = anchors.new_zeros((len(truths), len(anchors)), dtype=torch.int64)
        deltas = anchors.new_zeros((len(truths), len(anchors), 4))
        positive = torch.zeros_like(classes, dtype=torch.bool)
        there = [
            Truth(image, truth.to(anchors.dtype), large_enough(truth, SMALLEST_TRUTH, self.offset))
            for image, truth in enumerate(truths)
            if len(truth)
        ]
        for truth, which in zip(there, self.assign(levels, there, batch, answers), strict=True):
            image, taken = truth.image, which >= 0
            own = truth.objects[which.clamp(min=0)]
            classes[image] = torch.where(taken, own[:, 4].to(torch.int64), 0)
            deltas[image] = torch.where(taken[:, None], encode(anchors, own, self.offset), 0.0)
            ignores = ignores_of(batch, image)
            if ignores is not None and len(ignores):
                inside = (to_edges(centres, ignores.to(anchors.dtype)).amin(-1) > 0).any(1)
                # An image without objects that are large enough has no ignored regions.
                inside = inside & truth.wide.any()
                classes[image] = torch.where(inside, IGNORED_TARGET, classes[image])
                taken = taken & ~inside
            positive[image] = taken
        quality = self._quality(anchors, deltas, positive, answers) if self.quality else None
        return AnchorTargets(classes, deltas, positive, quality)

    def _quality(self, anchors: Tensor, deltas: Tensor, positive: Tensor, answers: Answers) -> Tensor:
        rows = torch.nonzero(positive.flatten()).flatten()
        own = anchors[rows % len(anchors)]
        objects = decode(own, deltas.flatten(0, 1)[rows], self.offset)
        if self.quality == "iou":
            predicted = decode(own, answers.deltas.flatten(0, 1)[rows].float(), self.offset)
            return paired_iou(predicted, objects, self.offset)
        edges = to_edges(centres_of(own), objects, paired=True)
        nearest, farthest = (
            torch.stack([edges[:, 0::2].amin(1), edges[:, 1::2].amin(1)]),
            torch.stack([edges[:, 0::2].amax(1), edges[:, 1::2].amax(1)]),
        )
        return (nearest / farthest).clamp(min=0).prod(0).sqrt().nan_to_num(0.0)


def centres_of(boxes: Tensor) -> Tensor:
    """[N, 2] (x, y), halfway between the numbers of the edges in either geometry."""
    return (boxes[:, :2] + boxes[:, 2:4]) / 2


def centres_in(truth: Tensor, size: Sequence[float]) -> Tensor:
    """The centres of objects [M, >=4], cut to the image: [M, 2] (x, y); size begins with height and width."""
    limit = numbers([float(size[1]), float(size[0])], truth)
    return torch.minimum(centres_of(truth).clamp(min=0), limit)


def to_edges(points: Tensor, boxes: Tensor, paired: bool = False) -> Tensor:
    """How far points [N, 2] lie inside the left, upper, right and lower edges of boxes: [N, M, 4].

    paired: of the box in the point's row, [N, 4].
    """
    if not paired:
        points = points[:, None]
    return torch.cat([points - boxes[..., :2], boxes[..., 2:4] - points], dim=-1)


class Atss(Assigner):
    """Adaptive training sample selection.

    Of every level the top_n anchors nearest to an object's centre are its candidates; those whose IoU with
    it reaches the candidates' mean plus standard deviation, and whose centre lies inside it by more than
    0.01 pixels, are positive. An anchor of several objects goes to the one it overlaps most.
    Source: "Bridging the Gap Between Anchor-based and Anchor-free Detection", arXiv:1912.02424.
    """

    def __init__(
        self,
        top_n: Count = 9,
        use_centerness: bool = False,
        use_iou: bool = False,
        gt_encode: Literal[True] = True,
        *,
        offset: int,
    ) -> None:
        super().__init__("iou" if use_iou else "centerness" if use_centerness else None, offset=offset)
        if not gt_encode:
            raise ValueError("`gt_encode` is true")
        self.top_n = top_n

    def assign(
        self, levels: Sequence[Tensor], truths: Sequence[Truth], batch: Mapping[str, Any], answers: Answers
    ) -> list[Tensor]:
        """Of each truth: int64 [K], the row of the object of each anchor, -1 for none."""
        return [self._of_image(levels, truth, batch["image_info"][truth.image]) for truth in truths]

    def _of_image(self, levels: Sequence[Tensor], own_truth: Truth, image_info: Sequence[float]) -> Tensor:
        anchors, truth = torch.cat(list(levels)), own_truth.objects
        centres = centres_of(anchors)
        overlaps = iou(anchors, truth, self.offset)
        distances = (centres[:, None] - centres_in(truth, image_info)).norm(dim=-1)
        candidates, first = [], 0
        for level in levels:
            own = distances[first : first + len(level)]
            nearest = own.topk(min(self.top_n, len(level)), dim=0, largest=False).indices
            candidates.append(nearest + first)
            first += len(level)
        chosen = torch.cat(candidates)
        shared = overlaps.gather(0, chosen)
        good = shared >= shared.mean(0) + shared.std(0)
        inside = to_edges(centres, truth).amin(-1).gather(0, chosen) > 0.01
        taken = torch.full_like(overlaps, -1.0)
        taken.scatter_(0, chosen, torch.where(good & inside & own_truth.wide, shared, -1.0))
        greatest, which = taken.max(1)
        return torch.where(greatest >= 0, which, -1)


class SimOtaMatcher:
    """Each object takes the anchors that it costs least, as many as it overlaps in sum.

    Candidates have their place inside an object or within `radius` strides of its centre. The cost is the
    binary cross entropy of the scores summed over classes, 3 times -log IoU of the predicted box, and 100000
    where the place is not both inside the object and near its centre. An object takes as many anchors as
    the sum of its candidate_k greatest IoUs, at least one; an anchor that several take goes to the cheapest.
    As in United-Perception a place is half a stride right and below the anchor's centre.
    Source: "YOLOX", arXiv:2107.08430.
    """

    def __init__(
        self,
        num_classes: Width,
        use_SimOTA: bool = True,
        center_sample: Literal[True] = True,
        pos_radius: Positive = 1,
        candidate_k: Count = 10,
        radius: Positive = 2.5,
        *,
        offset: int,
    ) -> None:
        if not use_SimOTA:
            raise ValueError(
                "`use_SimOTA` is true: United-Perception's other way, Sinkhorn's, does not run there"
            )
        if not center_sample:
            raise ValueError("`center_sample` is true")
        self.candidate_k, self.radius, self.offset = candidate_k, radius, offset

    def near(
        self, truth: Truth, anchors: Tensor, strides: Tensor, size: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Bool [K, M], twice: whose place lies inside the object or near its centre, and whose lies in both.

        anchors [K, 4] on levels of `strides` [K]; size: (height, width) of the image.
        """
        places = centres_of(anchors) + 0.5 * strides[:, None]
        inside = to_edges(places, truth.objects).amin(-1) > 0
        middles = centres_in(truth.objects, size)
        near = (places[:, None] - middles).abs().amax(-1) < self.radius * strides[:, None]
        return (inside | near) & truth.wide, inside & near

    def match(self, truth: Truth, anchors: Tensor, both: Tensor, scores: Tensor, deltas: Tensor) -> Tensor:
        """int64 [R]: the row of the object of each anchor [R, 4], -1 for none.

        both: bool [R, M], as `near` gives it. scores [R, C] in 0..1, deltas [R, 4].
        """
        objects, count = truth.objects, len(anchors)
        overlaps = iou(decode(anchors, deltas, self.offset), objects, self.offset)
        wanted = F.one_hot(objects[:, 4].to(torch.int64) - 1, scores.shape[1]).to(scores.dtype)
        shape = (count, len(objects), scores.shape[1])
        entropy = F.binary_cross_entropy(
            scores[:, None].expand(shape), wanted[None].expand(shape), reduction="none"
        ).sum(-1)
        cost = entropy - 3.0 * torch.log(overlaps + 1e-8) + 1e5 * ~both
        cost = torch.where(truth.wide, cost, torch.inf)
        most = min(self.candidate_k, count)
        wished = overlaps.topk(most, dim=0).values.sum(0).int().clamp(min=1)
        # The sum of so many overlaps is at most their number.
        order = cost.topk(most, dim=0, largest=False).indices
        among = torch.arange(most, device=cost.device)[:, None] < wished
        taken = torch.zeros_like(cost, dtype=torch.bool).scatter(0, order, among & truth.wide)
        cheapest = torch.where(taken.sum(1) > 1, cost.argmin(1), taken.int().argmax(1))
        return torch.where(taken.any(1), cheapest, -1)


class SimOta(Assigner):
    """Targets by SimOTA from the head's own scores and boxes; use_centerness_score: from the IoU branch too.

    matcher: the block `{type: retina_ota, kwargs}`. num_classes counts the background.
    """

    def __init__(
        self,
        num_classes: Width,
        matcher: Mapping[str, Any],
        use_centerness_score: bool = False,
        norm_on_bbox: bool = False,
        gt_encode: Literal[True] = True,
        *,
        offset: int,
    ) -> None:
        super().__init__("centerness" if use_centerness_score else None, offset=offset)
        if not gt_encode:
            raise ValueError("`gt_encode` is true")
        self.matcher: SimOtaMatcher = build_block(
            matcher, "cfg.roi_supervisor.kwargs.matcher", {"retina_ota": SimOtaMatcher}, offset=offset
        )

    def assign(
        self, levels: Sequence[Tensor], truths: Sequence[Truth], batch: Mapping[str, Any], answers: Answers
    ) -> list[Tensor]:
        """Of each truth: int64 [K], the row of the object of each anchor, -1 for none.

        One wait for the device, for how many candidates the images have.
        """
        anchors = torch.cat(list(levels))
        strides = torch.cat(
            [a.new_full((len(a),), float(s)) for a, s in zip(levels, batch["strides"], strict=False)]
        )
        near = [
            self.matcher.near(truth, anchors, strides, batch["image_info"][truth.image][:2])
            for truth in truths
        ]
        candidates = [either.any(1) for either, _ in near]
        counts = host_counts(candidates) if candidates else []
        found = []
        for truth, (_, both), mask, count in zip(truths, near, candidates, counts, strict=True):
            which = torch.full_like(strides, -1, dtype=torch.int64)
            if count:
                rows, image = true_places(mask, count), truth.image
                scores = answers.logits[image][rows].float().sigmoid()
                if self.quality is not None and answers.iou is not None:
                    scores = (scores * answers.iou[image][rows].float().sigmoid()[:, None]).sqrt()
                deltas = answers.deltas[image][rows].float()
                which[rows] = self.matcher.match(truth, anchors[rows], both[rows], scores, deltas)
            found.append(which)
        return found


ANCHOR_SUPERVISORS: dict[str, Any] = {
    "rpn": anchor_supervisor(True),
    "retina": anchor_supervisor(False),
    "atss": Atss,
    "retina_ota": SimOta,
}
