"""Metrics of one network over a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.data.loaders import Loader
from kdcli.failures import doing
from kdcli.parallel.devices import to_device
from kdcli.parallel.distributed import Processes
from kdcli.tasks.task import Meter, Task

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
