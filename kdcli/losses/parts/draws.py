"""Random draws as a function of counters: the same whichever process or device, after whatever resume.

A row is drawn from (salt, step, sample index). So N processes draw for their samples what one would draw
for all of them, and nothing depends on a generator's state.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 0xFFFFFFFF
_ROUNDS = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))


def new_salt() -> Tensor:
    """What tells one use of draws from another: from the main generator, to be kept as a buffer."""
    return torch.randint(1 << 32, ())


def drawn_integers(salt: Tensor, step: int, indices: Tensor, columns: int, *, below: int | Tensor) -> Tensor:
    """Integers of [0, below), [B, columns] int64, each as likely as any; indices [B]: of the samples.

    below: one number, or one for each sample [B, 1].
    """
    return (_bits(salt, step, indices, columns) * below) >> 32


def drawn_shares(salt: Tensor, step: int, indices: Tensor, columns: int) -> Tensor:
    """Numbers of [0, 1), [B, columns] float32, evenly spread; indices [B]: of the samples."""
    return (_bits(salt, step, indices, columns) >> 8) * 2.0**-24


def _bits(salt: Tensor, step: int, indices: Tensor, columns: int) -> Tensor:
    """32 random bits in int64, [B, columns]."""
    rows = _mixed(_mixed(_mixed(salt) + step) + indices)
    numbers = _mixed(torch.arange(columns, device=indices.device) + 1)
    return _mixed(rows[:, None] ^ numbers)


def _mixed(x: Tensor) -> Tensor:
    """The last rounds of MurmurHash3 on 32 bits: every bit of x changes about half of those that come out."""
    x = x & _BITS
    for shift, factor in _ROUNDS:
        x = ((x ^ (x >> shift)) * factor) & _BITS
    return x ^ (x >> 16)
