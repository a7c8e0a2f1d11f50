"""Information theoretic distillation: correlated channels, and similar samples in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.gather import gather_rows
from kdcli.losses.layout import as_vectors, enough_values, map_shape
from kdcli.losses.precision import full_precision
from kdcli.spec.ranges import Positive


class InformationTheoretic(nn.Module):
    """correlation_weight·log2 sum|ρ − 1|^(2·alpha) + mutual_weight·(Rényi mutual information) (ITRD).

    ρ is, per channel, the correlation over the batch of the projected student with the teacher (unbiased
    deviations, ÷ B). The second term is sum(Gs² − Gst²), with Gs the student's Gram matrix of normalised
    rows and Gst its product by elements with the teacher's, each divided by its trace. The projection is
    a trained linear map; the second term uses it only where the widths differ. Features are averaged over
    their positions. The authors' alpha goes from 1.01 to 1.5 by pair. gather: relate the samples of all
    processes instead of one's own. It has no minimum but that of the number format.
    Taps: the pooled vector.
    Source: "Information Theoretic Representation Distillation", arXiv:2112.00459.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        alpha: Positive = 1.5,
        correlation_weight: float = 2.0,
        mutual_weight: float = 1.0,
        gather: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.correlation_weight, self.mutual_weight = correlation_weight, mutual_weight
        self.gather = gather
        self.loss_weight = loss_weight
        s_channels, t_channels = map_shape(student_shape, "itrd")[1], map_shape(teacher_shape, "itrd")[1]
        self.embed = nn.Linear(s_channels, t_channels)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar; may be negative."""
        student = gather_rows(as_vectors(student, "itrd"), gather=self.gather)
        teacher = gather_rows(as_vectors(teacher, "itrd"), gather=self.gather)
        enough_values(len(student), "itrd")
        projected = self.embed(student)
        correlation = (_standardised(projected) * _standardised(teacher)).mean(0)
        total: Tensor = (correlation - 1).abs().pow(2 * self.alpha).sum()
        similar = projected if student.shape[1] != teacher.shape[1] else student
        return self.loss_weight * (
            self.correlation_weight * total.clamp(min=torch.finfo(total.dtype).tiny).log2()
            + self.mutual_weight * _mutual(similar, teacher)
        )


def _standardised(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    # vector_norm: its gradient at a constant channel is 0, not NaN.
    deviation = torch.linalg.vector_norm(centred, dim=0) / math.sqrt(len(rows) - 1)
    floor = torch.finfo(rows.dtype).tiny
    standardised: Tensor = centred / deviation.clamp(min=floor)
    return standardised


def _mutual(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = F.normalize(student), F.normalize(teacher)
    among_student = student @ student.T
    joint = among_student * (teacher @ teacher.T)
    among_student, joint = among_student / among_student.trace(), joint / joint.trace()
    return (among_student.pow(2) - joint.pow(2)).sum()
