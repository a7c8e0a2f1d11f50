"""What the processes decide together at every step, without waiting for each other or for the device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kdcli.parallel.distributed import Processes


class Agreement:
    """The greatest of each process's wishes; of several processes all learn it at the same step.

    The wishes travel on the CPU, in a group of their own, while the step computes: what was wished at one
    step is known at the next.
    """

    def __init__(self, processes: Processes) -> None:
        self._group: dist.ProcessGroup | None = None
        if processes.world_size > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def settle(self, *wishes: int) -> tuple[int, ...]:
        """Hand in this step's wishes; what was agreed on: these on one process, the last step's on several."""
        if self._group is None:
            return wishes
        tensor = torch.tensor(wishes, dtype=torch.int64)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        before, self._under_way = self._under_way, (work, tensor)
        if before is None:
            return tuple(0 for _ in wishes)
        before[0].wait()
        return tuple(before[1].tolist())

    def agreed(self, wish: int) -> int:
        """The greatest wish, at once: for the rare places where waiting costs nothing."""
        if self._group is None:
            return wish
        tensor = torch.tensor(wish, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return int(tensor)
