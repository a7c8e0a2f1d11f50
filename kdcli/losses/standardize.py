"""Logit standardisation: the z-score of each row, before any temperature."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.directions import lengths
from kdcli.losses.precision import full_precision

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
