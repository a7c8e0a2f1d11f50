"""Attention transfer: where each network looks, as the energy of its channels at every position."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import full_precision, with_positions
from kdcli.spec.ranges import Count


@full_precision
def attention_transfer(student: Tensor, teacher: Tensor, *, p: Count = 2) -> Tensor:
    """Squared distance of two normalised attention maps (AT), averaged over batch and positions.

    The attention is the mean over channels of feature**p, flattened and divided by its row's L2 norm.
    student, teacher: maps [B, C, H, W], channels and sizes may differ (the larger is averaged down to
    the smaller), or tokens [B, N, D] of equal number. Pairs are summed.
    Taps: the output of each stage.
    Source: "Paying More Attention to Attention", arXiv:1612.03928.
    """
    student, teacher = with_positions(student, teacher, "at")
    s, t = normalized(_attention(student, p), _attention(teacher, p), power=p)
    return (s - t).pow(2).mean()


def _attention(feature: Tensor, p: int) -> Tensor:
    return feature.pow(p).mean(1).flatten(1)
