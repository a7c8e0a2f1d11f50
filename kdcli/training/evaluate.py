"""Metrics of one network over a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.data.loaders import Loader
from kdcli.errors import KdError, RunError
from kdcli.failures import doing
from kdcli.parallel.devices import to_device
from kdcli.parallel.distributed import Processes
from kdcli.records import Evaluation, Notice, Record, warnings
from kdcli.tasks.probe.probe import LINEAR, Measured, ProbedNetwork
from kdcli.tasks.task import Meter, Task
from kdcli.training.checkpoint import Progress
from kdcli.training.run import Run

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


BEFORE = "student before training"
"""The student as it starts, among the networks that are measured."""


def probed(run: Run, network: ProbedNetwork, stop: Callable[[], bool] = lambda: False) -> Measured | None:
    """What the run's probe finds of a network; None where `stop` ends it. All processes ask, the first one computes.

    Where the student is spread over the processes all of them run it.
    """
    together = run.spec.trainer.parallel == "fsdp" and run.processes.world_size > 1
    found: Measured | None = None
    failure: KdError | None = None
    assert run.probe is not None
    if run.processes.speaks or together:
        try:
            # Data workers draw their seeds from the main generator, whatever they do with them.
            with torch.random.fork_rng(devices=[]), evaluation_mode(network.net):
                found = run.probe.measure(network, (lambda: False) if together else stop)
        except KdError as error:
            failure = error
    found, problems = run.processes.broadcast((found, None if failure is None else failure.diagnostics))
    if problems is not None:
        raise failure or RunError(problems)
    return found


def student_to_probe(run: Run) -> ProbedNetwork:
    """The student as the probe reads it: whole, also where a method gives it another end."""
    return ProbedNetwork(name="student", net=run.student, autocast=run.autocast)


def probe_once(run: Run, progress: Progress, stop: Callable[[], bool]) -> Iterator[Record]:
    """Probe what a run probes once: the student before its first step, and each teacher; yields records.

    What a resumed run has measured already is not measured again, unless the probe's images have changed.
    """
    if run.probe is None:
        return
    if progress.probe and progress.probe["images"] != run.probe.listing:
        yield from warnings(["the probe's images have changed since the checkpoint: its figures begin anew"])
        progress.probe = {}
        if run.task.primary == LINEAR:
            progress.best, progress.best_step = {}, 0
    figures: dict[str, dict[str, float]] = progress.probe.setdefault("figures", {})
    progress.probe["images"] = run.probe.listing
    networks = {BEFORE: student_to_probe(run)} if progress.step == 0 else {}
    networks |= {
        name: ProbedNetwork(
            name=name,
            net=teacher.net,
            pixels=teacher.pixels,
            autocast=teacher.autocast,
            weights=f"{run.teacher_hashes[name]}{', folded' if run.spec.runtime.fold_bn else ''}",
        )
        for name, teacher in run.teachers.items()
    }
    if any(name not in figures for name in networks):
        yield Notice(message=f"the probe: {run.probe.text}")
    for name, network in networks.items():
        if name in figures:
            continue
        found = probed(run, network, stop)
        if found is None:
            return
        yield from warnings(found.messages)
        reading, fitting = found.seconds
        cost = f"{reading:.1f} s to read images and features, {fitting:.1f} s to fit"
        again = (
            "; `dataset.probe.freq` says after how many epochs it is measured again" if name == BEFORE else ""
        )
        yield Notice(message=f"the probe of {network.called} reads {found.feature}: {cost}{again}")
        figures[name] = found.metrics
        yield Evaluation(
            step=progress.step,
            epoch=progress.epoch,
            network=name,
            metrics=found.metrics,
            primary=run.task.primary,
            best=False,
            seconds=reading + fitting,
        )


def with_probe(teachers: Mapping[str, dict[str, float]], progress: Progress) -> dict[str, dict[str, float]]:
    """The teachers' metrics with what a probe has measured once, the student before training first."""
    figures: Mapping[str, dict[str, float]] = progress.probe.get("figures", {})
    return {name: {**teachers.get(name, {}), **figures.get(name, {})} for name in {**figures, **teachers}}


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
