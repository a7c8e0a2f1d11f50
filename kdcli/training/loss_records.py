"""What a run tells of its steps: losses, kept on the device and read at log points; skipped steps; memory; waits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from kdcli.data.loaders import Loader
from kdcli.data.workers import local_processes, usable_cores
from kdcli.parallel.devices import is_busy
from kdcli.records import Alarm, Notice, Step
from kdcli.training.checkpoint import Progress
from kdcli.training.run import Run

T = TypeVar("T")

WAIT_SHARE = 0.1
"""From this share of the time on waiting is worth a word."""

LEFT_OUT = 5
"""First batches that don't count: workers start, kernels are chosen and compiled."""

STEPS, SECONDS = 20, 10.0
"""So many batches and so long at least are looked at before anything is said."""


class LossRecords:
    """Losses of many steps, kept on the device and turned into Step records every `log_freq` steps.

    Their seconds are the device's: what the host waits for it at a log point is shared out among the steps since the
    last one, of which the host only knows when it has handed them over.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.waiting: list[tuple[dict[str, object], dict[str, Tensor]]] = []
        self.last = time.perf_counter()

    def begin(self) -> None:
        """Start the clock at an epoch's first step: what came before it, a test or the guard, is no step's time."""
        self.last = time.perf_counter()

    def add(
        self, progress: Progress, parts: list[dict[str, Tensor]], lr: float, images: int, stage: str | None
    ) -> None:
        """Take the losses of one step, one mapping a batch; they are averaged."""
        losses = parts[0]
        if len(parts) > 1:
            means = torch.stack([torch.stack([part[name] for name in losses]) for part in parts]).mean(0)
            losses = dict(zip(losses, means, strict=True))
        now = time.perf_counter()
        facts: dict[str, object] = {
            "step": progress.step,
            "total_steps": self.run.total_steps,
            "epoch": progress.epoch,
            "step_in_epoch": -(-progress.batch // self.run.accumulate),
            "steps_per_epoch": self.run.steps_per_epoch,
            "lr": lr,
            "images": images,
            "seconds": now - self.last,
            "stage": stage,
        }
        self.last = now
        self.waiting.append((facts, losses))

    def flush(self) -> Iterator[Step]:
        """Records of all waiting steps, after one read of the device; losses are means over processes."""
        if not self.waiting:
            return
        values = torch.stack([loss for _, losses in self.waiting for loss in losses.values()])
        flat = (self.run.processes.sum(values) / self.run.processes.world_size).tolist()
        waiting, self.waiting = self.waiting, []
        now = time.perf_counter()
        late, self.last = (now - self.last) / len(waiting), now
        numbers = iter(flat)
        for facts, tensors in waiting:
            losses = {name: next(numbers) for name in tensors}
            facts["seconds"] = facts["seconds"] + late  # type: ignore[operator]
            yield Step(losses=losses, total=sum(losses.values()), **facts)  # type: ignore[arg-type]
        self.last = time.perf_counter()  # what is done with the records is no step's time


MANY_SKIPPED = 0.1
"""The share of skipped steps from which they are a warning at the end: the scale finds its place in a few."""


class DeviceNotices:
    """Counts on the device, without a wait, and tells at log points. The scaler's steps go through `step`."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.steps = 0
        self._skipped = torch.zeros((), dtype=torch.int64, device=run.processes.device)
        self._skips_told = self._memory_told = False

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step through the run's gradient scaler, which leaves it out where a gradient is not finite."""
        scaler = self.run.scaler
        assert scaler is not None
        before = scaler._get_scale_async()
        before = None if before is None else before.clone()
        scaler.step(optimizer)
        scaler.update()
        after = scaler._get_scale_async()
        self.steps += 1
        if before is not None and after is not None:
            self._skipped += after < before

    def notices(self, *, over: bool = False) -> Iterator[Notice]:
        """At a log point, where the device is waited for anyway, or at the end of the run."""
        if self.run.scaler is not None and (over or not self._skips_told):
            yield from self._skips(int(self._skipped), over)
        whole_epoch = self.progress.batch >= len(self.run.train_loader)
        if self.run.processes.device.type == "cuda" and (over or (whole_epoch and not self._memory_told)):
            self._memory_told = True
            yield Notice(message=self._memory())

    def _skips(self, count: int, over: bool) -> Iterator[Notice]:
        if not count:
            return
        self._skips_told = True
        scale = 0.0 if self.run.scaler is None else self.run.scaler.get_scale()
        many = over and count > MANY_SKIPPED * self.steps
        help = "; `runtime.precision: bf16` needs no scale" if many else ""
        yield Notice(
            message=f"fp16: {count:,} of {self.steps:,} steps so far were skipped, as gradients overflowed"
            f" (the loss is scaled by {scale:g} now){help}",
            level="warning" if many else "info",
        )

    def _memory(self) -> str:
        device = self.run.processes.device
        used, held = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        whole = torch.cuda.get_device_properties(device).total_memory
        gib = 1024**3
        return (
            f"memory of {device} at its peak: {used / gib:.1f} GiB in tensors, {held / gib:.1f} GiB held,"
            f" of {whole / gib:.0f} GiB"
        )


