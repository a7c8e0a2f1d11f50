"""WSLD: soft labels weighted by how regularising each is."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.logits import label_log_probability
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Temperature

EPSILON = 1e-7


@full_precision
def wsld(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    T: Temperature = 2.0,
) -> Tensor:
    """T²·(1 − exp(−CE_s/CE_t))·soft cross entropy at T, mean over rows, in nats.

    student, teacher: logits [B, K]; labels: [B]. CE_s and CE_t are the cross entropies against the labels
    without temperature, and carry no gradient. teacher_weights: [B], multiplies each row. A scalar, above
    0 also for equal logits; raises RunError for other shapes.
    Source: "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
    arXiv:2102.00650.
    """
    check_logits(student, teacher, labels, "wsld")
    soft = -((teacher / T).softmax(1) * (student / T).log_softmax(1)).sum(1)
    with torch.no_grad():
        ratio = label_log_probability(student, labels) / (label_log_probability(teacher, labels) - EPSILON)
        focus = 1 - (-ratio).exp()
    return row_mean(focus * soft, teacher_weights) * T**2
