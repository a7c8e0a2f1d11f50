"""How long the training waits for data; a run that waits for more than a tenth of its time says so, once, as an Alarm.

Time in the loader is a wait only as far as the device has nothing to do by then: what a log point waits for the device
is taken off it. On the CPU that is nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kdcli.data.loaders import Loader
from kdcli.data.workers import local_processes, usable_cores
from kdcli.records import Alarm
from kdcli.training.run import Run

T = TypeVar("T")

SHARE = 0.1
"""From this share of the time on waiting is worth a word."""

LEFT_OUT = 5
"""First batches that don't count: workers start, kernels are chosen and compiled."""

STEPS, SECONDS = 20, 10.0
"""So many batches and so long at least are looked at before anything is said."""


class DataWaits:
    """Adds up the time in the loader and beside it, over the whole of a process's run."""

    def __init__(self, loader: Loader, processes: int = 1) -> None:
        self.loader, self.processes = loader, processes
        self.batches = 0
        self.loading = self.beside = self.device = 0.0
        self.told = False

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, each one's time in the loader and after it added up."""
        source = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            there = time.perf_counter()
            yield batch
            self.batches += 1
            if self.batches > LEFT_OUT:
                self.loading += there - began
                self.beside += time.perf_counter() - there

    def reading(self, records: Iterable[T]) -> Iterator[T]:
        """Records whose first one waits for the device: so long it had work while data was loaded."""
        began: float | None = time.perf_counter()
        for record in records:
            if began is not None and self.batches > LEFT_OUT:
                self.device += time.perf_counter() - began
            began = None
            yield record

    @property
    def share(self) -> float:
        """The share of the time in which nothing but data was waited for."""
        whole = self.loading + self.beside
        return max(self.loading - self.device, 0.0) / whole if whole else 0.0

    def judge(self, step: int) -> Iterator[Alarm]:
        """The alarm, where it is due."""
        counted = self.batches - LEFT_OUT
        if self.told or counted < STEPS or self.loading + self.beside < SECONDS or self.share <= SHARE:
            return
        self.told = True
        waited = max(self.loading - self.device, 0.0)
        remedy = remedy_for(
            workers=self.loader.workers,
            waited=waited / counted,
            worked=(self.loading + self.beside - waited) / counted,
            cores=usable_cores() / self.processes,
        )
        name = "data is waited for"
        what = f"in {self.share:.0%} of the time, over {counted:,} batches"
        yield Alarm(
            message=f"KD795: {name}, step {step}: {what}; {remedy}",
            step=step,
            code="KD795",
            name=name,
            numbers={"share": self.share},
            remedy=remedy,
        )


def remedy_for(*, workers: int | None, waited: float, worked: float, cores: float) -> str:
    """What to do, in words. waited, worked: seconds a batch; workers: None where kdcli does not start them."""
    if workers is None:
        return "give your DataLoader more `num_workers`, or a Dataset that does less for each image"
    # What one worker needs for a batch: without any the wait itself, else what came from all of them in a step.
    one = waited if workers == 0 else workers * (waited + worked)
    wanted = max(math.ceil(one / worked), workers + 1) if worked > 0 else math.inf
    spare = max(math.floor(cores) - 1, 0)
    smaller = "smaller image files, `scaled_decode: true` for large JPEGs, `in_memory: true` for few images"
    key = "`dataset.train.dataloader.kwargs.num_workers"
    if wanted <= spare:
        return f"write {key}: {wanted}` (now {workers}), or read less: {smaller}"
    if spare > workers:
        return f"write {key}: {spare}` (now {workers}), which {cores:g} cores allow, and read less: {smaller}"
    return f"more data workers than {workers} don't help on {cores:g} cores: read less: {smaller}"


def watched(run: Run) -> DataWaits:
    """The waits of a run's training data; images in memory on the CPU are work, no wait, and not counted."""
    loader = run.train_loader
    waits = DataWaits(loader, local_processes(run.processes.world_size))
    waits.told = loader.in_memory and run.processes.device.type == "cpu"
    return waits
