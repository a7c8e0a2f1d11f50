"""Neuron selectivity transfer: which patterns of positions the channels answer to."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import full_precision, with_positions


@full_precision
def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """Maximum mean discrepancy of the channels under the kernel (a·b)², averaged over the batch (NST).

    Each channel is flattened and divided by its L2 norm; a dead one is 0. student, teacher: maps [B, C, H, W], channels
    and sizes may differ (the larger is averaged down to the smaller), or tokens [B, N, D] of equal
    number. Pairs are summed.
    Taps: the output of each stage.
    Source: "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219.
    """
    student, teacher = with_positions(student, teacher, "nst")
    student, teacher = normalized(student.flatten(2), teacher.flatten(2), 2)
    among_teacher = _kernel(teacher, teacher).mean()
    among_student = _kernel(student, student).mean()
    return among_teacher + among_student - 2 * _kernel(student, teacher).mean()


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.transpose(1, 2)).pow(2)
