"""How many data workers `num_workers: auto` is: a rule of the machine's cores and of what the data asks for.

A plain rule and no measurement at the start: the first images come from a cold disk and the first steps compile, so
that a measured number would be another at each start. Where the rule is wrong the run says so, from what was measured
by then (KD795). Batches are the same bits for any number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdcli.disk import text_in
from kdcli.errors import RunError

MOST = 16
"""More workers than this hand batches over slower than one process takes them."""

BESIDE_CPU = 4
"""On the CPU one of so many cores reads: a training step on 224-pixel images costs ten times what reading them does."""

FEW_IMAGES = 1000
"""On the CPU an epoch of fewer images is not worth starting workers for."""


def automatic_workers(
    *, cores: float, processes: int, on_cuda: bool, in_memory: bool, images: int, batches: int
) -> int:
    """The number of data workers of one training process.

    cores: that the processes of this machine may use together; processes: how many train on it. in_memory: the
    images are there already; 1 means then a thread that makes batches ahead of a CUDA device. images, batches: of one
    epoch and process; a worker makes whole batches, so that more workers than batches would have nothing to do.
    """
    share = math.floor(cores / processes)
    if in_memory:
        return int(on_cuda)
    if on_cuda:
        # One core drives the device. A single worker helps even on one core: it reads while the device computes.
        return min(max(share - 1, 1), MOST, batches)
    return 0 if images < FEW_IMAGES else min(share // BESIDE_CPU, BESIDE_CPU, batches)


def usable_cores(root: Path = Path("/")) -> float:
    """The cores that this process may use: those of its affinity, fewer where a cgroup's quota says so."""
    return min([float(cores_of_affinity()), *_quotas(root)])


def cores_of_affinity() -> int:
    """The cores that this process's affinity names; all of the machine where the system knows no such thing."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of this process's cgroups and of those above them; root: of the file system."""
    with suppress(RunError):
        for line in text_in(root / "proc/self/cgroup").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            own = Path(name.lstrip("/"))
            # In a container the name may be one outside of it: then the top is its own.
            for folder in (top, *(top / part for part in (own, *own.parents))):
                with suppress(RunError, ValueError, ZeroDivisionError):
                    yield _quota(folder, second=not controllers)


def _quota(folder: Path, *, second: bool) -> float:
    """Cores of one cgroup, of the second version or the first; raises ValueError where it is not limited."""
    if second:
        quota, period = text_in(folder / "cpu.max").split()
    else:
        quota, period = (text_in(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period"))
    cores = int(quota) / int(period)
    if cores <= 0:
        raise ValueError("no quota")
    return cores


def local_processes(world_size: int) -> int:
    """How many of a run's processes share the cores that this one may use: what the launcher says, else all of them.

    Under Slurm one, where a task has cores of its own, else the tasks of this machine.
    """
    said = os.environ.get("LOCAL_WORLD_SIZE") or _slurm_tasks_here() or ""
    return int(said) if said.isdigit() and 0 < int(said) <= world_size else world_size


def _slurm_tasks_here() -> str | None:
    """As Slurm's variables say; None where it has not started this process."""
    if "SLURM_PROCID" not in os.environ:
        return None
    each = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if each.isdigit() and cores_of_affinity() <= int(each):
        return "1"
    tasks: list[str] = []  # `8(x2),4`: of each machine
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        count, _, times = part.rstrip(")").partition("(x")
        tasks += [count] * int(times if times.isdigit() else 1)
    node = os.environ.get("SLURM_NODEID", "")
    return tasks[int(node)] if node.isdigit() and int(node) < len(tasks) else None
