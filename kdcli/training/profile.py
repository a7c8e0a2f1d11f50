"""`kdcli train --profile N`: some steps of a run under the profiler, and where their time went.

Nothing is evaluated or saved, and a run that lies in the folder stays as it is. On CUDA the device is waited
for between the parts, so that each has its own time; such steps take a little longer than others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function

from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.parallel.interrupts import Interrupts
from kdcli.records import Record
from kdcli.training.checkpoint import Progress
from kdcli.training.guard import GuardResult
from kdcli.training.run import Run
from kdcli.training.train import Stage, TrainLoop, train

WARM_UP = 2
"""Steps before those that count."""

OPERATORS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Seconds of all steps by part, in order of execution, the rest last; the costliest operators."""

    steps: int
    images: int
    seconds: float
    parts: Mapping[str, float]
    operators: tuple[tuple[str, int, float], ...]
    trace: Path


class _Enough(Exception):
    """Raised when all steps that were asked for are done."""


def profile(run: Run, steps: int, interrupts: Interrupts) -> Profile:
    """Train N steps (fewer where the run has fewer) and measure where the time goes."""
    # The profiler's library tells of itself on standard error, and of a GPU that is not there as of an error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    loops: list[_ProfiledLoop] = []

    def loop(*parts: Any) -> _ProfiledLoop:
        loops.append(_ProfiledLoop(*parts, steps=steps))
        return loops[-1]

    try:
        for _ in train(run, interrupts, loop):
            pass
    except _Enough:
        pass
    return loops[-1].result()


class _ProfiledLoop(TrainLoop):
    """A loop whose parts are timed, and which ends after some steps."""

    def __init__(
        self, run: Run, interrupts: Interrupts, guard: GuardResult, progress: Progress, *, steps: int
    ) -> None:
        super().__init__(run, interrupts, guard, progress)
        self.steps = min(steps, run.total_steps)
        self.warm_up = min(WARM_UP, run.total_steps - self.steps)
        self.done, self.images, self.seconds, self.began = 0, 0, 0.0, 0.0
        self.spent: dict[str, float] = {}
        self.cuda = run.processes.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.cuda else [])
        self.profiler = torch.profiler.profile(activities=activities, acc_events=True)
        loader, trainee = run.train_loader, run.trainee
        loader.batches = self.timed_batches(loader.batches)  # type: ignore[method-assign]
        trainee.view = self.timed("student forward", trainee.view)  # type: ignore[method-assign]
        trainee.forward = self.timed("forward", trainee.forward)  # type: ignore[method-assign]
        for source in run.sources.values():
            source.view = self.timed("teachers", source.view)  # type: ignore[method-assign]
        self.losses.add = self.timed("logging", self.losses.add)  # type: ignore[method-assign]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of this block to a part."""
        start = self.now()
        with record_function(f"kdcli: {name}"):
            yield
        self.spent[name] = self.spent.get(name, 0.0) + self.now() - start

    def now(self) -> float:
        """The time, once all work on the device is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time is counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted

    def timed_batches(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Wrap a batch iterator so that the wait for each batch is counted."""

        def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
            iterator = iter(batches(*args, **kwargs))
            while True:
                with self.part("data"):
                    batch = next(iterator, None)
                if batch is None:
                    return
                yield batch

        return counted

    def step(self, stage: Stage, group: list[Mapping[str, Any]]) -> None:
        """Run one step; counting begins after the warm-up, the run ends after the last."""
        super().step(stage, group)
        self.done += 1
        if self.done > self.warm_up:
            self.images += sum(len(batch["image"]) for batch in group)
        if self.done == self.warm_up + self.steps:
            list(self.flush())
            self.end()
        if self.done == self.warm_up:
            self.begin()

    def begin(self) -> None:
        """Start counting."""
        self.profiler.start()
        self.spent.clear()
        self.began = self.now()

    def end(self) -> None:
        """Stop counting and the run."""
        self.seconds = self.now() - self.began
        self.profiler.stop()
        raise _Enough

    def stage(self, index: int, resumed: Any) -> Iterator[Record]:
        """Run a stage; without a warm-up the first step counts."""
        if self.warm_up == 0 and self.done == 0:
            self.begin()
        yield from super().stage(index, resumed)

    def backward(
        self, stage: Stage, batch: dict[str, Any], step_info: StepInfo, *, last: bool, share: float
    ) -> dict[str, Tensor]:
        """Forward and backward of one batch."""
        with self.part("batch"):
            return super().backward(stage, batch, step_info, last=last, share=share)

    def update(self, stage: Stage, parts: list[dict[str, Tensor]]) -> None:
        """Everything from the gradients to the new weights."""
        with self.part("optimizer"):
            super().update(stage, parts)

    def flush(self) -> Iterator[Record]:
        """Read the losses from the device."""
        with self.part("logging"):
            records = list(super().flush())
        yield from records

    def after_epoch(self, stage: Stage) -> Iterator[Record]:
        """Go to the next epoch or stage without evaluating or saving."""
        progress = self.progress
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if progress.stage_step >= stage.plan.steps:
            progress.stage, progress.stage_step = progress.stage + 1, 0
        yield from ()

    def result(self) -> Profile:
        """The profile of the counted steps; rank 0 writes the trace."""
        spent = self.spent
        forward, student = spent.get("forward", 0.0), spent.get("student forward", 0.0)
        parts = {
            "data": spent.get("data", 0.0),
            "teachers": spent.get("teachers", 0.0),
            "student forward": student,
            "losses": forward - student,
            "backward": spent.get("batch", 0.0) - spent.get("teachers", 0.0) - forward,
            "optimizer": spent.get("optimizer", 0.0),
            "logging": spent.get("logging", 0.0),
        }
        parts["rest"] = self.seconds - sum(parts.values())
        trace = self.run.folder.root / "trace.json"
        if self.run.processes.speaks:
            self.profiler.export_chrome_trace(str(trace))
        averages = [event for event in self.profiler.key_averages() if not event.key.startswith("kdcli:")]
        attribute = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        averages.sort(key=lambda event: -getattr(event, attribute))
        return Profile(
            steps=self.steps,
            images=self.images,
            seconds=self.seconds,
            parts=parts,
            operators=tuple(
                (event.key, event.count, getattr(event, attribute) / 1e6) for event in averages[:OPERATORS]
            ),
            trace=trace,
        )
