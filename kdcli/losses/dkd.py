"""DKD: target-class and non-target-class knowledge, decoupled."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.epochs import epoch_share
from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.logits import kl_rows, log_softmax_without, one_hot_mask, two_way
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import CountOrNone, Temperature, Weight


@full_precision
def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    epoch: int | None = None,
    teacher_weights: Tensor | None = None,
    *,
    alpha: Weight = 1.0,
    beta: Weight = 8.0,
    T: Temperature = 4.0,
    warmup_epochs: CountOrNone = 20,
) -> Tensor:
    """T²·(alpha·TCKD + beta·NCKD), mean over rows, in nats.

    student, teacher: logits [B, K]; labels: [B]. TCKD is the KL between the two-way distributions
    (label, all others), NCKD the KL over the other classes alone, both at T. epoch: counted from 0; the
    loss is multiplied by min((epoch + 1)/warmup_epochs, 1), or by 1 where it is not given.
    teacher_weights: [B], multiplies each row. ImageNet: beta 0.5, T 1. A scalar; raises RunError for
    other shapes.
    Source: "Decoupled Knowledge Distillation", arXiv:2203.08679.
    """
    check_logits(student, teacher, labels, "dkd")
    chosen = one_hot_mask(labels, student)
    student, teacher = student / T, teacher / T
    target = kl_rows(two_way(student.log_softmax(1), chosen), two_way(teacher.log_softmax(1), chosen))
    others = kl_rows(log_softmax_without(student, chosen), log_softmax_without(teacher, chosen))
    loss = row_mean(alpha * target + beta * others, teacher_weights) * T**2
    return loss * epoch_share(epoch, warmup_epochs)
