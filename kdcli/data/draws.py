"""Random numbers as a pure function of counters: no generator, no state.

Each number is a 64-bit hash of (seed, stream, epoch, sample id, position). The hash chains the output
function of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014;
constants of Stafford's variant 13), one round per counter, in wrapping uint64 arithmetic. So a worker, a
rank or a resumed run that asks for the same counters gets the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
_Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = (np.uint64(bits) for bits in (27, 30, 31, 11))

# Streams keep apart what is drawn for different purposes from the same seed and epoch.
ORDER, MIXING, SPLIT, CONTENT, GIVEN, AUGMENT = 1, 2, 3, 4, 5, 16
"""AUGMENT + i belongs to the i-th transform, and is therefore the last."""


def _absorb(state: _Words, counter: _Words) -> _Words:
    """One round: state and counter, broadcast, to a new state."""
    z = (state ^ counter) + _GAMMA
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


def _word(value: int) -> _Words:
    return np.array([value & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)


@lru_cache(maxsize=64)
def _state(seed: int, stream: int, epoch: int) -> _Words:
    """The state before the ids: the same for all images of an epoch, which are drawn for one by one."""
    return _absorb(_absorb(_absorb(_word(0), _word(seed)), _word(stream)), _word(epoch))


def hashes(seed: int, epoch: int, ids: Sequence[int] | Ids, count: int, *, stream: int = 0) -> _Words:
    """uint64 [len(ids), count]: the hash of each (seed, stream, epoch, id, position)."""
    per_id = _absorb(_state(seed, stream, epoch), np.asarray(ids, dtype=np.int64).astype(np.uint64))
    return _absorb(per_id[:, None], np.arange(count, dtype=np.uint64)[None, :])


def uniform(seed: int, epoch: int, ids: Sequence[int] | Ids, count: int, *, stream: int = 0) -> Floats:
    """float64 [len(ids), count], uniform in [0, 1): the upper 53 bits of `hashes`."""
    return (hashes(seed, epoch, ids, count, stream=stream) >> _S11).astype(np.float64) * 2.0**-53


def seed_of(seed: int, epoch: int, id: int, *, stream: int = 0) -> int:
    """A seed in [0, 2**63) for a generator object, as a function of the counters."""
    return int(hashes(seed, epoch, [id], 1, stream=stream)[0, 0] >> np.uint64(1))


def permutation(seed: int, epoch: int, count: int, *, stream: int = ORDER) -> Ids:
    """int64 [count]: 0..count-1 in the order of their hashes."""
    keys = hashes(seed, epoch, np.arange(count, dtype=np.int64), 1, stream=stream)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64)


def generator(seed: int, epoch: int, id: int, *, stream: int) -> np.random.Generator:
    """numpy's Philox under a counter's seed, for distributions that need more than a uniform."""
    return np.random.Generator(np.random.Philox(key=seed_of(seed, epoch, id, stream=stream)))


AT_ONCE = 1 << 20
"""So many numbers of an epoch are drawn together, 8 MiB; where it takes more, each batch draws its own."""


class EpochDraws:
    """The random numbers of all samples in one epoch, drawn together when the first batch asks for them.

    The same as drawn for a batch alone, which takes 25 calls of numpy whose time few samples do not fill.
    """

    def __init__(self, seed: int, epoch: int, samples: int) -> None:
        self.seed, self.epoch, self.samples = seed, epoch, samples
        self._drawn: dict[tuple[int, int], Floats] = {}

    def uniform(self, ids: Ids, count: int, stream: int) -> Floats:
        """float64 [len(ids), count], as `uniform` gives it."""
        if self.samples * count > AT_ONCE:
            return uniform(self.seed, self.epoch, ids, count, stream=stream)
        drawn = self._drawn.get((stream, count))
        if drawn is None:
            drawn = uniform(self.seed, self.epoch, np.arange(self.samples), count, stream=stream)
            self._drawn[stream, count] = drawn
        rows: Floats = drawn[ids]
        return rows


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of some samples in one view of the data, for one transform.

    epoch is already reduced modulo the number of cached views. ids: int64 [n]. together: the numbers of all samples
    in this view, where every batch of it is drawn for.
    """

    seed: int
    epoch: int
    ids: Ids
    stream: int = AUGMENT
    together: EpochDraws | None = None

    def uniform(self, count: int) -> Floats:
        """float64 [n, count] in [0, 1)."""
        if self.together is not None:
            return self.together.uniform(self.ids, count, self.stream)
        return uniform(self.seed, self.epoch, self.ids, count, stream=self.stream)

    def seeds(self) -> list[int]:
        """One seed a sample."""
        return [seed_of(self.seed, self.epoch, int(i), stream=self.stream) for i in self.ids]

    def of(self, transform: int) -> Draws:
        """The same samples, for the transform at this place in the list."""
        return Draws(self.seed, self.epoch, self.ids, AUGMENT + transform, self.together)

    def at(self, rows: Any) -> Draws:
        """The samples at these rows."""
        return Draws(self.seed, self.epoch, self.ids[rows], self.stream, self.together)
