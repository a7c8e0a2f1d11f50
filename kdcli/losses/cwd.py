"""Channel-wise distillation: each channel as a distribution over positions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcli.losses.parts.inputs import as_map, equal_shapes, full_precision
from kdcli.spec.ranges import Temperature


@full_precision
def channel_wise(student: Tensor, teacher: Tensor, *, T: Temperature = 1.0) -> Tensor:
    """T²·KL of the per-channel spatial softmaxes (CWD), averaged over B and C.

    student, teacher: maps [B, C, H, W], or tokens [B, N, D] (a channel is one of D), of equal shape.
    Pairs are summed. For the logits of segmentation the authors use T 4.
    Taps: the map that goes into the head, or its logits map.
    Source: "Channel-wise Knowledge Distillation for Dense Prediction", arXiv:2011.13256.
    """
    equal_shapes(student, teacher, "cwd")
    log_s, log_t = ((as_map(x, "cwd").flatten(2) / T).log_softmax(2) for x in (student, teacher))
    channels = log_s.shape[0] * log_s.shape[1]
    divergence = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return T**2 * divergence / channels
