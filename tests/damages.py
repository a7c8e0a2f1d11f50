"""What disks and copies do to files, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterator


def damages(data: bytes, count: int = 200, seed: int = 0) -> Iterator[bytes]:
    """So many damaged copies: bits flipped (often one), ends cut off, blocks zeroed, blocks exchanged."""
    draws = random.Random(seed)
    while count:
        damaged = bytearray(data)
        kind = draws.randrange(5)
        size = draws.randrange(1, max(2, len(data) // 8))
        one, other = (draws.randrange(len(data) - size + 1) for _ in range(2))
        if kind < 2:
            for _ in range(1 if kind == 0 else draws.randrange(1, 20)):
                damaged[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        elif kind == 2:
            damaged = damaged[: len(data) - size]
        elif kind == 3:
            damaged[one : one + size] = bytes(size)
        else:
            damaged[one : one + size], damaged[other : other + size] = (
                data[other : other + size],
                data[one : one + size],
            )
        if bytes(damaged) != data:
            count -= 1
            yield bytes(damaged)
