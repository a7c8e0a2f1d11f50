"""Cosine and smooth L1: the direction of each position's feature, and a little of its length."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Positive, Weight

PATCHES, SUMMARY = (0.9, 0.1), (1.0, 0.0)
"""AM-RADIO's weights of cosine and smooth L1, of features with positions and of one vector an image."""


@full_precision
def cosine(
    student: Tensor,
    teacher: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    cosine_weight: Weight | None = None,
    smooth_l1_weight: Weight | None = None,
    beta: Positive = 1.0,
    per: Literal["position", "sample"] = "position",
    batch_mean: bool = False,
) -> Tensor:
    """Cosine distance of each position's channels, and smooth L1, weighted; a mean over positions and the batch.

    cosine_weight·(1 − cosine) + smooth_l1_weight·(smooth L1). student, teacher: maps [B, C, H, W], tokens [B, N, D]
    or vectors [B, D] of equal shape. per: `sample` takes the cosine of whole flattened samples. The smooth L1 of an
    element is d²/(2·beta) where |d| < beta, else |d| − beta/2, averaged over channels too. batch_mean: both are
    added up over positions (the smooth L1 over channels too) and divided by B.
    Weights that aren't given are AM-RADIO's: 0.9 and 0.1 of maps and tokens, 1 and 0 of vectors (the summary: a
    class token, a pooled vector). UNIC (arXiv:2408.05088) has 0.5 and 0.5 of both, Theia (arXiv:2407.20179) 0.9 and
    0.1 with `per: sample`. The authors compare through a small network for each teacher: the adapter is `mlp` where
    the spec names none; `adapter: auto` is one linear map. A position of zeros has no direction: its cosine is 0.
    teacher_weights: [B], multiplies each sample's part. A scalar; raises RunError where shapes differ.
    Taps: the last map or the patches; the pooled vector or class token in a job of its own.
    Source: "AM-RADIO: Agglomerative Vision Foundation Model Reduce All Domains Into One", arXiv:2312.06709.
    """
    equal_shapes(student, teacher, "cosine")
    usual = SUMMARY if student.dim() == 2 else PATCHES
    of_cosine = usual[0] if cosine_weight is None else cosine_weight
    of_smooth_l1 = usual[1] if smooth_l1_weight is None else smooth_l1_weight
    axis = 2 if student.dim() == 3 else 1
    smooth_l1 = F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).flatten(1)
    if per == "sample":
        student, teacher, axis = student.flatten(1), teacher.flatten(1), 1
    s, t = normalized(student, teacher, axis)
    apart = (1 - (s * t).sum(axis)).reshape(len(s), -1)
    if batch_mean:
        rows = of_cosine * apart.sum(1) + of_smooth_l1 * smooth_l1.sum(1)
    else:
        rows = of_cosine * apart.mean(1) + of_smooth_l1 * smooth_l1.mean(1)
    return row_mean(rows, teacher_weights)