class DataWaits:
    """Adds up the time in the loader and beside it, over a process's run; waits for more than a tenth are told once.

    Loading counts as waiting only while the device is idle: not where it is still busy when the batch is there, and
    less the time that a log point waits for the device. On the CPU all of it counts.
    busy: whether the device has work left.
    """

    def __init__(self, loader: Loader, processes: int = 1, busy: Callable[[], bool] = lambda: False) -> None:
        self.loader, self.processes, self.busy = loader, processes, busy
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
            there = began if self.busy() else time.perf_counter()
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
        if self.told or counted < STEPS or self.loading + self.beside < SECONDS or self.share <= WAIT_SHARE:
            return
        self.told = True
        waited = max(self.loading - self.device, 0.0)
        remedy = remedy_for(
            workers=self.loader.workers,
            waited=waited / counted,
            worked=(self.loading + self.beside - waited) / counted,
            cores=usable_cores() / self.processes,
            in_memory=self.loader.in_memory,
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


def remedy_for(
    *, workers: int | None, waited: float, worked: float, cores: float, in_memory: bool = False
) -> str:
    """What to do, in words. waited, worked: seconds a batch; workers: None where kdcli does not start them."""
    if in_memory:
        return (
            "the images are in memory already: take transforms that do less, or kdcli's in place of others'"
        )
    if workers is None:
        return "give your DataLoader more `num_workers`, or a Dataset that does less for each image"
    # What one worker needs for a batch: without any the wait itself, else what came from all of them in a step.
    one = waited if workers == 0 else workers * (waited + worked)
    wanted = max(math.ceil(one / worked), workers + 1) if worked > 0 else math.inf
    spare = max(math.floor(cores) - 1, 0)
    smaller = (
        "smaller image files, `scaled_decode: true` for large JPEGs, "
        "`dataloader.kwargs.in_memory: true` for few images"
    )
    key = "`dataset.train.dataloader.kwargs.num_workers"
    if wanted <= spare:
        return f"write {key}: {wanted}` (now {workers}), or read less: {smaller}"
    if spare > workers:
        return f"write {key}: {spare}` (now {workers}), which {cores:g} cores allow, and read less: {smaller}"
    return f"more data workers than {workers} don't help on {cores:g} cores: read less: {smaller}"


def watched_waits(run: Run) -> DataWaits:
    """The waits of a run's training data; images in memory on the CPU are work, no wait, and not counted."""
    loader, device = run.train_loader, run.processes.device
    waits = DataWaits(loader, local_processes(run.processes.world_size), lambda: is_busy(device))
    waits.told = loader.in_memory and run.processes.device.type == "cpu"
    return waits
