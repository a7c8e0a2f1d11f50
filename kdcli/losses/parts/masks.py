"""Masks, broadcast to what they mask before anything is counted."""

from __future__ import annotations

from torch import Tensor


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
