"""Cross entropies for classes of unlike frequency that weigh the classes by the gradients they have had so far."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.errors import RunError
from kdcli.spec.ranges import NonNegative, Positive, TaskWeight, Width

Indicator = Literal["pos", "neg", "pos_and_neg"]


class SoftmaxEql(nn.Module):
    """Cross entropy whose negative classes count by the ratio of gradients collected, class for class.

    Logits [B, K] and classes [B] int64 to a scalar, a mean over the batch. The logit of class j is raised by
    tau * log(r_j / r_i) for a sample of class i, where r, at least eps, is what `indicator` names: `pos_grad`, the sum
    over all samples so far of |dL/dlogit| at their own class; `neg_grad`, at the others; `pos_and_neg`, the ratio of
    the two plus neg_grad. Gradients are collected in every training step, summed over processes, from the loss itself
    (its own weight included), without the hook `gradient_collector` that United-Perception needs for it.
    Source: United-Perception's up/tasks/cls/models/losses/cls_loss.py.
    """

    pos_grad: Tensor
    neg_grad: Tensor
    pos_neg: Tensor

    def __init__(
        self,
        *,
        num_classes: Width,
        indicator: Indicator = "pos",
        loss_weight: TaskWeight = 1.0,
        tau: NonNegative = 1.0,
        eps: Positive = 1e-4,
    ) -> None:
        super().__init__()
        self.num_classes, self.indicator = num_classes, indicator
        self.loss_weight, self.tau, self.eps = loss_weight, tau, eps
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.ones(num_classes))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss; while training it also collects the gradient."""
        if targets.ndim != 1 or logits.shape[1] != self.num_classes:
            message = (
                f"softmax_eql has `num_classes: {self.num_classes}`, but there are {logits.shape[1]} logits"
            )
            help = "give the loss and the head the same number of classes"
            if targets.ndim != 1:
                message = "softmax_eql needs class indices, and the labels are mixed"
                help = "leave `batch_fn` out, or take another `cls_loss`"
            raise RunError.of("KD417", message, help)
        raised = logits + self.raised(targets).to(logits.dtype)
        if self.training:
            self._collect(raised.detach(), targets)
        return F.cross_entropy(raised, targets) * self.loss_weight

    def raised(self, targets: Tensor) -> Tensor:
        """What is added to the logits of samples of these classes, [B, K]; 0 at the own class."""
        ratio = self.indicated().clamp(min=self.eps).log()
        return self.tau * (ratio[None, :] - ratio[targets][:, None])

    def indicated(self) -> Tensor:
        """The quantity of each class that `indicator` names, [K]."""
        if self.indicator == "pos_and_neg":
            return self.pos_neg + self.neg_grad
        return self.pos_grad if self.indicator == "pos" else self.neg_grad

    @torch.no_grad()
    def _collect(self, raised: Tensor, targets: Tensor) -> None:
        own = torch.zeros_like(raised, dtype=torch.float32).scatter(1, targets[:, None], 1.0)
        gradient = (raised.float().softmax(1) - own).abs() * (self.loss_weight / len(targets))
        sums = torch.stack([(gradient * own).sum(0), (gradient * (1 - own)).sum(0)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self.pos_grad += sums[0]
        self.neg_grad += sums[1]
        self.pos_neg.copy_(self.pos_grad / (self.neg_grad + 1e-10))


class SoftmaxEqlV2(SoftmaxEql):
    """Cross entropy whose logits are raised by the logarithm of each class's share of the gradients collected.

    As softmax_eql, but every logit j, the own class's too, is raised by log((r_j / (sum of r + eps)) ** tau + 1e-9).
    Source: `softmax_eqlv2` of United-Perception's up/tasks/cls/models/losses/cls_loss.py.
    """

    def raised(self, targets: Tensor) -> Tensor:
        """What is added to the logits, [1, K]."""
        shares = self.indicated() / (self.indicated().sum() + self.eps)
        return (shares**self.tau + 1e-9).log()[None, :]
