"""Anchors and proposals matched, sampled and encoded as torchvision does, in the same bits on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from kdcli.models.detection.boxes import host_counts, quadruples, true_places

BELOW, BETWEEN = -1, -2
"""What a match is where the greatest IoU is below the low threshold, and where it lies between the two."""


def matched(matcher: Any, truth: Tensor, boxes: Tensor) -> Tensor:
    """int64 [N]: for each box [N, 4] the row of truth [M, 4] that torchvision's Matcher gives it, BELOW or BETWEEN.

    An image without truth has BELOW everywhere.
    """
    if not truth.shape[0]:
        return torch.full((boxes.shape[0],), BELOW, dtype=torch.int64, device=boxes.device)
    overlaps = box_iou(truth, boxes)
    greatest, which = overlaps.max(dim=0)
    target = torch.where(greatest < matcher.high_threshold, BETWEEN, which)
    target = torch.where(greatest < matcher.low_threshold, BELOW, target)
    if matcher.allow_low_quality_matches:
        best = (overlaps == overlaps.amax(dim=1, keepdim=True)).any(dim=0)
        target = torch.where(best, which, target)
    return target


def sampled(
    sampler: Any, positive: Sequence[Tensor], negative: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Which positives and which negatives torchvision's sampler takes: of each image indices int64, ascending.

    positive, negative: masks, bool [N] of each image. One wait, for how many there are. The draws are torchvision's:
    for the same state of the generator the same samples.
    """
    counts = host_counts([mask for pair in zip(positive, negative, strict=True) for mask in pair])
    most = int(sampler.batch_size_per_image * sampler.positive_fraction)
    taken: tuple[list[Tensor], list[Tensor]] = ([], [])
    for image, masks in enumerate(zip(positive, negative, strict=True)):
        room = most
        for mask, count, found in zip(masks, counts[2 * image :], taken, strict=False):
            places = true_places(mask, count)
            drawn = torch.randperm(count, device=mask.device)[:room]
            found.append(places[drawn].sort().values)
            room = sampler.batch_size_per_image - len(drawn)
    return taken


def encoded(coder: Any, truth: Tensor, boxes: Tensor) -> Tensor:
    """What moves boxes [N, 4] to their truth [N, 4], times the weights of torchvision's BoxCoder: [N, 4]."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    apart = (truth[:, :2] + 0.5 * wanted) - (boxes[:, :2] + 0.5 * sides)
    growth = torch.log(wanted / sides)
    x, y, width, height = coder.weights
    columns = (x * apart[:, 0] / sides[:, 0], y * apart[:, 1] / sides[:, 1])
    return torch.stack([*columns, width * growth[:, 0], height * growth[:, 1]], dim=1)


def decoded(coder: Any, moves: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [N, 4] moved by moves [N, 4·k] in the form of torchvision's BoxCoder: [N, k, 4], in the moves' dtype."""
    boxes = boxes.to(moves.dtype)
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centres = boxes[:, None, :2] + 0.5 * sides
    x, y, width, height = coder.weights
    parts = quadruples(moves).unbind(-1)
    shifts = torch.stack([parts[0] / x, parts[1] / y], dim=-1)
    growth = torch.stack([parts[2] / width, parts[3] / height], dim=-1).clamp(max=coder.bbox_xform_clip)
    centres = shifts * sides + centres
    half = 0.5 * (growth.exp() * sides)
    return torch.cat([centres - half, centres + half], dim=-1)


def put_anchors_on(generator: Any, like: Tensor) -> None:
    """Copy the anchors of the first places to the device of `like` at once: in the first step one wait, then none."""
    cells = getattr(generator, "cell_anchors", None)
    if cells and any(one.device != like.device for one in cells):
        together = torch.cat(cells).to(device=like.device, dtype=like.dtype)
        generator.cell_anchors = list(torch.split(together, [len(one) for one in cells]))
