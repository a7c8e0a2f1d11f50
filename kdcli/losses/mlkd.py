"""MLKD: logits matched per instance, per class pair, per sample pair, at several temperatures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.logits import standardize as standardized
from kdcli.losses.parts.logits import tempered_kl_rows
from kdcli.losses.parts.reduce import gather_rows
from kdcli.spec.ranges import Positive


@full_precision
def mlkd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperatures: Sequence[Positive] = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardize: bool = False,
    gather: bool = False,
) -> Tensor:
    """Sum over temperatures of m·T²·KL + c·class relation + m·batch relation.

    student, teacher: logits [B, K] of the same view. KL is the mean over rows, in nats. With softmax
    probabilities p at T, the class relation is sum((pᵀp)_s − (pᵀp)_t)²/K, the batch relation
    sum((ppᵀ)_s − (ppᵀ)_t)²/B; neither has a T² factor. m is the share of rows whose teacher confidence
    (best probability at temperature 1) is at most their median, c the share of classes whose summed
    teacher probability is at most theirs: the authors' masks multiply sums that are reduced already.
    standardize: z-score the rows for KL alone (LSKD). Relations and masks are of one process, of all with
    gather. A scalar; raises RunError for other shapes.
    Source: "Multi-Level Logit Distillation", CVPR 2023.
    """
    check_logits(student, teacher, None, "mlkd")
    student, teacher = (gather_rows(x, gather=gather) for x in (student, teacher))
    likely = teacher.softmax(1)
    rows, classes = _share_up_to_median(likely.amax(1)), _share_up_to_median(likely.sum(0))
    for_kl = (standardized(student), standardized(teacher)) if standardize else (student, teacher)
    total = student.new_zeros(())
    for T in temperatures:
        s, t = (student / T).softmax(1), (teacher / T).softmax(1)
        class_relation = (s.T @ s - t.T @ t).square().sum() / student.shape[1]
        batch_relation = (s @ s.T - t @ t.T).square().sum() / student.shape[0]
        kl = tempered_kl_rows(*for_kl, T).mean()
        total = total + rows * (kl + batch_relation) + classes * class_relation
    return total


def _share_up_to_median(values: Tensor) -> Tensor:
    """The share of values that are at most their median (of an even number: the mean of the middle two)."""
    ordered = values.sort().values
    # Not `quantile`: in torch 2.11 it looks at the values, which `validate`'s fake tensors do not have.
    median = torch.lerp(ordered[(len(values) - 1) // 2], ordered[len(values) // 2], 0.5)
    return (values <= median).to(values.dtype).mean()
