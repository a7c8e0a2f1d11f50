"""The second stage in fixed sizes: proposals pooled and scored, for all images at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.models.detection.bbox_post import BboxPost
from kdcli.models.detection.boxes import decode, denormalized, quadruples
from kdcli.models.detection.deploy.candidates import PRESENT, Candidates, clipped
from kdcli.models.detection.deploy.suppression import ABSENT
from kdcli.models.detection.levels import levels_of
from kdcli.models.detection.roi_pre import BboxFCPre


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
