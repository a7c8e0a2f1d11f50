"""Checks of what a GPU costs: memory and time, to a loop by hand."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from kdcli.records import Step
from kdcli.training import train as training
from kdcli.training.run import Run
from tests.gpu.lines import Lines, Machine, Skipped, images_spec, photographs_spec
from tests.gpu.results import opened

MODES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, fold_bn": {"precision": "bf16", "fold_bn": True},
}


def guard(machine: Machine, lines: Lines) -> None:
    """The guard before the first step holds at most 1.05 of what a step holds."""
    if not machine.cuda:
        raise Skipped(
            "the memory of a GPU is what it measures (`python -m tests.benchmarks.guard` has the CPU's)"
        )
    for name, runtime in MODES.items():
        # What cuDNN tries out in its search is no part of the guard, which would be the first to hold it.
        spec = images_spec(machine, batch=512, steps=4, cudnn_benchmark=False, **runtime)
        peaks: dict[str, int] = {}

        def measured(
            key: str, function: Callable[..., Any], peaks: dict[str, int] = peaks
        ) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                result, peak = machine.peak_of(lambda: function(*arguments))
                peaks[key] = max(peaks.get(key, 0), peak)
                return result

            return call

        with ExitStack() as stack:
            for owner, attribute, key in (
                (training, "prove_losses", "guard"),
                (training.TrainLoop, "step", "step"),
            ):
                function = measured(key, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, function))
            run = stack.enter_context(opened(spec, machine.device))
            for _ in training.train(run):
                pass
        ratio = peaks["guard"] / peaks["step"]
        text = f"{ratio:.2f} ({peaks['guard'] / 2**20:.0f} / {peaks['step'] / 2**20:.0f} MiB)"
        lines.most(f"memory to a step's, {name}", ratio, 1.05, text)


def modes(machine: Machine, lines: Lines) -> None:
    """Every precision and memory format trains: the loss falls."""
    for name, runtime in {**MODES, "compile, bf16": {"compile": True, "precision": "bf16"}}.items():
        if not machine.cuda and name not in ("fp32", "bf16, channels_last"):
            continue
        # The same few images over and over: what is learnt is seen at once.
        spec = images_spec(machine, batch=machine.size(128, 16), steps=machine.size(60, 12), **runtime)
        spec["dataset"]["train"]["dataset"]["kwargs"]["num_samples"] = machine.size(256, 32)
        with opened(spec, machine.device) as run:
            totals = [record.total for record in training.train(run) if isinstance(record, Step)]
        first, last = statistics.mean(totals[:3]), statistics.mean(totals[-3:])
        lines.add(f"loss, {name}", f"{first:.3f} to {last:.3f}", "falls", last < first)


WORKERS = 4
"""Of the loop by hand on a GPU."""


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Made-up images as one would write them: bytes in memory, flipped, scaled and normalised one by one."""

    def __init__(self, count: int, shape: Sequence[int], num_classes: int) -> None:
        draws = torch.Generator().manual_seed(1)
        self.pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draws)
        self.labels = torch.randint(0, num_classes, (count,), generator=draws).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pixels[index]
        image = image.flip(-1) if torch.rand(()) < 0.5 else image
        return (image.float() / 255 - 0.5) / 0.25, self.labels[index]


def plain_loader(machine: Machine, run: Run) -> DataLoader[tuple[Tensor, Tensor]]:
    """What the loop by hand reads: torch's DataLoader of images like the run's, with workers as one would say there.

    The run itself may have found that it reads as fast without any.
    """
    workers = max(run.train_loader.workers or 0, machine.size(WORKERS, 0))
    kwargs = run.spec.dataset.train.dataset.kwargs.model_dump()
    images = PlainImages(kwargs["num_samples"], kwargs["shape"], kwargs["num_classes"])
    batch = run.train_loader.batch_size
    return DataLoader(
        images, batch, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=machine.cuda, persistent_workers=workers > 0,
    )  # fmt: skip


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def ready_batches(machine: Machine, run: Run) -> list[tuple[Tensor, Tensor]]:
    """Two batches that lie on the device, normalised: what a loop costs that reads nothing."""
    loader = plain_loader(machine, run)
    images = torch.utils.data.default_collate(
        [loader.dataset[i] for i in range(2 * (loader.batch_size or 1))]
    )
    return list(zip(*(tensor.to(machine.device).chunk(2) for tensor in images), strict=True))


