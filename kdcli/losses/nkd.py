"""NKD: soft target loss with normalised non-target distributions."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.logits import label_log_probability, log_softmax_without, one_hot_mask
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import Temperature, Weight


@full_precision
def nkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    gamma: Weight = 1.5,
    T: Temperature = 1.0,
) -> Tensor:
    """−t_y·log s_y + gamma·T²·cross entropy of the non-target classes, mean over rows, in nats.

    student, teacher: logits [B, K]; labels y: [B]. The target part uses softmax at temperature 1; the other
    one renormalises softmax at T over the classes that are not y. teacher_weights: [B], multiplies each
    row. A scalar, above 0 also for equal logits; raises RunError for other shapes.
    Source: "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", arXiv:2303.13005.
    """
    check_logits(student, teacher, labels, "nkd")
    target = -label_log_probability(teacher, labels).exp() * label_log_probability(student, labels)
    chosen = one_hot_mask(labels, student)
    others_t = log_softmax_without(teacher / T, chosen).exp()
    others = -(others_t * log_softmax_without(student / T, chosen)).sum(1)
    return row_mean(target + gamma * T**2 * others, teacher_weights)
