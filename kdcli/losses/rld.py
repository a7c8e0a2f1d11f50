"""RLD: the teacher's logits refined by the labels."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.epochs import epoch_share
from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.logits import kl_rows, log_softmax_without, one_hot_mask, two_way
from kdcli.losses.parts.reduce import row_mean
from kdcli.spec.ranges import CountOrNone, Positive, Temperature, Weight


@full_precision
def rld(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    epoch: int | None = None,
    teacher_weights: Tensor | None = None,
    *,
    alpha: Weight = 1.0,
    beta: Weight = 8.0,
    T: Temperature = 4.0,
    alpha_T: Positive = 1.0,
    warmup_epochs: CountOrNone = 20,
) -> Tensor:
    """alpha·alpha_T²·sample confidence + beta·T²·masked correlation, mean over rows, in nats.

    student, teacher: logits [B, K]; labels: [B]. Sample confidence, at alpha_T: KL between the teacher's
    (best class, all others) and the student's (label, all others). Masked correlation, at T: KL over
    the classes whose teacher logit is below that of the label; a row without any gives 0. epoch:
    counted from 0; the loss is multiplied by min((epoch + 1)/warmup_epochs, 1), or by 1 where it is
    not given. teacher_weights: [B], multiplies each row. A scalar; raises RunError for other shapes.
    Source: "Knowledge Distillation with Refined Logits", arXiv:2408.07703.
    """
    check_logits(student, teacher, labels, "rld")
    label, best = one_hot_mask(labels, student), one_hot_mask(teacher.argmax(1), teacher)
    confidence = kl_rows(
        two_way((student / alpha_T).log_softmax(1), label),
        two_way((teacher / alpha_T).log_softmax(1), best),
    )
    excluded = teacher >= teacher.gather(1, labels.unsqueeze(1))
    correlation = kl_rows(
        log_softmax_without(student / T, excluded), log_softmax_without(teacher / T, excluded)
    )
    rows = alpha * alpha_T**2 * confidence + beta * T**2 * correlation
    return row_mean(rows, teacher_weights) * epoch_share(epoch, warmup_epochs)
