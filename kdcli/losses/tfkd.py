"""Tf-KD: distillation from oneself, or from a teacher that is only imagined."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.parts.inputs import check_labels, check_logits, full_precision
from kdcli.losses.parts.logits import kl_rows, one_hot_mask, tempered_kl_rows
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Share, Temperature, Weight


@full_precision
def tfkd_self(
    student: Tensor,
    teacher: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    T: Temperature = 20.0,
    multiplier: Weight = 1.0,
) -> Tensor:
    """multiplier·T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over all B·K elements, in nats.

    student, teacher: logits [B, K], the teacher a trained copy of the student. The authors divide by B·K,
    not by B. `loss_weight` is their alpha; give the task loss 1 − alpha for their objective.
    teacher_weights: [B], multiplies each row. A scalar; raises RunError for other shapes.
    Source: "Revisiting Knowledge Distillation via Label Smoothing Regularization", arXiv:1909.11723.
    """
    check_logits(student, teacher, None, "tfkd_self")
    rows = tempered_kl_rows(student, teacher, T) / student.shape[1]
    return row_mean(rows, teacher_weights) * multiplier


@full_precision
def tfkd_reg(
    student: Tensor,
    labels: Tensor,
    *,
    T: Temperature = 20.0,
    correct_probability: Share = 0.99,
    multiplier: Weight = 100.0,
) -> Tensor:
    """multiplier·KL(softmax(u/T) ‖ softmax(student)), mean over all B·K elements, in nats.

    student: logits [B, K]; labels: [B]. u has correct_probability on the label and the rest evenly on
    the other classes; as the authors do, u itself (not its logarithm) is divided by T, the student has no
    temperature, there is no T² factor, and the mean is over B·K, not B. `loss_weight` is their alpha; give
    the task loss 1 − alpha for their objective. A scalar, above 0 unless the student equals the virtual
    teacher; raises RunError for other shapes.
    Source: "Revisiting Knowledge Distillation via Label Smoothing Regularization", arXiv:1909.11723.
    """
    check_labels(student, labels, "tfkd_reg")
    other = (1 - correct_probability) / max(student.shape[1] - 1, 1)
    virtual = torch.full_like(student, other).masked_fill(one_hot_mask(labels, student), correct_probability)
    rows = kl_rows(student.log_softmax(1), (virtual / T).log_softmax(1)) / student.shape[1]
    return rows.mean() * multiplier
