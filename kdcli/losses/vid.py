"""Variational information: how well the student's feature predicts the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.parts.inputs import as_map, full_precision, map_shape, same_places, same_size
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Positive


class VariationalInformation(StatefulLoss):
    """Gaussian negative log likelihood of the teacher's feature given a regression of the student's (VID).

    ½·((t − mean)²/variance + log variance), averaged over all elements. The regression is three 1×1
    convolutions with ReLU between; the variance of a channel is softplus(log_scale) + eps, trained too.
    Features are maps (the larger is averaged down to the smaller), tokens of equal number or vectors;
    beside a vector the other is averaged over its positions. Pairs are summed.
    Taps: the output of each stage.
    Source: "Variational Information Distillation for Knowledge Transfer", arXiv:1904.05835.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        init_pred_var: Positive = 5.0,
        eps: Positive = 1e-5,
    ) -> None:
        super().__init__()
        if init_pred_var <= eps:
            raise ValueError(f"`init_pred_var` must be more than `eps` ({eps:g}), got {init_pred_var:g}")
        self.eps = eps
        same_places(student_shape, teacher_shape, "vid", averages=True)
        s_channels = map_shape(student_shape, "vid")[1]
        t_channels = map_shape(teacher_shape, "vid")[1]
        self.regressor = nn.Sequential(
            nn.Conv2d(s_channels, t_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(t_channels, t_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(t_channels, t_channels, 1, bias=False),
        )
        self.log_scale = nn.Parameter(torch.full((t_channels,), inverse_softplus(init_pred_var - eps)))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar; may be negative."""
        student, teacher = same_size(as_map(student, "vid"), as_map(teacher, "vid"))
        mean = self.regressor(student)
        variance = (F.softplus(self.log_scale) + self.eps).view(1, -1, 1, 1)
        likelihood: Tensor = 0.5 * ((mean - teacher) ** 2 / variance + variance.log())
        return likelihood.mean()


def inverse_softplus(value: float) -> float:
    """The number whose softplus, log(1 + exp(x)), is `value`; beyond 50 that is the number itself in float64."""
    return math.log(math.expm1(value)) if value < 50 else value
