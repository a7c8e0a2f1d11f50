"""The simple recipe: normalised projections compared under a log, beside the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.losses.parts.inputs import as_vectors, enough_values, full_precision, map_shape
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Temperature, Weight


class SimpleRecipe(StatefulLoss):
    """alpha·log sum|BN(W s) − BN(t)|⁴ + beta·T²·KL of the logits (SRD); the sum is over batch and channels.

    W is a trained linear map with bias, BN a batch norm without weights (eps 1e-4), one for each network.
    Features are averaged over their positions. KL is averaged over rows. The batch is that of each
    process. The log is natural and has no lower bound but that of the number format.
    Taps: the last map before pooling, or the pooled vector.
    Source: "Understanding the Role of the Projector in Knowledge Distillation", arXiv:2303.11098.
    """

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        *,
        alpha: Weight = 2.0,
        beta: Weight = 1.0,
        T: Temperature = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.T = alpha, beta, T
        s_channels, t_channels = map_shape(student_shape, "srd")[1], map_shape(teacher_shape, "srd")[1]
        self.embed = nn.Linear(s_channels, t_channels)
        self.bn_s = nn.BatchNorm1d(t_channels, eps=1e-4, affine=False)
        self.bn_t = nn.BatchNorm1d(t_channels, eps=1e-4, affine=False)

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor
    ) -> Tensor:
        """A scalar; may be negative."""
        if self.training:
            enough_values(len(student), "srd")
        projected = self.bn_s(self.embed(as_vectors(student, "srd")))
        target = self.bn_t(as_vectors(teacher, "srd"))
        total: Tensor = (projected - target).pow(4).sum()
        feature = total.clamp(min=torch.finfo(total.dtype).tiny).log()
        log_s, log_t = ((x / self.T).log_softmax(1) for x in (student_logits, teacher_logits))
        logits = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * self.T**2
        return self.alpha * feature + self.beta * logits
