"""Targets of anchors by the objects' own statistics (ATSS) or by the head's answers (SimOTA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.models.detection.blocks import build_block
from kdcli.models.detection.boxes import decode, encode, iou, large_enough, paired_iou
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


class Assigner:
    """Gives each anchor the object that it is trained towards, or none; every anchor counts in the class loss.

    Anchors whose centre lies in an ignored region count nowhere, except in an image without objects, whose
    anchors are all background, as in United-Perception. quality: the target of an IoU branch, the overlap of
    the predicted box or how near the anchor's centre is to the object's.
    """

    def __init__(self, quality: Quality | None, *, offset: int) -> None:
        self.quality, self.offset = quality, offset

    def assign(
        self, levels: Sequence[Tensor], truth: Tensor, batch: Mapping[str, Any], image: int, answers: Answers
    ) -> Tensor:
        """int64 [K]: the row of truth [M, 5] of each anchor, -1 for none. M is at least 1."""
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
        for image, truth in enumerate(truths):
            truth = truth[large_enough(truth, SMALLEST_TRUTH, self.offset)].to(anchors.dtype)
            if not len(truth):
                continue
            which = self.assign(levels, truth, batch, image, answers)
            taken = which >= 0
            matched = truth[which[taken]]
            classes[image, taken] = matched[:, 4].to(torch.int64)
            deltas[image, taken] = encode(anchors[taken], matched, self.offset)
            ignores = ignores_of(batch, image)
            if ignores is not None and len(ignores):
                inside = (to_edges(centres, ignores.to(anchors.dtype)).amin(-1) > 0).any(1)
                classes[image, inside] = IGNORED_TARGET
                taken = taken & ~inside
            positive[image] = taken
        quality = self._quality(anchors, deltas, positive, answers) if self.quality else None
        return AnchorTargets(classes, deltas, positive, quality)

    def _quality(self, anchors: Tensor, deltas: Tensor, positive: Tensor, answers: Answers) -> Tensor:
        own = anchors.expand(len(positive), -1, -1)[positive]
        objects = decode(own, deltas[positive], self.offset)
        if self.quality == "iou":
            return paired_iou(
                decode(own, answers.deltas[positive].float(), self.offset), objects, self.offset
            )
        edges = to_edges(centres_of(own), objects, paired=True)
        nearest, farthest = (
            torch.stack([edges[:, 0::2].amin(1), edges[:, 1::2].amin(1)]),
            torch.stack([edges[:, 0::2].amax(1), edges[:, 1::2].amax(1)]),
        )
        return (nearest / farthest).clamp(min=0).prod(0).sqrt().nan_to_num(0.0)


def centres_of(boxes: Tensor) -> Tensor:
    """[N, 2] (x, y), halfway between the numbers of the edges in either geometry."""
    return (boxes[:, :2] + boxes[:, 2:4]) / 2


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
        self, levels: Sequence[Tensor], truth: Tensor, batch: Mapping[str, Any], image: int, answers: Answers
    ) -> Tensor:
        """int64 [K]: the row of truth [M, 5] of each anchor, -1 for none."""
        anchors = torch.cat(list(levels))
        centres = centres_of(anchors)
        overlaps = iou(anchors, truth, self.offset)
        distances = (centres[:, None] - self._centres(truth, batch["image_info"][image])).norm(dim=-1)
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
        taken.scatter_(0, chosen, torch.where(good & inside, shared, -1.0))
        greatest, which = taken.max(1)
        return torch.where(greatest >= 0, which, -1)

    def _centres(self, truth: Tensor, image_info: Sequence[float]) -> Tensor:
        size = truth.new_tensor([float(image_info[1]), float(image_info[0])])
        return torch.minimum(centres_of(truth).clamp(min=0), size)


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

    def match(
        self,
        truth: Tensor,
        anchors: Tensor,
        strides: Tensor,
        size: Sequence[float],
        scores: Tensor,
        deltas: Tensor,
    ) -> Tensor:
        """int64 [K]: the row of truth [M, 5] of each anchor, -1 for none.

        anchors [K, 4] on levels of `strides` [K]; size: (height, width) of the image. scores [K, C] in
        0..1, deltas [K, 4].
        """
        places = centres_of(anchors) + 0.5 * strides[:, None]
        limit = truth.new_tensor([float(size[1]), float(size[0])])
        middles = torch.minimum(centres_of(truth).clamp(min=0), limit)
        inside = to_edges(places, truth).amin(-1) > 0
        near = (places[:, None] - middles).abs().amax(-1) < self.radius * strides[:, None]
        rows = torch.nonzero((inside | near).any(1)).flatten()
        which = torch.full_like(strides, -1, dtype=torch.int64)
        if not len(rows):
            return which
        overlaps = iou(decode(anchors[rows], deltas[rows], self.offset), truth, self.offset)
        wanted = F.one_hot(truth[:, 4].to(torch.int64) - 1, scores.shape[1]).to(scores.dtype)
        shape = (len(rows), len(truth), scores.shape[1])
        entropy = F.binary_cross_entropy(
            scores[rows][:, None].expand(shape), wanted[None].expand(shape), reduction="none"
        ).sum(-1)
        cost = entropy - 3.0 * torch.log(overlaps + 1e-8) + 1e5 * ~(inside & near)[rows]
        greatest = overlaps.topk(min(self.candidate_k, len(rows)), dim=0).values
        taken = torch.zeros_like(cost, dtype=torch.bool)
        for column, most in enumerate(greatest.sum(0).int().clamp(min=1).tolist()):
            taken[cost[:, column].topk(most, largest=False).indices, column] = True
        cheapest = torch.where(taken.sum(1) > 1, cost.argmin(1), taken.int().argmax(1))
        which[rows] = torch.where(taken.any(1), cheapest, -1)
        return which


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
        self, levels: Sequence[Tensor], truth: Tensor, batch: Mapping[str, Any], image: int, answers: Answers
    ) -> Tensor:
        """int64 [K]: the row of truth [M, 5] of each anchor, -1 for none."""
        anchors = torch.cat(list(levels))
        strides = torch.cat(
            [a.new_full((len(a),), float(s)) for a, s in zip(levels, batch["strides"], strict=False)]
        )
        scores = answers.logits[image].float().sigmoid()
        if self.quality is not None and answers.iou is not None:
            scores = (scores * answers.iou[image].float().sigmoid()[:, None]).sqrt()
        return self.matcher.match(
            truth, anchors, strides, batch["image_info"][image][:2], scores, answers.deltas[image].float()
        )


ANCHOR_SUPERVISORS: dict[str, Any] = {
    "rpn": anchor_supervisor(True),
    "retina": anchor_supervisor(False),
    "atss": Atss,
    "retina_ota": SimOta,
}
