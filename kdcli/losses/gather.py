"""Gathering the rows of all processes, with gradients, for losses that relate samples of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdcli.losses.reduce import distributed


def gather_rows(rows: Tensor, *, gather: bool = True) -> Tensor:
    """The rows [B, ...] of every process in rank order, [world × B, ...]; the rows themselves on one.

    B must be equal on all processes. The gradient of a row is summed over processes, so that the mean
    of gradients which DDP takes equals the gradient of the loss on the whole batch.
    """
    if not gather or not distributed():
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
