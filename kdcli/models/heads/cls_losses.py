"""Classification losses on labels or mixed targets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.errors import RunError


def cross_entropy(logits: Tensor, targets: Tensor, *, loss_weight: float = 1.0) -> Tensor:
    """Cross entropy in nats, mean over the batch.

    logits [B, K]; targets: classes [B] int64 or probabilities [B, K].
    """
    return F.cross_entropy(logits, targets) * loss_weight


def label_smooth_ce(
    logits: Tensor, targets: Tensor, *, smooth_ratio: float, num_classes: int, loss_weight: float = 1.0
) -> Tensor:
    """Cross entropy to (1 − s) of the target and s/K for every class, mean over the batch.

    logits [B, K]; targets: classes [B] int64 or probabilities [B, K]; s is smooth_ratio.
    Source: "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.
    """
    if logits.shape[1] != num_classes:
        raise RunError.of(
            "KD417",
            f"label_smooth_ce has `num_classes: {num_classes}`, but there are {logits.shape[1]} logits",
            "give the loss and the head the same number of classes",
        )
    smooth = soft_targets(targets, num_classes, logits) * (1 - smooth_ratio) + smooth_ratio / num_classes
    return F.cross_entropy(logits, smooth) * loss_weight


def bce(logits: Tensor, targets: Tensor, *, bias: bool = False, loss_weight: float = 1.0) -> Tensor:
    """Binary cross entropy of each class in nats, mean over batch and classes.

    logits [B, K]; targets: classes [B] int64 or probabilities [B, K]. bias: with probabilities,
    the logits are lowered by log K and the mean is multiplied by K.
    """
    wanted = soft_targets(targets, logits.shape[1], logits)
    scale = logits.shape[1] if bias and targets.ndim == 2 else 1
    loss = F.binary_cross_entropy_with_logits(logits - math.log(scale), wanted)
    return loss * scale * loss_weight


def soft_targets(targets: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Targets as probabilities [B, K]."""
    if targets.ndim == 2:
        return targets.to(like.dtype)
    # A scatter, as one_hot checks its input's values and so waits for the device.
    zeros = torch.zeros((targets.shape[0], num_classes), dtype=like.dtype, device=like.device)
    return zeros.scatter(1, targets.view(-1, 1), 1.0)


CLS_LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax_cross_entropy": cross_entropy,
    "ce": cross_entropy,
    "stce": cross_entropy,
    "label_smooth_ce": label_smooth_ce,
    "bce": bce,
}


def cls_loss(spec: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of `{type, kwargs}` with its arguments bound; raises ValueError naming what is wrong."""
    kind, kwargs = spec.get("type"), dict(spec.get("kwargs") or {})
    if kind not in CLS_LOSSES or set(spec) - {"type", "kwargs"}:
        raise ValueError(
            f"cls_loss is {{type, kwargs}} with a type of {', '.join(CLS_LOSSES)}, not {dict(spec)}"
        )
    loss = CLS_LOSSES[kind]
    options = {n: p for n, p in inspect.signature(loss).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in kwargs:
        if name not in options:
            raise ValueError(f"cls_loss `{kind}` has no argument `{name}`; it takes {', '.join(options)}")
    for name, parameter in options.items():
        if parameter.default is parameter.empty and name not in kwargs:
            raise ValueError(f"cls_loss `{kind}` needs `{name}`")

    return partial(loss, **kwargs)
