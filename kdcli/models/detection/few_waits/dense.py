"""torchvision's RetinaNet and FCOS with a fixed number of waits in a step of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder, Matcher
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from torchvision.ops import sigmoid_focal_loss

from kdcli.models.detection.boxes import places_of
from kdcli.models.detection.few_waits.matching import BETWEEN, encoded, matched, put_anchors_on

Targets = Sequence[Mapping[str, Tensor]]

SMALLEST_UNION = 1e-7
"""Added to the areas that FCOS divides by."""


def retinanet_known(detector: Any) -> bool:
    """Whether the head, the matcher and the encoding are torchvision's own, with an L1 loss."""
    head = detector.head
    return (
        type(head) is RetinaNetHead
        and type(head.classification_head) is RetinaNetClassificationHead
        and type(head.regression_head) is RetinaNetRegressionHead
        and type(head.regression_head.box_coder) is BoxCoder
        and head.regression_head._loss_type == "l1"
        and type(detector.proposal_matcher) is Matcher
    )


def fcos_known(detector: Any) -> bool:
    """Whether the head and its encoding are torchvision's own."""
    return type(detector.head) is FCOSHead and type(detector.head.box_coder) is BoxLinearCoder


def answers(
    detector: Any, images: list[Tensor], targets: Targets | None
) -> tuple[list[Tensor], Mapping[str, Tensor], list[Tensor], Any]:
    """The maps, what the head gives of every anchor, the anchors [K, 4] of each image, the targets."""
    batch, targets = detector.transform(images, targets)
    features = detector.backbone(batch.tensors)
    maps = [features] if isinstance(features, Tensor) else list(features.values())
    outputs = detector.head(maps)
    put_anchors_on(detector.anchor_generator, maps[0])
    return maps, outputs, detector.anchor_generator(batch, maps), targets


def retinanet(detector: Any, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
    """The losses; one wait, for how many anchors of each image are positive and how many count."""
    _, outputs, anchors, targets = answers(detector, images, targets)
    found = [
        matched(detector.proposal_matcher, one["boxes"], own)
        for one, own in zip(targets, anchors, strict=True)
    ]
    masks = [mask for match in found for mask in (match >= 0, match != BETWEEN)]
    rows = places_of(masks)
    by_class, by_place = [], []
    for image, (match, one) in enumerate(zip(found, targets, strict=True)):
        own, counted = rows[2 * image], rows[2 * image + 1]
        truth = match[own]
        logits, moves = outputs["cls_logits"][image], outputs["bbox_regression"][image]
        wanted = _one_at(torch.zeros_like(logits), own, one["labels"][truth])
        count = max(1, len(own))
        by_class.append(sigmoid_focal_loss(logits[counted], wanted[counted], reduction="sum") / count)
        shifts = encoded(detector.head.regression_head.box_coder, one["boxes"][truth], anchors[image][own])
        by_place.append(F.l1_loss(moves[own], shifts, reduction="sum") / count)
    return {
        "classification": _added(by_class) / len(targets),
        "bbox_regression": _added(by_place) / len(targets),
    }


def _one_at(zeros: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Put 1 at places of a matrix; by assignment of a number the host would copy it to a GPU, and wait for that."""
    return zeros.index_put_((rows, columns), zeros.new_ones(()))


def _added(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def fcos(detector: Any, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
    """The losses; two waits, for how many places are positive, and how many of their boxes overlap their truth."""
    maps, outputs, anchors, targets = answers(detector, images, targets)
    sizes = [int(level.shape[2] * level.shape[3]) for level in maps]
    found = [
        _inside(detector.center_sampling_radius, one["boxes"], own, sizes)
        for one, own in zip(targets, anchors, strict=True)
    ]
    classes, truth = (
        torch.stack([_of_matches(match, one[name]) for match, one in zip(found, targets, strict=True)])
        for name in ("labels", "boxes")
    )
    positive = (torch.stack(found) >= 0).flatten()
    (own,) = places_of([positive])
    logits, centreness = (outputs[name].flatten(0, 1) for name in ("cls_logits", "bbox_ctrness"))
    wanted = _one_at(torch.zeros_like(logits), own, classes.flatten()[own])
    coder, places = detector.head.box_coder, torch.stack(anchors)
    boxes = coder.decode(outputs["bbox_regression"], places).flatten(0, 1)[own]
    edges = coder.encode(places.flatten(0, 1)[own], truth.flatten(0, 1)[own])
    across, along = edges[:, 0::2], edges[:, 1::2]
    # 1 in the middle of its truth, 0 at an edge.
    middle = torch.sqrt((across.amin(1) / across.amax(1)) * (along.amin(1) / along.amax(1)))
    count = max(1, len(own))
    centre_loss = F.binary_cross_entropy_with_logits(centreness.squeeze(1)[own], middle, reduction="sum")
    return {
        "classification": sigmoid_focal_loss(logits, wanted, reduction="sum") / count,
        "bbox_regression": giou_loss(boxes, truth.flatten(0, 1)[own]) / count,
        "bbox_ctrness": centre_loss / count,
    }


def _of_matches(match: Tensor, values: Tensor) -> Tensor:
    """The truth's values [M, ...] for each match [K]; those of the first where there is none, or zeros."""
    if not len(values):
        return values.new_zeros((len(match), *values.shape[1:]))
    return values[match.clamp(min=0)]


def _inside(radius: float, truth: Tensor, anchors: Tensor, sizes: Sequence[int]) -> Tensor:
    """int64 [K]: the smallest box of truth [M, 4] that each place is to find, -1 for none.

    Its centre lies within `radius` strides of the box's and in the box, whose farthest edge is as far as the level is
    for. sizes: how many places each level has.
    """
    if not len(truth):
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    strides = anchors[:, 2] - anchors[:, 0]
    apart = (centres[:, None] - ((truth[:, :2] + truth[:, 2:]) / 2)[None]).abs().amax(2)
    edges = torch.cat([centres[:, None] - truth[None, :, :2], truth[None, :, 2:] - centres[:, None]], dim=2)
    least, most = strides * 4, strides * 8
    least[: sizes[0]] = 0
    most[-sizes[-1] :] = float("inf")
    farthest = edges.amax(2)
    fits = (apart < radius * strides[:, None]) & (edges.amin(2) > 0)
    fits &= (farthest > least[:, None]) & (farthest < most[:, None])
    areas = (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1])
    best, which = (fits.to(torch.float32) * (1e8 - areas[None])).max(dim=1)
    return torch.where(best < 1e-5, -1, which)


def giou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """The sum over rows of 1 minus the generalised IoU of boxes [N, 4] and truth [N, 4]; one wait.

    Source: "Generalized Intersection over Union", arXiv:1902.09630.
    """
    boxes, truth = (one if one.dtype == torch.float64 else one.float() for one in (boxes, truth))
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes.unbind(1), truth.unbind(1)
    left, top, right, bottom = torch.max(x1, u1), torch.max(y1, v1), torch.min(x2, u2), torch.min(y2, v2)
    overlap = (bottom > top) & (right > left)
    (own,) = places_of([overlap])
    shared = torch.zeros_like(x1)
    shared[own] = (right[own] - left[own]) * (bottom[own] - top[own])
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    hull = (torch.max(x2, u2) - torch.min(x1, u1)) * (torch.max(y2, v2) - torch.min(y1, v1))
    generalised = shared / (union + SMALLEST_UNION) - (hull - union) / (hull + SMALLEST_UNION)
    return (1 - generalised).sum()
