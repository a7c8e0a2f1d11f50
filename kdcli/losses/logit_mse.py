"""Mean squared error of logits."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.inputs import equal_shapes, full_precision
from kdcli.losses.parts.reduce import row_mean


@full_precision
def logit_mse(
    student: Tensor,
    teacher: Tensor,
    teacher_weights: Tensor | None = None,
) -> Tensor:
    """(student − teacher)², mean over all elements.

    student, teacher: logits [B, K, ...]. teacher_weights: [B], multiplies each sample's part. A scalar;
    raises RunError where shapes differ.
    Source: "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation",
    arXiv:2105.08919.
    """
    equal_shapes(student, teacher, "logit_mse")
    return row_mean((student - teacher).square(), teacher_weights)
