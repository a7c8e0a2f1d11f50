"""torchvision's Faster R-CNN with a fixed number of waits: proposals, their sample, pooling, losses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.poolers import initLevelMapper

from kdcli.models.detection.boxes import boxes_at, by_group, kept_in_groups, true_places
from kdcli.models.detection.few_waits import found
from kdcli.models.detection.few_waits.dense import Targets
from kdcli.models.detection.few_waits.matching import (
    BELOW,
    decoded,
    encoded,
    matched,
    put_anchors_on,
    sampled,
)
from kdcli.models.detection.few_waits.running import as_written, running

BETA = 1 / 9
"""Where the location losses turn from a square into a line."""


def known(detector: Any) -> bool:
    """Whether both stages are torchvision's own, of boxes alone."""
    rpn, heads = detector.rpn, detector.roi_heads
    if not (as_written(rpn, RegionProposalNetwork) and as_written(heads, RoIHeads)):
        return False
    parts = [
        (part, kind)
        for stage in (rpn, heads)
        for part, kind in (
            (stage.box_coder, BoxCoder),
            (stage.proposal_matcher, Matcher),
            (stage.fg_bg_sampler, BalancedPositiveNegativeSampler),
        )
    ]
    plain = all(type(part) is kind for part, kind in parts)
    return plain and not (heads.has_mask() or heads.has_keypoint()) and rpn.box_similarity is box_iou


def forward(detector: Any, images: list[Tensor], targets: Targets | None = None) -> Any:
    """torchvision's losses by name in training, else its detections; its hooks on every module run."""
    batch, targets = detector.transform(images, targets)
    features = detector.backbone(batch.tensors)
    if isinstance(features, Tensor):
        features = OrderedDict([("0", features)])
    rpn, heads = detector.rpn, detector.roi_heads
    with ExitStack() as stack:
        stack.enter_context(running(rpn, partial(propose, rpn)))
        second_stage = train_heads if detector.training else found.second_stage
        stack.enter_context(running(heads, partial(second_stage, heads)))
        if as_written(heads.box_roi_pool, MultiScaleRoIAlign):
            stack.enter_context(running(heads.box_roi_pool, partial(pool, heads.box_roi_pool)))
        proposals, proposal_losses = rpn(batch, features, targets)
        detections, losses = heads(features, proposals, batch.image_sizes, targets)
    return {**losses, **proposal_losses} if detector.training else detections


