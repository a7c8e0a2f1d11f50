"""The processes of a run, their collective operations, and the device of each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from kdcli import waiting as waits
from kdcli.errors import RunError, first_line
from kdcli.parallel.devices import choose_device, name_of
from kdcli.parallel.interrupts import group_made
from kdcli.parallel.launch import in_slurm_step, slurm_tasks
from kdcli.parallel.meeting import Together, meet, open_store, patience, port_of, this_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """One process among `world_size`; a single process needs no group."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    together: Together | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process prints and writes files: rank 0 does."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, a new tensor."""
        if self.world_size == 1:
            return value
        total = value.detach().clone().to(self.device)
        with self.meeting_at():
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """Every process's (picklable) value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.meeting_at():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's (picklable) value."""
        if self.world_size == 1:
            return value
        box = [value]
        with self.meeting_at():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into every process's tensors."""
        if self.world_size > 1:
            with self.meeting_at():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until every process is here (a barrier)."""
        if self.world_size > 1:
            with self.meeting_at():
                dist.barrier()

    def meeting_at(self, place: str = "an exchange between all processes") -> AbstractContextManager[None]:
        """A `with` block that ends when all processes have come to it: a notice names who keeps them waiting."""
        return nullcontext() if self.together is None else self.together.at(place)


@contextmanager
def processes(
    device: str = "auto", timeout_seconds: float = 1800.0, facts: Mapping[str, Any] | None = None
) -> Iterator[Processes]:
    """Join the process group that torchrun's or srun's environment describes, for a `with` block.

    facts: what must be equal in all processes, by name. Raises RunError KD722 where another process of the group
    has died; KD727 to KD732 where the processes don't find each other or were started differently.
    """
    if in_slurm_step():
        os.environ.update(slurm_environment())
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Processes(device=chosen)
        return
    try:
        seconds = patience()
        store = open_store(rank, world_size, seconds)
        members = meet(store, rank, this_process(world_size, facts or {}, name_of(chosen)), seconds)
        together = Together(store, rank, members)
        group_made()
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            store=PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            # NCCL then connects now and to this device, and its barriers need not guess which one it is.
            device_id=chosen if chosen.type == "cuda" else None,
        )
        waits.listener = together.say
        yield Processes(
            device=chosen, rank=rank, world_size=world_size, local_rank=local_rank, together=together
        )
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RunError.of(
                "KD722",
                f"process {rank} has lost another one: {_reason(error)}",
                "look at what the other process said first; then continue with `--resume`",
            ) from error
        raise
    finally:
        waits.listener = None
        if dist.is_initialized():
            dist.destroy_process_group()


def _reason(error: Exception) -> str:
    """The first sentence of a library's error, without the place in its source."""
    return re.sub(r"\[/[^\]]*\]\s*", "", first_line(error)).partition(". ")[0]


def slurm_environment() -> dict[str, str]:
    """torchrun's variables made from srun's; those that are set stay."""
    slurm = os.environ
    first = slurm.get("SLURM_STEP_NODELIST", slurm.get("SLURM_NODELIST", "localhost"))
    job, step = slurm.get("SLURM_JOB_ID", "0"), slurm.get("SLURM_STEP_ID", slurm.get("SLURM_STEPID", "0"))
    derived = {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": str(slurm_tasks()),
        "LOCAL_RANK": slurm.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(first),
        "MASTER_PORT": str(port_of(job, step)),
    }
    return {name: slurm.get(name, value) for name, value in derived.items()}


def first_host(nodes: str) -> str:
    """The first host of Slurm's compressed list: `gpu[07-09,12],login` gives gpu07."""
    found = re.match(r"([^,\[]+)(?:\[([^\]\-,]+)[^\]]*\])?", nodes)
    return nodes if found is None else found[1] + (found[2] or "")


class Consensus:
    """The maximum of integers over processes; all learn it at the same step.

    The wishes travel on the CPU, in a group of their own, while the step computes: what was wished at one
    step is known at the next.
    """

    def __init__(self, processes: Processes) -> None:
        self._group: dist.ProcessGroup | None = None
        self._processes = processes
        if processes.world_size > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def settle(self, *wishes: int) -> tuple[int, ...]:
        """Hand in this step's integers; returns these on one process, the last step's maximum on several."""
        if self._group is None:
            return wishes
        tensor = torch.tensor(wishes, dtype=torch.int64)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        before, self._under_way = self._under_way, (work, tensor)
        if before is None:
            return tuple(0 for _ in wishes)
        with self._processes.meeting_at():
            before[0].wait()
        return tuple(before[1].tolist())

    def agreed(self, wish: int) -> int:
        """The maximum at once: for the rare places where waiting costs nothing."""
        if self._group is None:
            return wish
        tensor = torch.tensor(wish, dtype=torch.int64)
        with self._processes.meeting_at():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return int(tensor)
