"""Similarity preserving: which samples of a batch look alike to each network."""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm

from kdcli.losses.parts.directions import heard, lengths
from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import gather_rows


@full_precision
def similarity_preserving(student: Tensor, teacher: Tensor, *, gather: bool = False) -> Tensor:
    """Squared Frobenius distance of the two row-normalised Gram matrices of the batch (SP), ÷ B².

    student, teacher: features of any shape [B, ...], flattened; their sizes may differ. A sample of zeros
    resembles nothing.
    gather: relate the samples of all processes instead of one's own. Pairs are summed.
    Taps: the last map before pooling.
    Source: "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682.
    """
    student, teacher = (gather_rows(x.flatten(1), gather=gather) for x in (student, teacher))
    grams = {"student": student @ student.T, "teacher": teacher @ teacher.T}
    norms = {name: vector_norm(gram, dim=1, keepdim=True) for name, gram in grams.items()}
    similar = {
        # A sample is faint by its own length: a row of the Gram matrix is short too where nothing resembles it.
        name: grams[name]
        / lengths(norms[name], like=heard(norms[other]), rows=vector_norm(rows, dim=1, keepdim=True))
        .clamp_min(1e-12)
        .expand_as(grams[name])
        for name, rows, other in (("teacher", teacher, "student"), ("student", student, "teacher"))
    }
    return (similar["teacher"] - similar["student"]).pow(2).mean()
