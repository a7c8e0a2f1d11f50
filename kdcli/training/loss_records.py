"""The losses of a run's steps: kept on the device, read together at log points."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from kdcli.records import Step
from kdcli.training.checkpoint import Progress
from kdcli.training.run import Run


class LossRecords:
    """Losses of many steps, kept on the device and turned into Step records every `log_freq` steps.

    Their seconds are the device's: what the host waits for it at a log point is shared out among the steps since the
    last one, of which the host only knows when it has handed them over.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.waiting: list[tuple[dict[str, object], tuple[str, ...], Tensor]] = []
        self.last = time.perf_counter()

    def begin(self) -> None:
        """Start the clock at an epoch's first step: what came before it, a test or the guard, is no step's time."""
        self.last = time.perf_counter()

    def add(
        self, progress: Progress, parts: list[dict[str, Tensor]], lr: float, images: int, stage: str | None
    ) -> None:
        """Take the losses of one step, one mapping a batch; they are averaged."""
        names = tuple(parts[0])
        stacked = [torch.stack([part[name] for name in names]) for part in parts]
        values = stacked[0] if len(stacked) == 1 else torch.stack(stacked).mean(0)
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
        self.waiting.append((facts, names, values))

    def flush(self) -> Iterator[Step]:
        """Records of all waiting steps, after one read of the device; losses are means over processes."""
        if not self.waiting:
            return
        values = torch.cat([values for _, _, values in self.waiting])
        flat = (self.run.processes.sum(values) / self.run.processes.world_size).tolist()
        waiting, self.waiting = self.waiting, []
        now = time.perf_counter()
        late, self.last = (now - self.last) / len(waiting), now
        position = 0
        for facts, names, _ in waiting:
            losses = dict(zip(names, flat[position : position + len(names)], strict=True))
            position += len(names)
            facts["seconds"] = facts["seconds"] + late  # type: ignore[operator]
            yield Step(losses=losses, total=sum(losses.values()), **facts)  # type: ignore[arg-type]
