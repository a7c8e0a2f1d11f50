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
from kdcli.distill.taps import begin_batch
from kdcli.distill.teacher import Teacher
from kdcli.errors import KdError, RunError
from kdcli.failures import doing
from kdcli.parallel.devices import to_device
from kdcli.parallel.distributed import Processes
from kdcli.records import Evaluation, Notice, Record, warnings
from kdcli.tasks.mimicry import Mimicry
from kdcli.tasks.probe.probe import LINEAR, Measured, ProbedNetwork
from kdcli.tasks.task import Meter, Task, one_answer
from kdcli.training.checkpoint import Progress
from kdcli.training.join_jobs import JoinedJobs, require
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
    stop: Callable[[], bool] = lambda: False,
    name: str = "the network",
    messages: list[str] | None = None,
) -> dict[str, float]:
    """Metrics of one network over the loader, as `counted` says; messages: takes those of `remarks`."""
    meter, sums = counted(forward, loader, task, processes, autocast=autocast, stop=stop, name=name)
    if messages is not None:
        messages += remarks(name, meter, sums, processes, loader)
    return meter.result(sums)


@torch.no_grad()
def counted(
    forward: Forward,
    loader: Loader,
    task: Task,
    processes: Processes,
    *,
    autocast: torch.autocast | None = None,
    most_samples: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    name: str = "the network",
) -> tuple[Meter, Tensor]:
    """The meter of one network after the loader (or its first samples), each sample counted once, and its summed sums.

    forward: batch -> named outputs, with the network already in evaluation mode. stop: asked at each
    batch; once it says yes this process looks at no more, and the metrics mean nothing. name: the network's.
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
    return meter, summed(meter, processes)


def summed(meter: Meter, processes: Processes) -> Tensor:
    """The meter's sums added over all processes; a meter whose sums grow is made as large in each of them first."""
    widen = getattr(meter, "widen", None)
    if widen is not None and processes.world_size > 1:
        widen(max(processes.gather(getattr(meter, "most", 0))))
    return processes.sum(meter.sums())


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


def probe_once(run: Run, progress: Progress, primary: str, *, stop: Callable[[], bool]) -> Iterator[Record]:
    """Probe what a run probes once: the student before its first step, and each teacher; yields records.

    What a resumed run has measured already is not measured again, unless the probe's images have changed. primary: the
    metric by which the best student is chosen.
    """
    if run.probe is None:
        return
    if progress.probe and progress.probe["images"] != run.probe.listing:
        yield from warnings(["the probe's images have changed since the checkpoint: its figures begin anew"])
        progress.probe = {}
        if primary == LINEAR:
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
        yield from (
            Notice(message=message) for message in (*run.probe.notices, f"the probe: {run.probe.text}")
        )
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
            primary=primary,
            best=False,
            seconds=reading + fitting,
        )


def probe_where_due(
    run: Run, progress: Progress, messages: list[str], stop: Callable[[], bool]
) -> dict[str, float]:
    """The student's figures on the probe at an evaluation; empty where `dataset.probe.freq` leaves this one out.

    It is due at the first evaluation after each so many epochs, and at the last one of a run. messages: takes what is
    doubtful of its features.
    """
    if run.probe is None:
        return {}
    number = progress.epoch + (progress.batch >= len(run.train_loader))
    last = progress.stage == len(run.stages) - 1 and progress.stage_step >= run.stages[-1].steps
    freq = run.probe.settings.freq or 1
    before = number - 1
    while before > 0 and not comes_due(run, before, run.spec.trainer.test_freq):
        before -= 1
    if not last and number // freq == before // freq:
        return {}
    found = probed(run, student_to_probe(run), stop)
    if found is None:
        return {}
    messages += found.messages
    return found.metrics


def comes_due(run: Run, epoch: int, frequency: int) -> bool:
    """Whether this epoch, from 1, is one in so many; with `iter_base`, whether a step in it is."""
    if not run.spec.runtime.iter_base:
        return epoch % frequency == 0
    steps = run.steps_per_epoch
    return epoch * steps // frequency > (epoch - 1) * steps // frequency


def with_probe(teachers: Mapping[str, dict[str, float]], progress: Progress) -> dict[str, dict[str, float]]:
    """The teachers' metrics with what a probe has measured once, the student before training first."""
    figures: Mapping[str, dict[str, float]] = progress.probe.get("figures", {})
    return {name: {**teachers.get(name, {}), **figures.get(name, {})} for name in {**figures, **teachers}}


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
            begin_batch(joined.trainee.taps, *(teacher.taps for teacher in teachers.values()))
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


def remarks(name: str, meter: Meter, sums: Tensor, processes: Processes, loader: Loader) -> list[str]:
    """What the metrics don't say: how many samples got no usable answer, and which come first; one answer for all.

    sums: over all processes, which all ask.
    """
    found = []
    count = meter.unanswered(sums)
    if count:
        samples = sorted({one for seen in processes.gather(meter.unanswered_samples()) for one in seen})
        first = ", ".join(f"`{loader.name_of(sample)}`" for sample in samples[:3])
        which = f" ({first}{', ...' if count > 3 else ''})" if first else ""
        what = "1 sample" if count == 1 else f"{count:,} samples"
        found.append(f"{name} {meter.unusable} for {what}{which}: counted as wrong")
    answer = one_answer(meter, sums)
    if answer is not None:
        found.append(f"{name} answers every image with {class_words(answer, loader)}, whatever is on it")
    return found


def class_words(number: int, loader: Loader) -> str:
    """A class by its name, or by its number where the data has no names."""
    names = loader.facts.class_names or ()
    return f"`{names[number]}`" if number < len(names) else f"class {number}"
