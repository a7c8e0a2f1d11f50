"""Means over samples, masked or weighted, that are the same on N processes as on one; the rows of all processes.

Each process divides by its share of the count over all of them, so that the mean over processes, which
DDP takes of the gradients, is the mean over all samples. Batches are of one size on all processes, so
plain means need nothing; counts that depend on the data (masks, agreeing rows) go through here. Every
process has to call these equally often.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

_ALONE = [False]


def distributed() -> bool:
    """Whether more than one process computes a loss together."""
    return not _ALONE[0] and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def alone() -> Iterator[None]:
    """While it is entered, a loss is that of this process's batch: nothing is gathered from others."""
    before, _ALONE[0] = _ALONE[0], True
    try:
        yield
    finally:
        _ALONE[0] = before


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
    """`total` divided by the count over all processes; `total` itself where the count is 0."""
    share = global_count(count.to(total.dtype))
    return total / torch.where(share == 0, torch.ones_like(share), share)


def row_mean(rows: Tensor, teacher_weights: Tensor | None = None) -> Tensor:
    """The mean of per-row losses [B, ...], each sample multiplied by its weight [B] where given.

    Weighted rows are still divided by their number, not by the sum of the weights.
    """
    if teacher_weights is not None:
        rows = rows * teacher_weights.to(rows.dtype).reshape(-1, *[1] * (rows.dim() - 1))
    return rows.mean()


def times(loss: Tensor, factor: float) -> Tensor:
    """A loss times a factor; the loss itself where that is 1: the same bits, and no operation to differentiate."""
    return loss if factor == 1.0 else loss * factor


def broadcast_mask(mask: Tensor, like: Tensor) -> Tensor:
    """The mask in the shape and dtype of `like`, a new view or tensor, never changed in place.

    mask: bool or a weight in [0, 1]; of as many axes as `like` with sizes equal or 1, or [B] for whole
    rows, or [B, H, W] for all channels of [B, C, H, W]. Raises ValueError for any other.
    """
    shaped = mask
    if mask.dim() == 1 and like.dim() > 1:
        shaped = mask.reshape(-1, *[1] * (like.dim() - 1))
    elif like.dim() == 4 and mask.dim() == 3:
        shaped = mask.unsqueeze(1)
    fits = shaped.dim() == like.dim() and all(
        m in (1, size) for m, size in zip(shaped.shape, like.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"a mask of shape {list(mask.shape)} does not fit a feature of {list(like.shape)}")
    return shaped.to(like.dtype).expand(like.shape)


def row_mask(mask: Tensor, rows: Tensor) -> Tensor:
    """The mask in the shape and dtype of `rows` [B, *positions], which have no class axis any more.

    mask: as rows, [B] for all positions of a sample, or with a class axis of size 1 at 1.
    """
    if mask.dim() == rows.dim() + 1 and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    return broadcast_mask(mask, rows)


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


def is_scalar(loss: object) -> TypeGuard[Tensor]:
    """Whether a loss is one number that may have a gradient."""
    return isinstance(loss, Tensor) and not loss.dim() and loss.is_floating_point()


def no_scalar(loss: object) -> tuple[str, str]:
    """What a loss returned in place of one number with a gradient, and what to do about it."""
    if loss is None:
        return "it returns nothing", "end its `forward` with `return`"
    if not isinstance(loss, Tensor):
        number = "return the tensor itself, without `.item()`: a plain number has no gradient"
        help = number if isinstance(loss, (int, float)) else "return one tensor"
        return f"it returns a {type(loss).__name__}", help
    if loss.dim():
        return f"{list(loss.shape)}", "return one number: `.mean()`, or a sum that is divided by the batch"
    return (
        f"it is of {str(loss.dtype).removeprefix('torch.')}",
        "compute it in floats: whole numbers have no gradient",
    )
