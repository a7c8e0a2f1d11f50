"""Boxes in tensors of a fixed size, absent ones with a score below zero, and their non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision.ops
from torch import Tensor

PRESENT = -0.5
"""Scores of boxes that are there are 0 or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Boxes of a batch in G groups of m, which never suppress each other across groups.

    boxes [B, G, m, 4], scores [B, G, m], labels int64 [B, G, m] from 0, of `classes` classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: int

    def best(self, most: int) -> Candidates:
        """The best `most` of each group, best first; 0 or less: all."""
        count = self.scores.shape[2]
        scores, order = self.scores.topk(min(most, count) if most > 0 else count, dim=2)
        places = order[..., None].expand(-1, -1, -1, 4)
        return Candidates(
            boxes=self.boxes.gather(2, places),
            scores=scores,
            labels=self.labels.gather(2, order),
            classes=self.classes,
        )

    def together(self) -> Candidates:
        """All groups as one."""
        return Candidates(
            boxes=self.boxes.flatten(1, 2)[:, None],
            scores=self.scores.flatten(1, 2)[:, None],
            labels=self.labels.flatten(1, 2)[:, None],
            classes=self.classes,
        )

    def rois(self) -> Tensor:
        """One RoI per candidate, [B·G·m, 5] (image, x1, y1, x2, y2), image by image."""
        boxes = self.boxes.flatten(1, 2)
        images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], 1), boxes], dim=2).flatten(0, 1)

    def where(self, kept: Tensor) -> Candidates:
        """The candidates of which those outside `kept`, bool [B, G, m], are absent."""
        scores = torch.where(kept, self.scores, ABSENT)
        return Candidates(boxes=self.boxes, scores=scores, labels=self.labels, classes=self.classes)

    def thinned(self, threshold: float, offset: int) -> Candidates:
        """The candidates after NMS within each class of each group; suppressed ones are absent."""
        boxes = self.boxes + self.boxes.new_tensor([0.0, 0.0, offset, offset]) if offset else self.boxes
        mixed = self.scores.shape[1] == 1 and self.classes > 1
        kept = suppress(
            boxes.flatten(0, 1),
            self.scores.flatten(0, 1),
            self.labels.flatten(0, 1) if mixed else None,
            self.classes,
            threshold,
        )
        return self.where(kept.view_as(self.scores))


def joined(parts: list[Candidates]) -> Candidates:
    """The boxes of several levels, group by group."""
    return Candidates(
        boxes=torch.cat([part.boxes for part in parts], 2),
        scores=torch.cat([part.scores for part in parts], 2),
        labels=torch.cat([part.labels for part in parts], 2),
        classes=parts[0].classes,
    )


def clipped(boxes: Tensor, sizes: Tensor, offset: int) -> Tensor:
    """Boxes [B, ..., 4] cut to their images; sizes: [B, 2] (height, width)."""
    limit = sizes[:, [1, 0, 1, 0]].to(boxes.dtype) - offset
    limit = limit.view(-1, *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


ABSENT = -1.0
"""The score of a place without a box."""


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, classes: int, threshold: float) -> Tensor:
    """Bool [G, m]: the boxes that no better one of their group and label overlaps by more than threshold.

    boxes [G, m, 4] with edges as corners; scores [G, m], below 0 where there is no box (such places are
    False or True, it does not matter which); labels int64 [G, m] below `classes`, None: one in each group.
    """
    if torch.onnx.is_in_onnx_export():
        kept: Tensor = torch.ops.kdcli.suppress(boxes, scores, labels, classes, threshold)
        return kept
    return _apart(boxes, scores, labels, classes, threshold)


def _apart(boxes: Tensor, scores: Tensor, labels: Tensor | None, classes: int, threshold: float) -> Tensor:
    """Groups are moved apart, so that one NMS serves them all; float64 keeps the overlaps exact."""
    groups, most = scores.shape
    group = torch.arange(groups, device=boxes.device)[:, None].expand(-1, most)
    if labels is not None:
        group = group * classes + labels
    corners = boxes.double()
    low = corners.amin()
    span = corners.amax() - low + 1.0
    corners = corners - low + (span * (group + 1))[..., None]
    # Places without a box lie on one another, so that the first of them removes the rest at once.
    square = corners.new_tensor([0.0, 0.0, 0.25, 0.25]) * span
    corners = torch.where((scores < 0)[..., None], square, corners).flatten(0, 1)
    # Exporters take it that at least two boxes are kept; these two always are.
    corners = torch.cat([corners, torch.stack([square, square + span / 2])])
    rank = torch.cat([scores.double().flatten(), corners.new_full((2,), 2 * ABSENT)])
    kept = torchvision.ops.nms(corners, rank, threshold)
    mask = torch.zeros(groups * most + 2, dtype=torch.bool, device=boxes.device)
    return mask.index_fill(0, kept, True)[:-2].view(groups, most)


@torch.library.custom_op("kdcli::suppress", mutates_args=())
def opaque(boxes: Tensor, scores: Tensor, labels: Tensor | None, classes: int, threshold: float) -> Tensor:
    """`suppress` as one operation, which a format with an NMS of its own translates as a whole."""
    return _apart(boxes, scores, labels, classes, threshold)


@opaque.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor | None, classes: int, threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
