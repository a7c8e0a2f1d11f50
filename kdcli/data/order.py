"""The order of the samples of one side of the data, as batches of ids, epoch by epoch.

In training: the permutation of (seed, epoch), padded by wrapping to a multiple of the number of processes and cut into
global batches; each process takes its contiguous slice of each. In test: file order, no padding, each sample once over
all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kdcli.data.draws import Ids, permutation


class Order(Protocol):
    """The batches of one epoch for one process, as arrays of sample ids."""

    def batches(self, epoch: int) -> list[Ids]:
        """int64 arrays, one a batch."""
        ...


class Dist:
    """Each process has its share of every global batch.

    In training every process gets equally many batches of equal size; in test the last ones may be
    shorter or missing.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.num_samples, self.batch_size, self.train, self.seed = num_samples, batch_size, train, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def batches(self, epoch: int) -> list[Ids]:
        """This process's batches of one epoch."""
        if self.train:
            ids = permutation(self.seed, epoch, self.num_samples)
            ids = wrapped(ids, -(-len(ids) // self.world_size) * self.world_size)
        else:
            ids = np.arange(self.num_samples, dtype=np.int64)
        whole = self.batch_size * self.world_size
        groups = [ids[i : i + whole] for i in range(0, len(ids), whole)]
        if self.drop_last and groups and len(groups[-1]) < whole:
            groups.pop()
        return shares(groups, self.rank, self.world_size)


class Local(Dist):
    """Each process goes through all samples by itself, in an order of its own.

    A test set is shared out as by `dist`, so that each sample counts once.
    """

    def batches(self, epoch: int) -> list[Ids]:
        """This process's batches of one epoch."""
        if not self.train:
            return super().batches(epoch)
        alone = Dist(self.num_samples, self.batch_size, True, self.seed, drop_last=self.drop_last)
        # The process takes part in the key, so no two of them go in step.
        alone.seed = self.seed + (self.rank << 32)
        return alone.batches(epoch)


class AspectGroups:
    """Batches whose images have similar height/width, so that padding them wastes little.

    aspect_ratios: h/w of every sample. bounds: the limits between the groups, ascending. Every sample is
    seen in each epoch; what does not fill a global batch in its group is filled up from the same group by
    wrapping, in training; all processes have the same number of batches. In test the groups' last batches
    are shared out unfilled.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        bounds: Sequence[float],
        batch_size: int,
        train: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.group = np.searchsorted(np.sort(np.asarray(bounds, dtype=np.float64)), aspect_ratios)
        self.num_groups = len(bounds) + 1
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def batches(self, epoch: int) -> list[Ids]:
        """This process's batches of one epoch."""
        total = len(self.group)
        ids = permutation(self.seed, epoch, total) if self.train else np.arange(total, dtype=np.int64)
        whole = self.batch_size * self.world_size
        groups: list[Ids] = []
        for number in range(self.num_groups):
            members = ids[self.group[ids] == number]
            groups += [members[i : i + whole] for i in range(0, len(members), whole)]
            if self.train and len(members) and len(groups[-1]) < whole:
                if self.drop_last:
                    groups.pop()
                else:
                    groups[-1] = np.concatenate([groups[-1], wrapped(members, whole - len(groups[-1]))])
        if self.train:
            # Groups would otherwise come one after the other.
            groups = [groups[i] for i in permutation(self.seed, epoch, len(groups))]
        return shares(groups, self.rank, self.world_size)


def shares(groups: Sequence[Ids], rank: int, world_size: int) -> list[Ids]:
    """What a process takes of each global batch; those of which it takes nothing are left out."""
    own = (np.array_split(group, world_size)[rank] for group in groups)
    return [share for share in own if len(share)]


def wrapped(ids: Ids, length: int) -> Ids:
    """The ids repeated from their start until there are `length`."""
    return np.resize(ids, length) if len(ids) else ids
