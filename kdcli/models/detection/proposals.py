"""Boxes out of a dense head: scored, decoded, cut to the image, thinned level by level, merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.models.detection.blocks import build_block, nms_threshold
from kdcli.models.detection.boxes import (
    boxes_at,
    clip_limit,
    decode,
    kept_in_groups,
    large_enough,
    nms_by_group,
    true_places,
)
from kdcli.spec.ranges import Count, Range, Share

SMALL_LEVEL = 120
"""A level of at most this many anchors keeps boxes of any score."""


Most = Annotated[int, Range(at_least=-1)]
Size = Annotated[float, Range(at_least=0, at_most=65536)]


class DensePredictor:
    """Boxes of every level: size filter, scores above pre_nms_score_thresh, top-k, NMS, then a merger.

    Each class of each level and image is treated alone. A top_n of 0 or less means all. by_class false
    (base_multicls): the top-k runs over all classes of a level at once.
    """

    def __init__(
        self,
        pre_nms_score_thresh: Share,
        pre_nms_top_n: Most,
        post_nms_top_n: Most,
        roi_min_size: Size,
        merger: Mapping[str, Any] | None = None,
        nms: Mapping[str, Any] | None = None,
        clip_box: bool = True,
        *,
        where: str,
        by_class: bool = True,
        offset: int,
    ) -> None:
        self.score_thresh, self.top_n, self.post_top_n = pre_nms_score_thresh, pre_nms_top_n, post_nms_top_n
        self.min_size, self.clip_box, self.by_class, self.offset = roi_min_size, clip_box, by_class, offset
        self.nms = None if nms is None else nms_threshold(nms, f"{where}.kwargs.nms")
        self.merger = (
            None
            if merger is None
            else build_block(merger, f"{where}.kwargs.merger", MERGERS, offset=offset, where=where)
        )

    @torch.no_grad()
    def predict(
        self,
        anchors: Sequence[Tensor],
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_info: Sequence[Sequence[float]],
    ) -> Tensor:
        """float32 [N, 7]: image, x1, y1, x2, y2, score, class from 1; images in order.

        Per level: anchors [K, 4], scores [B, K, C] in 0..1, deltas [B, K, 4].
        """
        limits = torch.stack([clip_limit(info, self.offset, anchors[0]) for info in image_info])
        levels = [
            self._level(a, s.float(), d.float(), limits)
            for a, s, d in zip(anchors, scores, deltas, strict=True)
        ]
        rows, there = _side_by_side(levels)
        if self.nms is not None:
            labels = None if self.by_class else rows[..., 5].flatten(0, 1)
            kept = kept_in_groups(
                rows[..., :4].flatten(0, 1), there.flatten(0, 1), labels, self.nms, self.offset
            )
            there = kept.view_as(there)
        if self.by_class and self.post_top_n > 0:
            there = there & (there.cumsum(2) <= self.post_top_n)
        # The second wait for the device, for how many boxes each image has; the first is the NMS's.
        counts: list[int] = there.flatten(1).sum(1).tolist()
        found = []
        own = rows.flatten(0, 2)[true_places(there.flatten(), sum(counts))]
        for image, boxes in enumerate(torch.split(own, counts)):
            merged = boxes if self.merger is None else self.merger.merge(boxes)
            found.append(torch.cat([merged.new_full((len(merged), 1), image), merged], dim=1))
        return torch.cat(found)

    def _level(self, anchors: Tensor, scores: Tensor, deltas: Tensor, limits: Tensor) -> Rows:
        """The best boxes of one level, a group for each class, or one group of all; limits: [B, 4]."""
        images, count, classes = scores.shape
        boxes = decode(anchors.repeat(images, 1), deltas.flatten(0, 1), self.offset).view(images, count, 4)
        if self.clip_box:
            boxes = torch.minimum(boxes.clamp(min=0), limits[:, None])
        wide = large_enough(boxes.flatten(0, 1), self.min_size, self.offset).view(images, count)
        threshold = self.score_thresh if count > SMALL_LEVEL else 0.0
        fit = wide[..., None].expand_as(scores)
        if threshold > 0:
            fit = fit & (scores > threshold)
        scores = torch.where(fit, scores, ABSENT)
        if not self.by_class:
            scores = scores.flatten(1)[:, None]
            best, order = scores.topk(self._most(scores, count), dim=2)
            # At most as many as there are boxes that are large enough.
            few = torch.arange(best.shape[2], device=best.device) < wide.sum(1)[:, None, None]
            best = torch.where(few, best, ABSENT)
            labels, order = order % classes + 1, torch.div(order, classes, rounding_mode="floor")
        else:
            scores = scores.transpose(1, 2)
            best, order = scores.topk(self._most(scores, count), dim=2)
            labels = (torch.arange(classes, device=best.device) + 1)[:, None].expand_as(order)
        rows = torch.cat([boxes_at(boxes, order), best[..., None], labels[..., None].to(best.dtype)], dim=3)
        return rows, best >= 0

    def _most(self, scores: Tensor, count: int) -> int:
        """How many of the scores [B, G, N] of a group are looked at; one wait where it is all that there are."""
        if self.top_n > 0:
            return min(self.top_n, count, scores.shape[2])
        return min(count, int((scores >= 0).sum(2).amax())) if scores.numel() else 0


Rows: TypeAlias = tuple[Tensor, Tensor]
"""Boxes [B, G, m, 6] (box, score, class), best first in each group, and which places hold one, bool [B, G, m]."""

ABSENT = -1.0
"""The score of a place without a box."""


def _side_by_side(levels: Sequence[Rows]) -> Rows:
    """The groups of all levels, level by level, filled up to the size of the largest."""
    most = max(there.shape[2] for _, there in levels)
    rows = [F.pad(row, (0, 0, 0, most - row.shape[2])) for row, _ in levels]
    there = [F.pad(place, (0, most - place.shape[2])) for _, place in levels]
    return torch.cat(rows, 1), torch.cat(there, 1)


class TopMerger:
    """The best top_n boxes of all levels."""

    def __init__(self, top_n: Count, topk_in_a_batch: bool = False) -> None:
        if topk_in_a_batch:
            raise ValueError("`topk_in_a_batch` is false: proposals of an image don't depend on the others")
        self.top_n = top_n

    def merge(self, boxes: Tensor) -> Tensor:
        """[N, 6] of one image, best first."""
        return boxes[boxes[:, 4].topk(min(self.top_n, len(boxes))).indices]


class NmsMerger:
    """NMS within each class over all levels, then the best top_n; 0 or less: all."""

    def __init__(self, top_n: Most, nms: Mapping[str, Any], *, where: str, offset: int) -> None:
        self.top_n, self.offset = top_n, offset
        self.nms = nms_threshold(nms, f"{where}.kwargs.merger.kwargs.nms")

    def merge(self, boxes: Tensor) -> Tensor:
        """[N, 6] of one image, best first."""
        kept = nms_by_group(boxes[:, :4], boxes[:, 4], boxes[:, 5], self.nms, self.offset)
        return boxes[kept[: self.top_n] if self.top_n > 0 else kept]


MERGERS: dict[str, Any] = {"rpn": TopMerger, "retina": NmsMerger, "retina_multicls": NmsMerger}


def dense_predictor(by_class: bool) -> Any:
    """The constructor of one kind of predictor, for a block."""

    def build(
        pre_nms_score_thresh: Share,
        pre_nms_top_n: Most,
        post_nms_top_n: Most,
        roi_min_size: Size,
        merger: Mapping[str, Any] | None = None,
        nms: Mapping[str, Any] | None = None,
        clip_box: bool = True,
        *,
        where: str,
        offset: int,
    ) -> DensePredictor:
        return DensePredictor(
            pre_nms_score_thresh,
            pre_nms_top_n,
            post_nms_top_n,
            roi_min_size,
            merger,
            nms,
            clip_box,
            where=where,
            by_class=by_class,
            offset=offset,
        )

    return build


DENSE_PREDICTORS = {"base": dense_predictor(True), "base_multicls": dense_predictor(False)}
