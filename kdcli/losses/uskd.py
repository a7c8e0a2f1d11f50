"""USKD: soft labels that a student makes for itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcli.losses.parts.inputs import check_labels, full_precision
from kdcli.losses.parts.logits import label_log_probability, log_softmax_without, one_hot_mask
from kdcli.losses.parts.reduce import global_mean
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Weight

SMOOTHING = 0.1
EPSILON = 1e-6


class USKD(StatefulLoss):
    """alpha·target + beta·non-target + weak, where a linear on a middle feature makes weak logits.

    student_shape: the middle feature's, [B, D], [B, C, H, W] (averaged over positions) or [B, N, D]
    (averaged over tokens). num_classes: K. Trains the linear.
    Source: "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", arXiv:2303.13005.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        num_classes: int,
        *,
        alpha: Weight = 1.0,
        beta: Weight = 0.1,
        mu: Weight = 0.005,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.mu = mu
        self.classifier = nn.Linear(student_shape[-1 if len(student_shape) == 3 else 1], num_classes)

    @full_precision
    def forward(self, student: Tensor, student_logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar in nats, each part a mean over rows.

        student: the middle feature; student_logits: [B, K]; labels y: [B]. Target: cross entropy of y
        weighted by s_y² + 1 − its mean over the batch (of all processes). Non-target: cross entropy over
        the other classes against Zipf weights 1/rank, where classes are ranked, y among them, by
        w/(1 − w_y + 1e-6) + log s/(1 − log s_y + 1e-6), w the weak probabilities (the logarithm is the
        authors'). Weak: mu times the cross entropy of w against labels smoothed by 0.1.
        """
        check_labels(student_logits, labels, "uskd")
        chosen = one_hot_mask(labels, student_logits)
        log_s = student_logits.log_softmax(1)
        log_s_label = label_log_probability(student_logits, labels)
        with torch.no_grad():
            squared = (2 * log_s_label).exp()
            focus = squared + 1 - global_mean(squared.mean())
        target = -(focus * log_s_label).mean()

        log_weak = self.classifier(_pooled(student)).log_softmax(1)
        smooth = chosen.to(log_weak.dtype) * (1 - SMOOTHING) + SMOOTHING / log_weak.shape[1]
        weak = -(smooth * log_weak).sum(1).mean()

        with torch.no_grad():
            zipf = _zipf(log_weak.exp(), log_s, chosen)
        others = -(zipf * log_softmax_without(student_logits, chosen)).sum(1).mean()
        total: Tensor = self.alpha * target + self.beta * others + self.mu * weak
        return total


def _pooled(feature: Tensor) -> Tensor:
    if feature.dim() == 4:
        return feature.mean((2, 3))
    return feature.mean(1) if feature.dim() == 3 else feature


def _zipf(weak: Tensor, log_student: Tensor, chosen: Tensor) -> Tensor:
    """1/rank of each class, the label's set to 0, rows renormalised to sum to 1; [B, K]."""

    def at_label(values: Tensor) -> Tensor:
        return values.masked_fill(~chosen, 0.0).sum(1, keepdim=True)

    score = weak / (1 - at_label(weak) + EPSILON)
    score = score + log_student / (1 - at_label(log_student) + EPSILON)
    rank = score.argsort(1, descending=True).argsort(1)
    zipf = (1.0 / (rank + 1).to(weak.dtype)).masked_fill(chosen, 0.0)
    return zipf / zipf.sum(1, keepdim=True)
