"""Pearson distillation: maps compared after each channel is standardised."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcli.errors import RunError
from kdcli.losses.parts.directions import heard, lengths
from kdcli.losses.parts.inputs import as_map, enough_values, full_precision, same_places, shown


@full_precision
def pearson(student: Tensor, teacher: Tensor, *, resize_student: bool = True) -> Tensor:
    """Half the mean squared difference of features z-scored per channel over batch and positions (PKD).

    The batch is that of each process. The standard deviation is the unbiased one, plus 1e-6; a constant channel
    stays 0. student, teacher: maps [B, C, H, W], equally many tokens [B, N, D] or vectors [B, D], with equally
    many channels; maps of another size are resized bilinearly, the student's to the teacher's or (resize_student
    false) the other way round. Pairs are summed.
    Taps: each level of the neck, or the output of a stage.
    Source: "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", arXiv:2207.02039.
    """
    same_places(student.shape, teacher.shape, "pkd")
    student, teacher = as_map(student, "pkd"), as_map(teacher, "pkd")
    if student.shape[2:] != teacher.shape[2:]:
        if resize_student:
            student = F.interpolate(student, teacher.shape[2:], mode="bilinear")
        else:
            teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear")
    if student.shape[1] != teacher.shape[1]:
        raise RunError.of(
            "KD450",
            f"`pkd` compares channel by channel, not {shown(student.shape)} with {shown(teacher.shape)}",
            "add `adapter: auto` to the job",
        )
    enough_values(student.numel() // student.shape[1], "pkd")
    (s, of_s), (t, of_t) = _centred(student), _centred(teacher)
    s, t = s / (lengths(of_s, like=heard(of_t)) + 1e-6), t / (lengths(of_t, like=heard(of_s)) + 1e-6)
    return F.mse_loss(s, t) / 2


def _centred(feature: Tensor) -> tuple[Tensor, Tensor]:
    """A feature without the means of its channels, and their deviations."""
    mean = feature.mean((0, 2, 3), keepdim=True)
    deviation = feature.std((0, 2, 3), keepdim=True)
    return feature - mean, deviation
