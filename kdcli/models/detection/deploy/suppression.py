"""Non-maximum suppression of many groups at once, as a mask of fixed size."""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor

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
