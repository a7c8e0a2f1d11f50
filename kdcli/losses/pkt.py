"""Probabilistic knowledge transfer: how likely each sample picks each other as its neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.gather import gather_rows
from kdcli.losses.precision import full_precision
from kdcli.spec.ranges import Positive


@full_precision
def probabilistic_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    eps: Positive = 1e-7,
    gather: bool = False,
    loss_weight: float = 30000.0,
) -> Tensor:
    """KL of the teacher's neighbour probabilities from the student's, averaged over all B² pairs (PKT).

    The probabilities are cosine similarities moved to [0, 1] and divided by their row's sum.
    student, teacher: features of any shape [B, ...], flattened; their sizes may differ.
    gather: relate the samples of all processes instead of one's own.
    Taps: the pooled vector.
    Source: "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv:1803.10837.
    """
    p = _neighbours(teacher, eps, gather)
    q = _neighbours(student, eps, gather)
    return loss_weight * (p * torch.log((p + eps) / (q + eps))).mean()


def _neighbours(feature: Tensor, eps: float, gather: bool) -> Tensor:
    rows = gather_rows(feature.flatten(1), gather=gather)
    # vector_norm rather than sqrt of a sum: its gradient at a zero row is 0, not NaN.
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + eps)
    similarity: Tensor = (rows @ rows.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
