"""The processes of a run, their collective operations, and the device of each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kdcli.errors import RunError, first_line
from kdcli.parallel.devices import choose_device
from kdcli.parallel.launch import in_slurm_step, restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """One process among `world_size`; a single process needs no group."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def speaks(self) -> bool:
        """Whether this process prints and writes files: rank 0 does."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, a new tensor."""
        if self.world_size == 1:
            return value
        total = value.detach().clone().to(self.device)
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
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's (picklable) value."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into every process's tensors."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until every process is here (a barrier)."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "auto", timeout_seconds: float = 1800.0) -> Iterator[Processes]:
    """Join the process group that torchrun's or srun's environment describes, for a `with` block.

    Raises RunError KD722 where another process of the group has died.
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
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            store=_meeting(),
            rank=rank,
            world_size=world_size,
        )
        yield Processes(device=chosen, rank=rank, world_size=world_size, local_rank=local_rank)
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RunError.of(
                "KD722",
                f"process {rank} has lost another one: {_reason(error)}",
                "look at what the other process said first; then continue with `--resume`",
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _reason(error: Exception) -> str:
    """The first sentence of a library's error, without the place in its source."""
    return re.sub(r"\[/[^\]]*\]\s*", "", first_line(error)).partition(". ")[0]


def _meeting() -> Store:
    """The store where processes find each other, without entries from before a restart."""
    store: Store = next(rendezvous("env://"))[0]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = PrefixStore(f"restart {restarts()}", store)
    return store


def slurm_environment() -> dict[str, str]:
    """torchrun's variables made from srun's; those that are set stay."""
    slurm = os.environ
    first = slurm.get("SLURM_STEP_NODELIST", slurm.get("SLURM_NODELIST", "localhost"))
    job = slurm.get("SLURM_JOB_ID", "0")
    derived = {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(first),
        "MASTER_PORT": str(20000 + int(job) % 20000 if job.isdigit() else 29500),
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
        before[0].wait()
        return tuple(before[1].tolist())

    def agreed(self, wish: int) -> int:
        """The maximum at once: for the rare places where waiting costs nothing."""
        if self._group is None:
            return wish
        tensor = torch.tensor(wish, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return int(tensor)
