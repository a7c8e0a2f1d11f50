"""A detector as one function from images to boxes, which exporters can follow."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.models.detection.bbox_post import BboxPost
from kdcli.models.detection.boxes import (
    boxes_at,
    decode,
    denormalized,
    large_enough,
    levels_of,
    quadruples,
)
from kdcli.models.detection.dense_post import RetinaPost
from kdcli.models.detection.deploy.candidates import ABSENT, PRESENT, Candidates, clipped, joined
from kdcli.models.detection.deploy.whole import is_known, whole_boxes
from kdcli.models.detection.proposals import SMALL_LEVEL, DensePredictor, NmsMerger
from kdcli.models.detection.roi_pool import BboxFCPre
from kdcli.models.detection.whole import TorchvisionDetector
from kdcli.models.network import Network

OUTPUTS = ("boxes", "scores", "labels", "image_index")


class DeployedDetector(nn.Module):
    """The network's own modules; those that make boxes run in fixed sizes. Takes the network over.

    forward(image [B, 3, H, W], normalised and padded right and below, image_size float [B, 2]: height and
    width of each image without its padding) -> boxes float32 [N, 4] (x1, y1, x2, y2 in pixels, edges),
    scores [N], labels int64 [N] from 0, image_index int64 [N]: which image of the batch; images in order,
    best first.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net.eval()

    @staticmethod
    def follows(net: nn.Module) -> bool:
        """Whether all that makes boxes in this network is known here."""
        return isinstance(net, Network) and any(
            isinstance(child, (RetinaPost, BboxPost)) or is_known(child) for child in net.children()
        )

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The boxes of the batch."""
        seen: dict[str, Any] = {"image": image, "image_size": image_size}
        found: Candidates | None = None
        offset = 0
        for module in self.net.children():
            if isinstance(module, RetinaPost):
                found, offset = dense_boxes(module, seen), module.offset
            elif isinstance(module, BboxFCPre):
                assert found is not None
                seen.update(pooled(module, found, seen))
            elif isinstance(module, BboxPost):
                assert found is not None
                found, offset = classified(module, found, seen), module.predictor.offset
            elif isinstance(module, TorchvisionDetector):
                found, offset = whole_boxes(module, image, image_size), 0
            else:
                seen.update(module(MappingProxyType(seen)))
        assert found is not None
        return _listed(found, offset)


def _listed(found: Candidates, offset: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The boxes that are there, one after the other."""
    scores = found.scores.flatten(1)
    there = torch.nonzero(scores.flatten() > PRESENT).flatten()
    boxes = found.boxes.flatten(0, 2)[there]
    boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset]) if offset else boxes
    images = torch.div(there, scores.shape[1], rounding_mode="floor")
    return boxes, scores.flatten()[there], found.labels.flatten()[there], images


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
    return Candidates(
        boxes=boxes_at(boxes, order),
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
    found = Candidates(
        boxes=boxes_at(boxes, torch.div(order, classes, rounding_mode="floor"))[:, None],
        scores=best[:, None],
        labels=(order % classes)[:, None],
        classes=classes,
    ).where(chosen[:, None])
    return found if predictor.nms is None else found.thinned(predictor.nms, predictor.offset)


def pooled(pre: BboxFCPre, found: Candidates, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """`pooled_feats` [R, C, p, p] and `rois` [R, 5] of every place, absent ones too, image by image."""
    rois = found.rois()
    target = levels_of(rois[:, 1:5], pre.levels, pre.base_scale, pre.offset)
    features, strides = outputs["features"], outputs["strides"]
    result = None
    for position, level in enumerate(pre.levels):
        layer = pre.roipool[position] if isinstance(pre.roipool, nn.ModuleList) else pre.roipool
        own = torch.nonzero(target == level).flatten()
        part = layer(rois[own], features[level], int(strides[level]))
        if result is None:
            result = part.new_zeros(rois.shape[0], *part.shape[1:])
        result = result.index_copy(0, own, part)
    assert result is not None
    return {"pooled_feats": result, "rois": rois}


def classified(post: BboxPost, found: Candidates, outputs: Mapping[str, Any]) -> Candidates:
    """What `post` finds in evaluation, in one group, best first.

    found: the proposals. Reads `rois`, `bbox_preds`, `image_size`.
    """
    logits, deltas = (pred.float() for pred in outputs["bbox_preds"])
    predictor, first = post.predictor, post.first
    scores = logits.sigmoid() if first == 0 else logits.softmax(1)
    columns = scores.shape[1]
    moved = decode(
        outputs["rois"][:, 1:5].float(),
        denormalized(deltas, predictor.means, predictor.stds),
        predictor.offset,
    )
    proposed = found.scores.flatten(1, 2)
    count = proposed.shape[1]
    classes = columns - first
    boxes = quadruples(moved).expand(-1, columns, -1)[:, first:]
    boxes = boxes.reshape(-1, count, classes, 4).transpose(1, 2)
    scores = scores[:, first:].reshape(-1, count, classes).transpose(1, 2)
    there = (proposed[:, None] > PRESENT) & (scores > predictor.threshold)
    answer = Candidates(
        boxes=clipped(boxes, outputs["image_size"], predictor.offset),
        scores=torch.where(there, scores, ABSENT),
        labels=torch.arange(classes, device=scores.device)[:, None].expand_as(scores),
        classes=classes,
    )
    answer = answer.thinned(predictor.nms, predictor.offset).together()
    return answer.best(predictor.top_n)
