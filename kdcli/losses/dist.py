"""DIST: Pearson correlation between and within classes instead of KL."""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm

from kdcli.losses.parts.directions import heard, lengths, rounding
from kdcli.losses.parts.inputs import check_logits, full_precision
from kdcli.losses.parts.reduce import gather_rows
from kdcli.spec.ranges import Temperature, Weight

EPSILON = 1e-8


@full_precision
def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: Weight = 1.0,
    gamma: Weight = 1.0,
    T: Temperature = 1.0,
    gather: bool = False,
) -> Tensor:
    """T²·(beta·mean over rows of (1 − ρ) + gamma·mean over columns of (1 − ρ)).

    student, teacher: logits [B, K]; ρ is Pearson's correlation of the softmax probabilities at T. Columns
    relate the samples of one process, of all processes with gather. One row has no columns to
    correlate: their ρ counts as 0. So does that of a constant row or column (a head that starts at zero
    has no other), whose gradient is that of one with a usual deviation, a tenth of the teacher's where
    all are constant. A scalar; raises RunError for other shapes.
    Source: "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536.
    """
    check_logits(student, teacher, None, "dist")
    student, teacher = (gather_rows(x, gather=gather) for x in (student, teacher))
    s, t = (student / T).softmax(1), (teacher / T).softmax(1)
    between, within = 1 - _pearson(s, t, 1).mean(), 1 - _pearson(s, t, 0).mean()
    return (beta * between + gamma * within) * T**2


def _pearson(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    (s, s_norm, s_noise), (t, t_norm, t_noise) = _centred(student, axis), _centred(teacher, axis)
    of_s = lengths(s_norm, like=heard(t_norm, t_noise), noise=s_noise)
    of_t = lengths(t_norm, noise=t_noise)
    return (s * t).sum(axis) / (of_s * of_t + EPSILON)


def _centred(rows: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows without their mean, their norms, and what rounding may make of the norms."""
    mean = rows.mean(axis, keepdim=True)
    centred = rows - mean
    return centred, vector_norm(centred, dim=axis), rounding(mean.squeeze(axis), rows.shape[axis])
