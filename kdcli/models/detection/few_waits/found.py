"""Detections of torchvision's detectors, of all images at once: three waits after the last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdcli.models.detection.boxes import boxes_at, clip_limit, kept_in_groups, true_places
from kdcli.models.detection.few_waits.dense import answers
from kdcli.models.detection.few_waits.matching import decoded

SMALLEST_SIDE = 1e-2
"""Boxes of the second stage whose width or height is below this are dropped."""

ABSENT = -1.0
"""The score of a place without a box."""


def second_stage(
    heads: Any,
    features: Mapping[str, Tensor],
    proposals: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    targets: None = None,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Faster R-CNN's detections of proposals [P, 4] of each image, and no losses."""
    logits, moves = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
    counts = [len(own) for own in proposals]
    boxes = torch.split(decoded(heads.box_coder, moves, torch.cat(list(proposals)))[:, 1:], counts)
    scores = pad_sequence(list(torch.split(logits.softmax(-1)[:, 1:], counts)), True, ABSENT)
    cut = clipped(pad_sequence(list(boxes), True).flatten(1, 2), sizes)
    labels = torch.arange(1, scores.shape[2] + 1, device=scores.device).expand_as(scores)
    wide = ((cut[..., 2:] - cut[..., :2]) >= SMALLEST_SIDE).all(-1)
    scores = scores.flatten(1)
    there = wide & (scores > heads.score_thresh)
    found = thinned(heads, cut, torch.where(there, scores, ABSENT), labels.flatten(1))
    return found, {}


def retinanet(detector: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """RetinaNet's detections."""
    maps, outputs, anchors, _ = answers(detector, images, None)
    boxes, scores, labels = _of_levels(detector, maps, outputs, anchors, outputs["cls_logits"].sigmoid())
    return thinned(detector, clipped(boxes, _sizes(images)), scores, labels)


def fcos(detector: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """FCOS's detections; their score is the geometric mean of class and centreness."""
    maps, outputs, anchors, _ = answers(detector, images, None)
    scores = torch.sqrt(outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid())
    boxes, scores, labels = _of_levels(detector, maps, outputs, anchors, scores)
    return thinned(detector, clipped(boxes, _sizes(images)), scores, labels)


def ssd(detector: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """SSD's detections: the best boxes of each class, then NMS within each."""
    _, outputs, anchors, _ = answers(detector, images, None)
    moves, places = outputs["bbox_regression"], torch.stack(anchors)
    boxes = decoded(detector.box_coder, moves.flatten(0, 1), places.flatten(0, 1)).view_as(moves)
    by_class = outputs["cls_logits"].softmax(-1)[..., 1:].transpose(1, 2)
    by_class = torch.where(by_class > detector.score_thresh, by_class, ABSENT)
    best, order = by_class.topk(min(detector.topk_candidates, by_class.shape[2]), dim=2)
    labels = (torch.arange(best.shape[1], device=best.device) + 1)[:, None].expand_as(best)
    cut = clipped(boxes_at(boxes, order.flatten(1)), _sizes(images))
    return thinned(detector, cut, best.flatten(1), labels.flatten(1))


def _of_levels(
    detector: Any,
    maps: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
    anchors: Sequence[Tensor],
    scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best topk_candidates of each level: boxes [B, n, 4], scores [B, n], labels [B, n]; scores: [B, K, C]."""
    columns = scores.shape[2]
    each = scores.shape[1] // sum(level.shape[2] * level.shape[3] for level in maps)
    counts = [int(level.shape[2] * level.shape[3]) * each for level in maps]
    scores = torch.where(scores > detector.score_thresh, scores, ABSENT)
    found, first = [], 0
    for level, count in zip(torch.split(scores, counts, dim=1), counts, strict=True):
        best, order = level.flatten(1).topk(min(detector.topk_candidates, count * columns), dim=1)
        found.append((best, torch.div(order, columns, rounding_mode="floor") + first, order % columns))
        first += count
    best, places, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    moves, own = boxes_at(outputs["bbox_regression"], places), boxes_at(torch.stack(list(anchors)), places)
    if hasattr(detector.box_coder, "weights"):
        return decoded(detector.box_coder, moves.flatten(0, 1), own.flatten(0, 1)).view_as(own), best, labels
    return detector.box_coder.decode(moves, own), best, labels


def thinned(settings: Any, boxes: Tensor, scores: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """What NMS within each label of each image keeps, at most detections_per_img, best first; three waits.

    boxes: [B, N, 4]. scores: [B, N], less than 0 where there is no box. settings: its nms_thresh and detections_per_img
    count. torchvision moves the labels of few boxes apart by adding to the boxes, which rounds them; here nothing is
    rounded.
    """
    most = int((scores >= 0).sum(1).amax())
    best, order = scores.topk(most, dim=1)
    boxes, labels = boxes_at(boxes, order), labels.gather(1, order)
    kept = kept_in_groups(boxes, best >= 0, labels, settings.nms_thresh, 0)
    kept = kept & (kept.cumsum(1) <= settings.detections_per_img)
    counts: list[int] = kept.sum(1).tolist()
    found = []
    for image, count in enumerate(counts):
        rows = true_places(kept[image], count)
        found.append(
            {"boxes": boxes[image, rows], "scores": best[image, rows], "labels": labels[image, rows]}
        )
    return found


def _sizes(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(int(image.shape[-2]), int(image.shape[-1])) for image in images]


def clipped(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes [B, ..., 4] cut to their image of (height, width)."""
    limits = torch.stack([clip_limit(size, 0, boxes) for size in sizes])
    return torch.minimum(boxes.clamp(min=0), limits.view(-1, *[1] * (boxes.dim() - 2), 4))
