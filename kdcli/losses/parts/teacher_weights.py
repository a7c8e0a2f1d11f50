"""How much each of several teachers counts, sample by sample.

Every function takes the teachers' logits [B, K] as a list, and returns weights [teachers, B] without
gradient. The loss is the sum over teachers of the mean over samples of weight × per-sample loss, which is
what losses do with `teacher_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.parts.inputs import full_precision


@full_precision
def average(teachers: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """1 for each: the plain sum of the teachers' losses. labels: unused."""
    return torch.ones_like(torch.stack(list(teachers))[:, :, 0])


@full_precision
def entropy(teachers: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """(1 − H_n/ΣH)/N: the surer a teacher is of a sample, the more it counts (EBKD); labels: unused.

    H_n is the entropy of softmax(logits). One teacher alone has weight 1.
    Source: "Confidence-Aware Multi-Teacher Knowledge Distillation", arXiv:2201.00007.
    """
    logs = torch.stack(list(teachers)).log_softmax(2)
    number = logs.shape[0]
    if number == 1:
        return torch.ones_like(logs[:, :, 0])
    entropies = -(logs.exp() * logs).sum(2)
    total = entropies.sum(0)
    share = torch.where(total == 0, 1 / number, entropies / torch.where(total == 0, 1, total))
    return (1 - share) / number


@full_precision
def confidence(teachers: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """(1 − softmax over teachers of CE_n)/(N − 1)/N: a teacher nearer to the label counts more (CA-MKD).

    CE_n is a teacher's cross entropy against labels [B]. One teacher alone has weight 1.
    Source: "Confidence-Aware Multi-Teacher Knowledge Distillation", arXiv:2201.00007.
    """
    number = len(teachers)
    assert labels is not None  # KD242 says so before anything runs
    errors = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in teachers])
    if number == 1:
        return torch.ones_like(errors)
    return (1 - errors.softmax(0)) / (number - 1) / number
