"""Flow of solution procedure: how each network's features change from one layer to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from kdcli.errors import RunError
from kdcli.losses.parts.inputs import full_precision, only_maps, same_size, shown


@full_precision
def solution_flow(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of flow matrices (FSP), summed over neighbouring layers.

    A flow matrix is the product of two neighbouring maps of one network over channels, averaged over
    positions (the larger map is averaged down to the smaller). student, teacher: two or more maps
    [B, C, H, W] each, in the order of the network; the channels of a pair are equal, the sizes need not.
    The authors train the student by this loss alone first (weight 1), then for the task.
    Taps: the first and the last map of each stage, or the output of each stage.
    Source: "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017.
    """
    _check(student, teacher)
    losses = [(s - t).pow(2).mean() for s, t in zip(_flows(student), _flows(teacher), strict=True)]
    return sum(losses[1:], start=losses[0])


def _flows(features: Sequence[Tensor]) -> list[Tensor]:
    flows = []
    for bottom, top in pairwise(features):
        bottom, top = same_size(bottom, top)
        bottom, top = bottom.flatten(2), top.flatten(2)
        flows.append(top @ bottom.transpose(1, 2) / bottom.shape[2])
    return flows


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    if len(student) < 2 or len(student) != len(teacher):
        raise RunError.of(
            "KD450",
            f"`fsp` takes two or more layers of each network, not {len(student)} and {len(teacher)}",
            "list neighbouring layers under both `mimic_name`",
        )
    for s, t in zip(student, teacher, strict=True):
        if only_maps(s.shape, "fsp")[1] != only_maps(t.shape, "fsp")[1]:
            raise RunError.of(
                "KD450",
                f"`fsp` compares equal channels, not {shown(s.shape)} with {shown(t.shape)}",
                "add `adapter: auto` to the job, or name layers of equal width",
            )
