"""TTM: KL to the power-transformed teacher, the student without temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.logits import kl_rows
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Positive


@full_precision
def ttm(
    student: Tensor,
    teacher: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    gamma: Positive = 0.1,
) -> Tensor:
    """KL(q ‖ softmax(student)), q = softmax(teacher)^gamma renormalised, mean over rows, in nats.

    student, teacher: logits [B, K]. teacher_weights: [B], multiplies each row. No T² factor. A scalar;
    raises RunError for other shapes.
    Source: "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148.
    """
    rows, _ = _rows(student, teacher, gamma)
    return row_mean(rows, teacher_weights)


@full_precision
def wttm(
    student: Tensor,
    teacher: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    gamma: Positive = 0.1,
) -> Tensor:
    """`ttm` with each row multiplied by sum(softmax(teacher)^gamma), mean over rows, in nats.

    student, teacher: logits [B, K]. teacher_weights: [B], multiplies each row too. No T² factor. A
    scalar; raises RunError for other shapes.
    Source: "Knowledge Distillation Based on Transformed Teacher Matching", arXiv:2402.11148.
    """
    rows, log_power = _rows(student, teacher, gamma)
    return row_mean(rows * log_power.exp(), teacher_weights)


def _rows(student: Tensor, teacher: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """KL per row, and the logarithm of each row's sum of powers."""
    check_logits(student, teacher, None, "ttm")
    powers = teacher.log_softmax(1) * gamma
    log_power = torch.logsumexp(powers, 1)
    return kl_rows(student.log_softmax(1), powers - log_power.unsqueeze(1)), log_power
