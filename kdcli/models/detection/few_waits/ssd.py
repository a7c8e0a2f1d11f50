"""torchvision's SSD and SSDLite with a fixed number of waits in a step of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.ops import box_iou

from kdcli.models.detection.boxes import places_of
from kdcli.models.detection.few_waits.dense import Targets, answers
from kdcli.models.detection.few_waits.matching import BELOW, encoded


def known(detector: Any) -> bool:
    """Whether the matcher and the encoding are torchvision's own."""
    return type(detector.proposal_matcher) is SSDMatcher and type(detector.box_coder) is BoxCoder


def ssd(detector: Any, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
    """The losses; two waits for numbers of positives and negatives, two for the anchors, which are the CPU's."""
    _, outputs, anchors, targets = answers(detector, images, targets)
    found = [
        _matched(detector.proposal_matcher, one["boxes"], own)
        for one, own in zip(targets, anchors, strict=True)
    ]
    masks = [match >= 0 for match in found]
    rows = places_of(masks)
    by_place, classes = [], []
    for image, (match, own, one) in enumerate(zip(found, rows, targets, strict=True)):
        truth = match[own]
        wanted = encoded(detector.box_coder, one["boxes"][truth], anchors[image][own])
        by_place.append(F.smooth_l1_loss(outputs["bbox_regression"][image][own], wanted, reduction="sum"))
        labels = torch.zeros_like(match)
        labels[own] = one["labels"][truth]
        classes.append(labels)
    logits, wanted_classes = outputs["cls_logits"], torch.stack(classes)
    losses = F.cross_entropy(logits.flatten(0, 1), wanted_classes.flatten(), reduction="none")
    positive = wanted_classes > 0
    negative = _hardest(losses.view_as(positive), positive, detector.neg_to_pos_ratio)
    # Of all images at once, as their sum is.
    chosen = [losses[places].sum() for places in places_of([positive.flatten(), negative.flatten()])]
    count = max(1, sum(map(len, rows)))
    return {
        "bbox_regression": torch.stack(by_place).sum() / count,
        "classification": (chosen[0] + chosen[1]) / count,
    }


def _matched(matcher: Any, truth: Tensor, anchors: Tensor) -> Tensor:
    """int64 [K]: the row of truth [M, 4] that torchvision's SSDMatcher gives each anchor, or less than 0."""
    if not len(truth):
        return torch.full((len(anchors),), BELOW, dtype=torch.int64, device=anchors.device)
    found: Tensor = matcher(box_iou(truth, anchors))
    return found


def _hardest(losses: Tensor, positive: Tensor, ratio: float) -> Tensor:
    """Bool [B, K]: in each image the places with the greatest losses that are not positive, `ratio` times as many."""
    ranked = losses.detach().masked_fill(positive, -float("inf")).sort(1, descending=True).indices
    return ranked.sort(1).indices < ratio * positive.sum(1, keepdim=True)
