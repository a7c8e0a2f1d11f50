"""Information theoretic distillation: correlated channels, and similar samples in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from kdcli.losses.parts.directions import heard, lengths, normalized, rounding
from kdcli.losses.parts.inputs import as_vectors, enough_values, full_precision, map_shape
from kdcli.losses.parts.reduce import gather_rows
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Positive, Weight


class InformationTheoretic(StatefulLoss):
    """correlation_weight·log2 sum|ρ − 1|^(2·alpha) + mutual_weight·(Rényi mutual information) (ITRD).

    ρ is, per channel, the correlation over the batch of the projected student with the teacher (unbiased
    deviations, ÷ B). The second term is sum(Gs² − Gst²), with Gs the student's Gram matrix of normalised
    rows and Gst its product by elements with the teacher's, each divided by its trace. The projection is
    a trained linear map; the second term uses it only where the widths differ. Features are averaged over
    their positions. The authors' alpha goes from 1.01 to 1.5 by pair. gather: relate the samples of all
    processes instead of one's own. It has no minimum but that of the number format.
    A constant channel correlates with nothing (ρ 0), a sample of zeros resembles nothing.
    Taps: the pooled vector.
    Source: "Information Theoretic Representation Distillation", arXiv:2112.00459.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        alpha: Positive = 1.5,
        correlation_weight: Weight = 2.0,
        mutual_weight: Weight = 1.0,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.correlation_weight, self.mutual_weight = correlation_weight, mutual_weight
        self.gather = gather
        s_channels, t_channels = map_shape(student_shape, "itrd")[1], map_shape(teacher_shape, "itrd")[1]
        self.embed = nn.Linear(s_channels, t_channels)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar; may be negative."""
        student = gather_rows(as_vectors(student, "itrd"), gather=self.gather)
        teacher = gather_rows(as_vectors(teacher, "itrd"), gather=self.gather)
        enough_values(len(student), "itrd")
        projected = self.embed(student)
        standardised, target = _standardised(projected, teacher)
        correlation = (standardised * target).mean(0)
        total: Tensor = (correlation - 1).abs().pow(2 * self.alpha).sum()
        similar = projected if student.shape[1] != teacher.shape[1] else student
        correlated = total.clamp(min=torch.finfo(total.dtype).tiny).log2()
        return self.correlation_weight * correlated + self.mutual_weight * _mutual(similar, teacher)


def _standardised(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    (s, of_s, noise_s), (t, of_t, noise_t) = _centred(student), _centred(teacher)
    floor = torch.finfo(student.dtype).tiny
    divisor_s = lengths(of_s, like=heard(of_t, noise_t), noise=noise_s).clamp(min=floor)
    return s / divisor_s, t / lengths(of_t, noise=noise_t).clamp(min=floor)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Channels without their mean, their deviations, and what rounding may make of the deviations."""
    mean, spread = rows.mean(0), math.sqrt(len(rows) - 1)
    centred = rows - mean
    # vector_norm: its gradient at a constant channel is 0, not NaN.
    return centred, vector_norm(centred, dim=0) / spread, rounding(mean, len(rows)) / spread


def _mutual(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = normalized(student, teacher)
    among_student = student @ student.T
    joint = among_student * (teacher @ teacher.T)
    return (_shares(among_student).pow(2) - _shares(joint).pow(2)).sum()


def _shares(gram: Tensor) -> Tensor:
    """A Gram matrix divided by its trace; by that of unit rows where all of its rows are zero."""
    # Not `trace`, whose gradient waits for a GPU: it takes a number out of it.
    trace = gram.diagonal().sum()
    return gram / torch.where(trace == 0, torch.full_like(trace, len(gram)), trace)