def propose(
    rpn: Any, images: ImageList, features: Mapping[str, Tensor], targets: Targets | None = None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The first stage: proposals [P, 4] of each image, and the losses in training."""
    maps = list(features.values())
    logit_maps, move_maps = rpn.head(maps)
    put_anchors_on(rpn.anchor_generator, maps[0])
    anchors = rpn.anchor_generator(images, maps)
    levels = [int(level[0].numel()) for level in logit_maps]
    logits, moves = concat_box_prediction_layers(logit_maps, move_maps)
    with torch.no_grad():
        boxes = decoded(rpn.box_coder, moves.detach(), torch.cat(anchors)).view(len(anchors), -1, 4)
        if boxes.device.type == "cpu":  # where nothing waits, and bits are to be torchvision's
            proposals, _ = rpn.filter_proposals(boxes, logits.detach(), images.image_sizes, levels)
        else:
            proposals = best_proposals(rpn, boxes, logits.detach(), images.image_sizes, levels)
    if not rpn.training:
        return proposals, {}
    if targets is None:
        raise ValueError("the losses of proposals need targets")
    matches = [
        matched(rpn.proposal_matcher, one["boxes"], own) for one, own in zip(targets, anchors, strict=True)
    ]
    positive, negative = sampled(
        rpn.fg_bg_sampler, [match >= 0 for match in matches], [match == BELOW for match in matches]
    )
    truth = [one["boxes"][match[own]] for one, match, own in zip(targets, matches, positive, strict=True)]
    places = [boxes[own] for boxes, own in zip(anchors, positive, strict=True)]
    wanted = encoded(rpn.box_coder, torch.cat(truth), torch.cat(places))
    own, others = (
        torch.cat([rows + image * len(anchors[0]) for image, rows in enumerate(one)])
        for one in (positive, negative)
    )
    rows = torch.cat([own, others])
    labels = (torch.arange(len(rows), device=rows.device) < len(own)).to(torch.float32)
    distance = F.smooth_l1_loss(moves[own], wanted, beta=BETA, reduction="sum")
    return proposals, {
        "loss_objectness": F.binary_cross_entropy_with_logits(logits.flatten()[rows], labels),
        "loss_rpn_box_reg": distance / len(rows),
    }


def best_proposals(
    rpn: Any, boxes: Tensor, logits: Tensor, sizes: Sequence[tuple[int, int]], levels: Sequence[int]
) -> list[Tensor]:
    """The proposals of each image, best first: boxes [B, K, 4] of all levels, logits of as many; two waits.

    levels: how many of the K are of each. Only boxes of one level suppress each other; torchvision moves the levels of
    few boxes apart by adding to them, which rounds them, and here nothing is rounded.
    """
    groups = []
    parts = (torch.split(one, list(levels), 1) for one in (boxes, logits.view(len(sizes), -1)))
    for own, scores in zip(*parts, strict=True):
        best, order = scores.topk(min(rpn.pre_nms_top_n(), scores.shape[1]), dim=1)
        groups.append((found.clipped(boxes_at(own, order), sizes), best.sigmoid()))
    most = max(scores.shape[1] for _, scores in groups)
    # Levels side by side, filled up to the largest with places that hold no box.
    rows = torch.stack([F.pad(own, (0, 0, 0, most - own.shape[1])) for own, _ in groups], 1)
    scores = torch.stack([F.pad(own, (0, most - own.shape[1]), value=found.ABSENT) for _, own in groups], 1)
    there = ((rows[..., 2:] - rows[..., :2]) >= rpn.min_size).all(-1) & (scores >= max(rpn.score_thresh, 0.0))
    kept = kept_in_groups(rows.flatten(0, 1), there.flatten(0, 1), None, rpn.nms_thresh, 0)
    ranked = torch.where(kept.view_as(scores), scores, found.ABSENT).flatten(1)
    best, order = ranked.topk(min(rpn.post_nms_top_n(), ranked.shape[1]), dim=1)
    counts: list[int] = (best >= 0).sum(1).tolist()
    chosen = boxes_at(rows.flatten(1, 2), order)
    return [own[:count] for own, count in zip(chosen, counts, strict=True)]


def train_heads(
    heads: Any,
    features: Mapping[str, Tensor],
    proposals: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    targets: Targets | None = None,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The second stage in training: no detections, and the losses; one wait beside that of the pooling."""
    if targets is None:
        raise ValueError("the losses of the second stage need targets")
    truths = [one["boxes"].to(proposals[0].dtype) for one in targets]
    candidates = [torch.cat(pair) for pair in zip(proposals, truths, strict=True)]
    matches = [
        matched(heads.proposal_matcher, truth, own) for truth, own in zip(truths, candidates, strict=True)
    ]
    labels = [_labels(match, one["labels"]) for match, one in zip(matches, targets, strict=True)]
    positive, negative = sampled(
        heads.fg_bg_sampler, [own >= 1 for own in labels], [own == 0 for own in labels]
    )
    taken = [torch.cat(pair).sort().values for pair in zip(positive, negative, strict=True)]
    rois = [own[rows] for own, rows in zip(candidates, taken, strict=True)]
    pooled = heads.box_head(heads.box_roi_pool(features, rois, sizes))
    logits, moves = heads.box_predictor(pooled)
    classes = torch.cat([own[rows] for own, rows in zip(labels, taken, strict=True)])
    own = true_places(classes > 0, sum(map(len, positive)))
    # In the order of the positives among the sample.
    truth = [boxes[match[rows]] for boxes, match, rows in zip(truths, matches, positive, strict=True)]
    wanted = encoded(heads.box_coder, torch.cat(truth), torch.cat(rois)[own])
    moves = moves.reshape(len(classes), -1, 4)[own, classes[own]]
    distance = F.smooth_l1_loss(moves, wanted, beta=BETA, reduction="sum")
    return [], {
        "loss_classifier": F.cross_entropy(logits, classes),
        "loss_box_reg": distance / classes.numel(),
    }


def _labels(match: Tensor, labels: Tensor) -> Tensor:
    """int64 [N]: the class of each candidate, 0 for background, -1 for one that is in no sample."""
    if not len(labels):
        return torch.zeros_like(match)
    return torch.where(match < 0, match - BELOW, labels[match.clamp(min=0)])


def pool(
    pool: Any, features: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """RoIAlign of the boxes [R, 4] of each image, each on its level's map: [sum of R, C, p, p]; one wait."""
    maps = [level for name, level in features.items() if name in pool.featmap_names]
    if pool.scales is None or pool.map_levels is None:
        _find_scales(pool, maps, sizes)
    corners = torch.cat(list(boxes))
    numbers = torch.cat([torch.full_like(own[:, :1], image) for image, own in enumerate(boxes)])
    rois = torch.cat([numbers, corners], dim=1)
    options = {"output_size": pool.output_size, "sampling_ratio": pool.sampling_ratio}
    if len(maps) == 1:
        single: Tensor = roi_align(maps[0], rois, spatial_scale=pool.scales[0], **options)
        return single
    groups = by_group(pool.map_levels([corners]), range(len(maps)))
    pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *pool.output_size)
    for level, scale, rows in zip(maps, pool.scales, groups, strict=True):
        pooled[rows] = roi_align(level, rois[rows], spatial_scale=scale, **options).to(pooled.dtype)
    return pooled


def _find_scales(pool: Any, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> None:
    """Of each map the power of two that is nearest to its size by the batch's, and the rule that names levels."""
    height = max(size[0] for size in sizes)
    powers = [round(float(torch.tensor(level.shape[-2] / height).log2())) for level in maps]
    pool.scales = [2.0**power for power in powers]
    pool.map_levels = initLevelMapper(
        -powers[0], -powers[-1], canonical_scale=pool.canonical_scale, canonical_level=pool.canonical_level
    )