def by_hand(
    machine: Machine, run: Run, steps: int, cast: torch.dtype | None, *, reads: bool = True
) -> Iterator[None]:
    """The same work as a loop by hand, `steps` steps at a time; the host waits after each turn.

    reads: its images come from a DataLoader; else they lie on the device all the time.
    """
    device = machine.device
    teacher: nn.Module = run.teachers["teacher0"].net.get_submodule("model")
    # Its own copy: kdcli's goes on beside it.
    student = copy.deepcopy(run.student.get_submodule("model")).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    batches = _endless(plain_loader(machine, run) if reads else ready_batches(machine, run))
    while True:
        for _ in range(steps):
            image, labels = (tensor.to(device, non_blocking=True) for tensor in next(batches))
            with torch.autocast(device.type, dtype=cast or torch.bfloat16, enabled=cast is not None):
                with torch.no_grad():
                    taught = teacher(image)
                shown = student(image)
            ours, other = ((x.float() / 4).log_softmax(1) for x in (shown, taught))
            loss = F.cross_entropy(shown.float(), labels)
            loss = loss + 16 * F.kl_div(ours, other, reduction="batchmean", log_target=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        machine.wait()
        yield


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting whose speed is measured: keys of runtime, what a loop by hand casts to, images of a batch, networks.

    to_ready: the least ratio to a loop by hand that reads nothing. A small network keeps the host busy, which reads
    besides; a large one the GPU.
    """

    runtime: Mapping[str, Any]
    cast: torch.dtype | None
    batch: int
    spec_of: Callable[..., dict[str, Any]]
    to_ready: float


SPEEDS = {
    "fp32, batch 128": Setting({"precision": "fp32"}, None, 128, images_spec, 0.7),
    "bf16 channels_last, batch 128": Setting(
        {"precision": "bf16", "channels_last": True}, torch.bfloat16, 128, images_spec, 0.7
    ),
    "bf16, batch 16": Setting({"precision": "bf16"}, torch.bfloat16, 16, images_spec, 0.7),
    "bf16, 224 pixels": Setting({"precision": "bf16"}, torch.bfloat16, 128, photographs_spec, 0.95),
}


def speed(machine: Machine, lines: Lines) -> None:
    """kdcli's loop keeps up with one by hand, and its images/s are the clock's.

    By turns with it: a loop by hand that reads its images, and one whose images lie ready. A turn is two log points
    long. The seconds that kdcli tells of the first ones have the turns by hand before them in them, for its loop rests
    meanwhile: those told from the first log point to the second are held to the clock.
    """
    turns = machine.size(7, 2)
    for name, setting in SPEEDS.items():
        if not machine.cuda and setting.cast is not None:
            continue
        batch = machine.size(setting.batch, 8)
        log_freq = machine.size(20 if setting.spec_of is images_spec else 5, 2)
        steps = 2 * log_freq
        spec = setting.spec_of(machine, batch=batch, steps=steps * (turns + 2), **setting.runtime)
        spec["trainer"]["log_freq"] = log_freq
        with opened(spec, machine.device) as run:
            hands = [by_hand(machine, run, steps, setting.cast, reads=reads) for reads in (True, False)]
            records = training.train(run)
            own: list[float] = []
            others: list[list[float]] = [[], []]
            told: list[float] = []
            timed: list[float] = []
            for turn in range(turns + 1):
                machine.wait()
                began = time.perf_counter()
                taken: list[tuple[float, Step]] = []
                for record in records:
                    if isinstance(record, Step):
                        taken.append((time.perf_counter(), record))
                        if len(taken) == steps:
                            break
                machine.wait()
                seconds = time.perf_counter() - began
                spent = [_seconds(hand) for hand in hands]
                # The workers by hand read ahead and pin after their turn: not in the next one of kdcli.
                time.sleep(machine.size(7, 0) / 10)
                if turn:  # the first turn warms up
                    own.append(seconds)
                    for other, one in zip(others, spent, strict=True):
                        other.append(one)
                    # The records of a log point come together, when the device has done their steps.
                    told.append(sum(record.seconds for _, record in taken[log_freq:]))
                    timed.append(taken[log_freq][0] - taken[0][0])
            records.close()  # type: ignore[attr-defined]
            for hand in hands:
                hand.close()  # type: ignore[attr-defined]
        rate = batch * steps / statistics.median(own)
        for what, other, least in (
            ("a loop by hand", others[0], 0.95),
            ("one that reads nothing", others[1], setting.to_ready),
        ):
            ratios = sorted(b / a for a, b in zip(own, other, strict=True))
            ratio = statistics.median(ratios)
            text = f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}; {rate:,.0f} images/s)"
            lines.least(f"to {what}, {name}", ratio, machine.size(round(100 * least), 10) / 100, text)
        true = sum(timed) / sum(told)
        low, high = (0.95, 1.05) if machine.cuda else (0.5, 2.0)
        lines.add(
            f"images/s told to the clock's, {name}",
            f"{true:.2f}",
            f"{low:g} to {high:g}",
            low <= true <= high,
        )


def _seconds(turns: Iterator[None]) -> float:
    """How long the next turn takes."""
    began = time.perf_counter()
    next(turns)
    return time.perf_counter() - began
