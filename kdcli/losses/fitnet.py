"""FitNet hints: the student's feature regressed onto the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.parts.inputs import as_map, full_precision
from kdcli.losses.parts.stateful import ConvRegression, StatefulLoss


class FitNet(StatefulLoss):
    """Mean squared error between a trained regression of the student's hint and the teacher's (FitNet).

    The regression is a convolution, batch norm and ReLU (see `ConvRegression`); it is built even where
    the shapes are equal. Features are maps [B, C, H, W], equally many tokens [B, N, D] or vectors
    [B, D]. The first authors train the student up to the hint by this alone, then for the task.
    Taps: the output of one middle stage.
    Source: "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.regression = ConvRegression(student_shape, teacher_shape, method="fitnet", relu=relu)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar, averaged over all elements."""
        return F.mse_loss(self.regression(student), as_map(teacher, "fitnet"))

    @full_precision
    def of_answer(self, answer: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a regression that gives `answer`."""
        return F.mse_loss(answer, teacher)
