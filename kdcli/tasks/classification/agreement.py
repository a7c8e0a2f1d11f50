"""How often a student's logits say the same as a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcli.tasks.classification.metrics import has_softmax


class LogitsAgreement:
    """Equal answers in percent, and the mean KL of the student's probabilities from the teacher's."""

    def sums(self, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Tensor | None:
        """`agreement_sums` of two networks' outputs; None where one has no logits, or others."""
        ours, theirs = student.get("logits"), teacher.get("logits")
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        return agreement_sums(ours, theirs)

    def result(self, sums: Tensor) -> dict[str, float] | None:
        """same_top1 in percent, mean_kl in nats."""
        count, equal, divergence = sums.tolist()
        return {"same_top1": 100.0 * equal / count, "mean_kl": divergence / count} if count else None


def agreement_sums(student: Tensor, teacher: Tensor) -> Tensor:
    """[count, equal answers, summed KL(teacher ‖ student)] of logits [B, K], float64.

    Rows of which one side is unanswered are not counted.
    """
    both = has_softmax(student.float()) & has_softmax(teacher.float())
    student, teacher = (torch.where(both[:, None], x, 0.0) for x in (student, teacher))
    equal = ((student.argmax(1) == teacher.argmax(1)) & both).double().sum()
    divergence = F.kl_div(
        student.float().log_softmax(1), teacher.float().log_softmax(1), reduction="sum", log_target=True
    )
    return torch.stack([both.double().sum(), equal, divergence.double()])
