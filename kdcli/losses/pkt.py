"""Probabilistic knowledge transfer: how likely each sample picks each other as its neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.parts.directions import heard, lengths
from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import gather_rows
from kdcli.spec.ranges import Positive


@full_precision
def probabilistic_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    eps: Positive = 1e-7,
    gather: bool = False,
) -> Tensor:
    """KL of the teacher's neighbour probabilities from the student's, averaged over all B² pairs (PKT).

    The probabilities are cosine similarities moved to [0, 1] and divided by their row's sum; a sample of
    zeros is as near to one as to any other.
    student, teacher: features of any shape [B, ...], flattened; their sizes may differ.
    gather: relate the samples of all processes instead of one's own.
    Taps: the pooled vector.
    Source: "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv:1803.10837.
    """
    student, teacher = (gather_rows(x.flatten(1), gather=gather) for x in (student, teacher))
    # vector_norm rather than sqrt of a sum: its gradient at a zero row is 0, not NaN.
    s, t = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (student, teacher))
    p = _neighbours(teacher / (lengths(t, like=heard(s)) + eps))
    q = _neighbours(student / (lengths(s, like=heard(t)) + eps))
    return (p * torch.log((p + eps) / (q + eps))).mean()


def _neighbours(rows: Tensor) -> Tensor:
    similarity: Tensor = (rows @ rows.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
