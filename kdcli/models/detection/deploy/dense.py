"""A dense head's boxes in fixed sizes: what `DensePredictor` finds, for all images at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcli.models.detection.boxes import decode, large_enough
from kdcli.models.detection.dense_post import RetinaPost
from kdcli.models.detection.deploy.candidates import PRESENT, Candidates, clipped, joined
from kdcli.models.detection.deploy.suppression import ABSENT
from kdcli.models.detection.proposals import SMALL_LEVEL, DensePredictor, NmsMerger


def dense_boxes(post: RetinaPost, outputs: Mapping[str, Any]) -> Candidates:
    """What `post` finds in evaluation, in one group, best first; reads `preds`, `strides`, `image_size`."""
    anchors, scores, deltas = post.scored(outputs)
    predictor = post.test_predictor
    levels = [
        _level(predictor, a, s.float(), d.float(), outputs["image_size"])
        for a, s, d in zip(anchors, scores, deltas, strict=True)
    ]
    found = joined(levels)
    merger = predictor.merger
    if isinstance(merger, NmsMerger):
        found = found.thinned(merger.nms, predictor.offset)
    return found.together().best(0 if merger is None else merger.top_n)


def _level(
    predictor: DensePredictor, anchors: Tensor, scores: Tensor, deltas: Tensor, sizes: Tensor
) -> Candidates:
    """anchors [K, 4], scores [B, K, C], deltas [B, K, 4]."""
    count = scores.shape[1]
    moves = deltas.transpose(0, 1).flatten(1)
    boxes = decode(anchors, moves, predictor.offset).view(count, -1, 4).transpose(0, 1)
    if predictor.clip_box:
        boxes = clipped(boxes, sizes, predictor.offset)
    wide = large_enough(boxes.flatten(0, 1), predictor.min_size, predictor.offset).view(-1, count)
    scores = torch.where(wide[..., None], scores, ABSENT)
    threshold = predictor.score_thresh if count > SMALL_LEVEL else 0.0
    if not predictor.by_class:
        return _all_classes(predictor, boxes, scores, wide, threshold)
    if threshold > 0:
        scores = torch.where(scores > threshold, scores, ABSENT)
    found = _of_each_class(boxes, scores, predictor.top_n)
    if predictor.nms is not None:
        found = found.thinned(predictor.nms, predictor.offset)
    return found.best(predictor.post_top_n)


def _of_each_class(boxes: Tensor, scores: Tensor, top_n: int) -> Candidates:
    """Each class a group: its best boxes; boxes [B, K, 4], scores [B, K, C]."""
    count, classes = scores.shape[1:]
    best, order = scores.transpose(1, 2).topk(min(top_n, count) if top_n > 0 else count, dim=2)
    where = order.flatten(1)[..., None].expand(-1, -1, 4)
    return Candidates(
        boxes=boxes.gather(1, where).view(*order.shape, 4),
        scores=best,
        labels=torch.arange(classes, device=boxes.device)[:, None].expand_as(order),
        classes=classes,
    )


def _all_classes(
    predictor: DensePredictor, boxes: Tensor, scores: Tensor, wide: Tensor, threshold: float
) -> Candidates:
    """One group of the best over all classes; wide: bool [B, K]."""
    count, classes = scores.shape[1:]
    flat = scores.flatten(1)
    most = predictor.top_n if predictor.top_n > 0 else count
    best, order = flat.topk(min(most, count), dim=1)
    # As many as boxes are large enough, at most.
    rank = torch.arange(best.shape[1], device=best.device)
    chosen = (rank < wide.sum(1, keepdim=True)) & (best > (threshold if threshold > 0 else PRESENT))
    where = torch.div(order, classes, rounding_mode="floor")[..., None].expand(-1, -1, 4)
    found = Candidates(
        boxes=boxes.gather(1, where)[:, None],
        scores=best[:, None],
        labels=(order % classes)[:, None],
        classes=classes,
    ).where(chosen[:, None])
    return found if predictor.nms is None else found.thinned(predictor.nms, predictor.offset)
