"""Logit standardisation: the z-score of each row, before any temperature."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.precision import full_precision

EPSILON = 1e-7


@full_precision
def standardize(logits: Tensor) -> Tensor:
    """(logits − mean)/(std + 1e-7) over classes, with the unbiased std.

    logits: [B, K] or [B, K, ...]; the class axis is 1. fp16 and bf16 become float32.
    Source: "Logit Standardization in Knowledge Distillation", arXiv:2403.01427.
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logits.std(1, keepdim=True) + EPSILON)
