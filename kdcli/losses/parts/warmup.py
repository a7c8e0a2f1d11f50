"""A warm-up that belongs to a method: its authors grow the loss over the first epochs."""

from __future__ import annotations


def epoch_share(epoch: int | None, warmup_epochs: int) -> float:
    """min((epoch + 1)/warmup_epochs, 1) for epochs from 0; 1 without epoch or warm-up."""
    if epoch is None or warmup_epochs <= 0:
        return 1.0
    return min((epoch + 1) / warmup_epochs, 1.0)
