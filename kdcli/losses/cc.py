"""Correlation congruence: how samples of a batch deviate from their teacher together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from kdcli.losses.parts.inputs import full_precision
from kdcli.losses.parts.reduce import gather_rows
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count


class CorrelationCongruence(StatefulLoss):
    """Mean over neighbouring samples of the product of their deviations, summed over dimensions (CC).

    The deviation of a sample is |embedding of the student − embedding of the teacher|, both trained
    linear maps of the flattened feature to feat_dim. Neighbours follow from the order of the batch; one
    sample has none: 0. gather: put the batches of all processes in one row.
    Taps: the pooled vector.
    Source: "Correlation Congruence for Knowledge Distillation", arXiv:1904.01802.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        feat_dim: Count = 128,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.gather = gather
        self.embed_s = nn.Linear(math.prod(student_shape[1:]), feat_dim)
        self.embed_t = nn.Linear(math.prod(teacher_shape[1:]), feat_dim)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar; features of any shape [B, ...]."""
        deviation = (self.embed_s(student.flatten(1)) - self.embed_t(teacher.flatten(1))).abs()
        deviation = gather_rows(deviation, gather=self.gather)
        products = (deviation[:-1] * deviation[1:]).sum()
        return products / max(len(deviation) - 1, 1)
