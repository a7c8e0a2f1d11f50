"""Boxes out of a dense head: scored, decoded, cut to the image, thinned level by level, merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from kdcli.models.detection.blocks import build_block, nms_threshold
from kdcli.models.detection.boxes import clip, decode, large_enough, nms, nms_by_group
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
        found = []
        for image, info in enumerate(image_info):
            levels = [
                self._level(a, s[image].float(), d[image].float(), info)
                for a, s, d in zip(anchors, scores, deltas, strict=True)
            ]
            boxes = torch.cat(levels)
            if self.merger is not None:
                boxes = self.merger.merge(boxes)
            found.append(torch.cat([boxes.new_full((len(boxes), 1), image), boxes], dim=1))
        return torch.cat(found)

    def _level(self, anchors: Tensor, scores: Tensor, deltas: Tensor, info: Sequence[float]) -> Tensor:
        """[N, 6]: box, score, class."""
        boxes = decode(anchors, deltas, self.offset)
        if self.clip_box:
            boxes = clip(boxes, info, self.offset)
        wide = large_enough(boxes, self.min_size, self.offset)
        threshold = self.score_thresh if len(anchors) > SMALL_LEVEL else 0.0
        boxes, scores = boxes[wide], scores[wide]
        if not self.by_class:
            return self._all_classes(boxes, scores, threshold)
        parts = []
        for column in range(scores.shape[1]):
            kept, own = boxes, scores[:, column]
            if threshold > 0:
                chosen = own > threshold
                kept, own = kept[chosen], own[chosen]
            own, order = own.topk(min(self.top_n if self.top_n > 0 else len(own), len(own)))
            kept = kept[order]
            if self.nms is not None:
                order = nms(kept, own, self.nms, self.offset)
                kept, own = kept[order], own[order]
            if self.post_top_n > 0:
                kept, own = kept[: self.post_top_n], own[: self.post_top_n]
            parts.append(_columns(kept, own, torch.full_like(own, column + 1)))
        return torch.cat(parts)

    def _all_classes(self, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        flat = scores.flatten()
        most = self.top_n if self.top_n > 0 else len(flat)
        own, order = flat.topk(min(most, len(boxes), len(flat)))
        if threshold > 0:
            chosen = own > threshold
            own, order = own[chosen], order[chosen]
        kept = boxes[torch.div(order, scores.shape[1], rounding_mode="floor")]
        labels = (order % scores.shape[1] + 1).to(own.dtype)
        if self.nms is not None:
            order = nms_by_group(kept, own, labels, self.nms, self.offset)
            kept, own, labels = kept[order], own[order], labels[order]
        return _columns(kept, own, labels)


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


def _columns(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([boxes, scores[:, None], labels[:, None]], dim=1)
