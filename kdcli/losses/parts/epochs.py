"""What of a loss changes from epoch to epoch: a learned temperature (CTKD), a warm-up that belongs to a method."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def epoch_share(epoch: int | None, warmup_epochs: int) -> float:
    """min((epoch + 1)/warmup_epochs, 1) for epochs from 0; 1 without epoch or warm-up."""
    if epoch is None or warmup_epochs <= 0:
        return 1.0
    return min((epoch + 1) / warmup_epochs, 1.0)


class LearnedTemperature(nn.Module):
    """T = start + range·sigmoid(theta), one theta for all samples, which starts at 1.

    Its gradient is multiplied by lambda = (cos(π·min(n, N)/N) − 1)/2, from 0 to −1, where n counts the epochs
    from 1 and N is cosine_epochs: theta makes the loss harder while the student makes it smaller.
    Source: "Curriculum Temperature for Knowledge Distillation", arXiv:2211.16231.
    """

    def __init__(self, *, start: float = 1.0, range: float = 20.0, cosine_epochs: int = 10) -> None:
        super().__init__()
        self.start = start
        self.range = range
        self.cosine_epochs = cosine_epochs
        # One element, not a scalar: FSDP cannot shard scalars.
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, epoch: float) -> Tensor:
        """The temperature, a scalar tensor; epoch counts from 0."""
        theta = self.theta.squeeze(0)
        fixed = theta.detach()
        reversed_theta = fixed + self.reversal(epoch) * (theta - fixed)
        return self.start + self.range * reversed_theta.sigmoid()

    def reversal(self, epoch: float) -> float:
        """Lambda in an epoch that counts from 0."""
        done = min((math.floor(epoch) + 1) / self.cosine_epochs, 1.0)
        return (math.cos(math.pi * done) - 1.0) / 2.0
