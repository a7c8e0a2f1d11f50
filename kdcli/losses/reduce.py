"""Means over samples that are the same on N processes as on one.

Each process divides by its share of the count over all of them, so that the mean over processes, which
DDP takes of the gradients, is the mean over all samples. Batches are of one size on all processes, so
plain means need nothing; counts that depend on the data (masks, agreeing rows) go through here. Every
process has to call these equally often.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def global_mean(value: Tensor) -> Tensor:
    """The mean over processes of a detached statistic."""
    value = value.detach()
    if not distributed():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def global_count(count: Tensor) -> Tensor:
    """This process's share of a count over all processes: their sum divided by their number."""
    return global_mean(count)


def per_count(total: Tensor, count: Tensor) -> Tensor:
    """`total` divided by the count over all processes; `total` itself where that is nought."""
    share = global_count(count.to(total.dtype))
    return total / torch.where(share == 0, torch.ones_like(share), share)


def row_mean(rows: Tensor, teacher_weights: Tensor | None = None) -> Tensor:
    """The mean of per-row losses [B, ...], each sample multiplied by its weight [B] where given.

    Weighted rows are still divided by their number, not by the sum of the weights.
    """
    if teacher_weights is not None:
        rows = rows * teacher_weights.to(rows.dtype).reshape(-1, *[1] * (rows.dim() - 1))
    return rows.mean()
