"""Similarity preserving: which samples of a batch look alike to each network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.gather import gather_rows
from kdcli.losses.precision import full_precision


@full_precision
def similarity_preserving(
    student: Tensor, teacher: Tensor, *, gather: bool = False, loss_weight: float = 3000.0
) -> Tensor:
    """Squared Frobenius distance of the two row-normalised Gram matrices of the batch (SP), ÷ B².

    student, teacher: features of any shape [B, ...], flattened; their sizes may differ.
    gather: relate the samples of all processes instead of one's own. Pairs are summed.
    Taps: the last map before pooling.
    Source: "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682.
    """
    difference = _similarity(teacher, gather) - _similarity(student, gather)
    return loss_weight * difference.pow(2).mean()


def _similarity(feature: Tensor, gather: bool) -> Tensor:
    rows = gather_rows(feature.flatten(1), gather=gather)
    return F.normalize(rows @ rows.T)
