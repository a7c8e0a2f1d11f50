"""Metrics of one network over a data loader, by labels or by what it has learnt of its teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.data.loaders import Loader
from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.distill.teacher import Teacher
from kdcli.failures import doing
from kdcli.parallel.devices import to_device
from kdcli.parallel.distributed import Processes
from kdcli.tasks.mimicry import Mimicry
from kdcli.tasks.task import Meter, Task
from kdcli.training.join_jobs import JoinedJobs, require

Forward = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block, each back in its own mode after it."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def evaluate(
    forward: Forward,
    loader: Loader,
    task: Task,
    processes: Processes,
    *,
    autocast: torch.autocast | None = None,
    most_samples: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    name: str = "the network",
    messages: list[str] | None = None,
) -> dict[str, float]:
    """Metrics of one network over the loader (or its first samples), each sample counted once.

    forward: batch -> named outputs, with the network already in evaluation mode. stop: asked at each
    batch; once it says yes this process looks at no more, and the metrics mean nothing. messages: takes the message
    about samples without a usable answer, which calls the network by its name.
    """
    meter = task.meter(loader.facts)
    batches = loader.batches(0)
    if most_samples is not None:
        share = loader.batch_size * processes.world_size
        batches = islice(batches, max(1, -(-most_samples // share)))
    with doing(f"measuring {name}"):
        for batch in batches:
            if stop():
                break
            batch = to_device(dict(batch), processes.device)
            with autocast or nullcontext():
                outputs = forward(batch)
            meter.update(outputs, batch)
    sums = processes.sum(meter.sums())
    if messages is not None:
        messages += unanswered(name, meter, sums, processes, loader)
    return meter.result(sums)


def measure_mimicry(
    joined: JoinedJobs,
    teachers: Mapping[str, Teacher],
    loader: Loader,
    task: Task,
    processes: Processes,
    *,
    agrees: Sequence[str] = (),
    seed: int = 0,
    autocast: torch.autocast | None = None,
    step_info: StepInfo | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The metrics of kdcli.tasks.mimicry over the loader: what the student has learnt of its teachers.

    loader: of one process, whose batches the processes share out; so the figures are the same for any number of them.
    agrees: the teachers whose answers are compared with the student's. seed: of what losses draw, batch by batch.
    Buffers, random state, modes and what the networks show stay as they were; `require` is the caller's.
    """
    trainee = joined.trainee
    agrees = agrees if task.agreement is not None else ()
    mimicry = Mimicry(trainee, task.agreement, agrees)
    running = require(joined, teachers, None, bool(agrees))
    for name in agrees:
        taps = teachers[name].taps
        taps.require(taps.names, None)
    with restored_state(trainee), doing("measuring what the student has learnt"):
        # Running statistics differ between processes; those of the first are measured.
        processes.share(trainee.mimickers.buffers())
        trainee.eval()
        batches = loader.batches(0, processes.rank, processes.world_size)
        for number, batch in enumerate(batches):
            if stop():
                break
            torch.manual_seed(seed + number * processes.world_size + processes.rank)
            batch = to_device(dict(batch), processes.device)
            with torch.no_grad():
                views = {name: teachers[name].view(batch) for name in running}
            with autocast or nullcontext():
                mimicry.update(batch, views, step_info or StepInfo())
    return mimicry.result(processes.gather(mimicry.sums))


def with_heads(joined: JoinedJobs, teachers: Mapping[str, Teacher]) -> list[str]:
    """The teachers that give answers: logits of a head of their own."""
    return [
        name
        for name, teacher in teachers.items()
        if not teacher.headless and "logits" in joined.teacher_views[name].outputs
    ]


def unanswered(name: str, meter: Meter, sums: Tensor, processes: Processes, loader: Loader) -> list[str]:
    """At most one message: for how many samples the network gave no usable answer, and which come first.

    sums: over all processes, which all ask.
    """
    count = meter.unanswered(sums)
    if not count:
        return []
    samples = sorted({sample for found in processes.gather(meter.unanswered_samples()) for sample in found})
    first = ", ".join(f"`{loader.name_of(sample)}`" for sample in samples[:3])
    which = f" ({first}{', ...' if count > 3 else ''})" if first else ""
    what = "1 sample" if count == 1 else f"{count:,} samples"
    return [f"{name} {meter.unusable} for {what}{which}: counted as wrong"]
