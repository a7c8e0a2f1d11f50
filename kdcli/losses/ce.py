"""Soft cross entropy between teacher and student."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Temperature


@full_precision
def ce_loss(
    student: Tensor,
    teacher: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    T: Temperature = 1.0,
) -> Tensor:
    """−sum(softmax(teacher/T)·log softmax(student/T)) over axis 1, mean over rows, in nats, without T².

    student, teacher: logits [B, K] or maps [B, K, H, W]. teacher_weights: [B], multiplies each sample's
    rows. A scalar whose minimum is the teacher's entropy; raises RunError where shapes differ.
    Source: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    equal_shapes(student, teacher, "ce_loss")
    rows = -((teacher / T).softmax(1) * (student / T).log_softmax(1)).sum(1)
    return row_mean(rows, teacher_weights)
