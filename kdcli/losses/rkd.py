"""Relational distillation: the distances and angles among the samples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import gather_rows
from kdcli.spec.ranges import Positive, Weight


@full_precision
def relational(
    student: Tensor,
    teacher: Tensor,
    *,
    distance_weight: Weight = 25.0,
    angle_weight: Weight = 50.0,
    squared: bool = False,
    eps: Positive = 1e-12,
    gather: bool = False,
) -> Tensor:
    """Smooth-L1 of pairwise distances and of angles of triples (RKD), each averaged over all entries.

    Distances are divided by the mean of the positive ones of their own network. squared: of squared
    distances. Two equal samples have no direction to each other: an angle between them has a cosine of 0.
    student, teacher: features of any shape [B, ...], flattened; their sizes may differ. The angles take
    B²·D numbers of memory.
    gather: relate the samples of all processes instead of one's own. One sample has no relations: 0.
    Taps: the pooled vector.
    Source: "Relational Knowledge Distillation", arXiv:1904.05068.
    """
    student = gather_rows(student.flatten(1), gather=gather)
    teacher = gather_rows(teacher.flatten(1), gather=gather)
    distance = F.smooth_l1_loss(
        _relative_distances(student, squared, eps), _relative_distances(teacher, squared, eps)
    )
    s, t = normalized(_differences(student), _differences(teacher), 2)
    angle = F.smooth_l1_loss(_angles(s), _angles(t))
    return distance_weight * distance + angle_weight * angle


def _relative_distances(rows: Tensor, squared: bool, eps: float) -> Tensor:
    squares = rows.pow(2).sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * (rows @ rows.T)).clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    distances = distances.masked_fill(itself, 0.0)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=eps)


def _differences(rows: Tensor) -> Tensor:
    return rows[None, :] - rows[:, None]


def _angles(directions: Tensor) -> Tensor:
    return directions @ directions.transpose(1, 2)
