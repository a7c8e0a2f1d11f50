"""Similarity preserving: which samples of a batch look alike to each network."""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm

from kdcli.losses.directions import heard, lengths
from kdcli.losses.gather import gather_rows
from kdcli.losses.precision import full_precision


@full_precision
def similarity_preserving(
    student: Tensor, teacher: Tensor, *, gather: bool = False, loss_weight: float = 3000.0
) -> Tensor:
    """Squared Frobenius distance of the two row-normalised Gram matrices of the batch (SP), ÷ B².

    student, teacher: features of any shape [B, ...], flattened; their sizes may differ. A sample of zeros
    resembles nothing.
    gather: relate the samples of all processes instead of one's own. Pairs are summed.
    Taps: the last map before pooling.
    Source: "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682.
    """
    student, teacher = (gather_rows(x.flatten(1), gather=gather) for x in (student, teacher))
    difference = _similarity(teacher, student) - _similarity(student, teacher)
    return loss_weight * difference.pow(2).mean()


def _similarity(rows: Tensor, others: Tensor) -> Tensor:
    gram = rows @ rows.T
    norms, like = (vector_norm(x, dim=1, keepdim=True) for x in (gram, others @ others.T))
    # A sample is faint by its own length: a row of the Gram matrix is short too where nothing resembles it.
    divisors = lengths(norms, like=heard(like), rows=vector_norm(rows, dim=1, keepdim=True))
    return gram / divisors.clamp_min(1e-12).expand_as(gram)
