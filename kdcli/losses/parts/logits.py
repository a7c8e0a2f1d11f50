"""The arithmetic that logit losses share: divergences in log space, and z-scored logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.parts.directions import lengths
from kdcli.losses.parts.inputs import full_precision

EXCLUDED = -1e9
"""Stands for log(0): finite, so that no gradient becomes NaN."""


def kl_rows(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats of log-probabilities over axis 1: [B, K, ...] to [B, ...]."""
    return (teacher_log.exp() * (teacher_log - student_log)).sum(1)


def tempered_kl_rows(student: Tensor, teacher: Tensor, T: float | Tensor) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)) over axis 1: logits [B, K, ...] to [B, ...]."""
    return kl_rows((student / T).log_softmax(1), (teacher / T).log_softmax(1)) * T**2


def one_hot_mask(labels: Tensor, logits: Tensor) -> Tensor:
    """Bool [B, K], true at each row's label."""
    return torch.arange(logits.shape[1], device=logits.device) == labels.unsqueeze(1)


def two_way(log_probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Log-probabilities [B, 2] of the chosen class (bool [B, K], one a row) and of all others."""
    target = log_probabilities.masked_fill(~chosen, 0.0).sum(1)
    rest = log_probabilities.masked_fill(chosen, EXCLUDED).logsumexp(1)
    return torch.stack((target, rest), 1)


def log_softmax_without(logits: Tensor, excluded: Tensor) -> Tensor:
    """Log-softmax [B, K] over the classes that are not excluded (bool [B, K]); those become about -1e9."""
    return logits.masked_fill(excluded, EXCLUDED).log_softmax(1)


def label_log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """log softmax(logits) at each row's label, [B]."""
    return -F.cross_entropy(logits, labels, reduction="none")


EPSILON = 1e-7


@full_precision
def standardize(logits: Tensor) -> Tensor:
    """(logits − mean)/(std + 1e-7) over classes, with the unbiased std.

    logits: [B, K] or [B, K, ...]; the class axis is 1. A constant row becomes 0, and its gradient is that of
    a row of a usual std (the batch's median; 0.1 where all are constant). fp16 and bf16 become float32.
    Source: "Logit Standardization in Knowledge Distillation", arXiv:2403.01427.
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (lengths(logits.std(1, keepdim=True)) + EPSILON)
