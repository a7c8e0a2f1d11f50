"""Sampling: which matched candidates are trained on.

Random choices come from torch's main generator on the CPU, which the run checkpoints, so that a resumed
run draws as an uninterrupted one, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.models.detection.matchers import NEGATIVE


class NaiveSampler:
    """At most batch_size·positive_percent positives, filled up to batch_size with negatives, at random."""

    def __init__(self, batch_size: int, positive_percent: float) -> None:
        if batch_size < 1 or not 0 <= positive_percent <= 1:
            raise ValueError("batch_size is positive and positive_percent in 0..1")
        self.batch_size, self.positive_percent = batch_size, positive_percent

    def choose(self, indices: Tensor, most: int) -> Tensor:
        """At most so many of the indices."""
        if len(indices) <= most:
            return indices
        return indices[torch.randperm(len(indices))[:most].to(indices.device)]

    def sample(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the positives and negatives taken from a matcher's result [N]."""
        positive = self.choose(
            torch.nonzero(target >= 0).flatten(), int(self.batch_size * self.positive_percent)
        )
        negative = torch.nonzero(target == NEGATIVE).flatten()
        return positive, self.choose(negative, self.batch_size - len(positive))


class FirstSampler(NaiveSampler):
    """As NaiveSampler, but the first ones in place of random ones."""

    def choose(self, indices: Tensor, most: int) -> Tensor:
        """At most so many of the indices."""
        return indices[:most]


class AllSampler:
    """Every positive and every negative."""

    def __init__(self) -> None:
        pass

    def sample(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the positives and negatives of a matcher's result [N]."""
        return torch.nonzero(target >= 0).flatten(), torch.nonzero(target == NEGATIVE).flatten()


SAMPLERS = {
    "naive": NaiveSampler,
    "naive_a100": NaiveSampler,
    "no_random": FirstSampler,
    "keep_all": AllSampler,
}
