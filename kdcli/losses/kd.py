"""KD: the teacher's softened distribution over classes."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.logits import tempered_kl_rows
from kdcli.losses.parts.reduce import broadcast_mask, per_count, row_mask, row_mean
from kdcli.spec.ranges import Temperature


@full_precision
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    teacher_weights: Tensor | None = None,
    *,
    T: Temperature = 1.0,
) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)) over axis 1, mean over rows, in nats.

    student, teacher: logits [B, K], or maps [B, K, H, W] whose rows are positions. mask: [B], or one
    value a row; the mean is over kept rows of all processes, and 0 where none is kept. teacher_weights: [B],
    multiplies each sample's rows. A scalar; raises RunError where shapes differ.
    Source: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    equal_shapes(student, teacher, "kd_loss")
    return _mean_kl(student, teacher, mask, teacher_weights, T)


@full_precision
def gkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    teacher_weights: Tensor | None = None,
    *,
    T: Temperature = 1.0,
) -> Tensor:
    """`kd_loss` over the rows where the teacher's best class is the label, divided by their count.

    student, teacher: logits [B, K] or maps [B, K, H, W]; labels: [B], or [B, H, W] for maps. The count is
    over all processes; no such row gives 0. Includes T². A scalar; raises RunError where shapes differ.
    Source: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.
    """
    equal_shapes(student, teacher, "gkd_loss")
    best = teacher.argmax(1)
    if labels.dim() < best.dim():
        labels = labels.reshape(-1, *[1] * (best.dim() - 1))
    return _mean_kl(student, teacher, best == labels, teacher_weights, T)


def _mean_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None, teacher_weights: Tensor | None, T: float
) -> Tensor:
    rows = tempered_kl_rows(student, teacher, T)
    if mask is None:
        return row_mean(rows, teacher_weights)
    kept = row_mask(mask, rows)
    weights = kept if teacher_weights is None else kept * broadcast_mask(teacher_weights, rows)
    return per_count((rows * weights).sum(), kept.sum())
