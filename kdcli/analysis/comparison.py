"""Student and teachers of a run measured side by side: quality, size, speed, agreement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.analysis.evaluated_networks import (
    EvaluatedNetwork,
    learnt_classes,
    require_weights,
    stated_by_student,
    student_of,
    teacher_of,
    used_teachers,
)
from kdcli.analysis.probed import probe_figures
from kdcli.distill.module_search import find_classifier
from kdcli.distill.teacher import Teacher
from kdcli.distill.trainee import DeployedStudent
from kdcli.errors import KdError, SpecError
from kdcli.models.network import Network
from kdcli.models.torch_modes import flops_of
from kdcli.parallel.devices import autocast_for, precisions, to_device
from kdcli.parallel.distributed import Processes
from kdcli.records import Comparison, Notice
from kdcli.spec.parse import ParsedSpec
from kdcli.tasks.saved_outputs import DetectionOutputs
from kdcli.tasks.task import Drawing, Meter, Task
from kdcli.training.build import (
    build_data,
    build_student,
    build_teachers,
    file_notices,
    pixel_change,
    run_root,
)
from kdcli.training.checkpoint import (
    Progress,
    checkpoints,
    fitting,
    load_checkpoint,
    step_info_of,
    step_of,
)
from kdcli.training.evaluate import measure_mimicry, remarks, summed, with_heads
from kdcli.training.join_jobs import (
    first_samples,
    jobs_of,
    join_jobs,
    labels_of,
    made_up_labels,
    teacher_settings,
    teacher_taps,
)
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import RunFolder
from kdcli.training.sides import Sides

LATENCY_SECONDS = 0.5

RECORDED = "what the student has learnt of its teachers is as training measured it, not measured anew: {}"


def compare(
    parsed: ParsedSpec,
    options: RunOptions,
    processes: Processes,
    weights: Path | None,
    keep: DetectionOutputs | None = None,
    sides: Sides | None = None,
    *,
    key: str | None = None,
) -> tuple[list[Comparison], list[Notice]]:
    """The rows of `kdcli eval`: the student first, then every teacher whose weights are there.

    weights: a file for the student in place of the run's own. key: where in it they lie. keep: what to leave on
    disk. sides: of a caller that asks for the task too. Raises RunError KD719 where there are no weights for the
    student, SpecError where the test data is none to measure by (Task.check_truth).
    """
    spec = parsed.spec
    keep = keep or DetectionOutputs()
    sides = sides or Sides(spec, options.places, plugins=options.plugins)
    task = sides.task
    keep.require(task)
    require_weights(parsed, weights)
    messages = file_notices(spec, options.places, "mimic", "dataset")
    if processes.speaks:
        keep.try_out(["student", *used_teachers(spec)])
    opened = sides.test_of_run(run_root(parsed), stated_by_student(parsed, weights))
    changed = sides.test_changed_since(run_root(parsed)) if weights is None and processes.speaks else None
    messages += [] if changed is None else [changed]
    loader = build_data(opened, spec, processes)
    findings = task.check_truth(spec, loader.facts, options.places)
    if any(finding.severity == "error" for finding in findings):
        loader.close()
        raise SpecError(findings)
    sample = dict(next(loader.batches(0)))
    student, notices = student_of(task, parsed, options, weights, sample, loader.facts, key=key)
    messages += [*loader.notices, *(finding.message for finding in findings)]
    notices = [*(Notice(message=message, level="warning") for message in messages), *notices]
    contenders = [student]
    for name in used_teachers(spec):
        try:
            teacher = teacher_of(task, name, spec, options, learnt_classes(sides, loader.facts))
            contenders.append(teacher)
            notices += [Notice(message=f"{name}: {one}") for one in teacher.left_out]
        except KdError as error:
            reason = error.diagnostics[0].message
            notices.append(Notice(message=f"{name} is left out: {reason}", level="warning"))
    for contender in contenders:
        contender.net.to(processes.device).eval()
    drawing: Drawing | None = None
    if task.kept is not None and keep.pictures is not None and processes.speaks:
        drawing = task.kept.drawing(keep.pictures, loader.facts)
    cast = autocast_for(precisions(spec.runtime, processes.device)[0], processes.device)
    meters = {contender.name: task.meter(loader.facts) for contender in contenders}
    labelled = loader.facts.labels != "none"
    sums, agreement = _measure(
        task, contenders, loader.batches(0), meters if labelled else {}, processes, cast, drawing
    )
    metrics = {name: meters[name].result(sums_of_network) for name, sums_of_network in sums.items()}
    notices += [Notice(message=one) for contender in contenders for one in contender.class_notices]
    for name, sums_of_network in sums.items():
        messages = remarks(name, meters[name], sums_of_network, processes, loader)
        notices += [Notice(message=message, level="warning") for message in messages]
    if task.kept is not None and keep.predictions is not None and processes.speaks:
        predictions = {
            name: task.kept.rows(meters[name], sums_of_network) for name, sums_of_network in sums.items()
        }
        notices += [Notice(message=f"predictions: {path}") for path in keep.save(task.kept, predictions)]
    if drawing is not None and drawing.drawn:
        notices.append(Notice(message=f"{drawing.drawn} pictures: {keep.pictures}"))
    sample = dict(next(loader.batches(0)))
    if not student.answers or not labelled:
        metrics["student"], messages = mimicry_of(parsed, options, sides, student, processes, sample)
        notices += [Notice(message=message) for message in messages]
    loader.close()
    networks = [(contender.name, contender.net, contender.pixels) for contender in contenders]
    probed, messages_of_probe = probe_figures(sides, networks, processes, cast, run_root(parsed))
    metrics = {name: {**metrics.get(name, {}), **probed.get(name, {})} for name in {**metrics, **probed}}
    notices += messages_of_probe
    rows = [
        row_of(contender, metrics.get(contender.name, {}), agreement.get(contender.name), sample)
        for contender in contenders
    ]
    return rows, notices


def mimicry_of(
    parsed: ParsedSpec,
    options: RunOptions,
    sides: Sides,
    student: EvaluatedNetwork,
    processes: Processes,
    sample: Mapping[str, Any],
) -> tuple[dict[str, float], list[str]]:
    """What the student has learnt of its teachers, measured without labels, and notices about it.

    The adapters are those of the run's checkpoint of the step that the student is of; without it, and where a teacher
    can't be had, the figures are those that training wrote into the student's file, and a notice says so. sample: a
    batch of the test data.
    """
    spec = parsed.spec
    if not jobs_of(spec):
        return {}, []
    adapters = next(
        (
            path
            for path in checkpoints(RunFolder(run_root(parsed)).checkpoints)
            if step_of(path) == student.step
        ),
        None,
    )
    if adapters is None:
        return dict(student.recorded), [
            RECORDED.format("there is no checkpoint of its step, which has its adapters")
        ]
    state = load_checkpoint(adapters)
    opened = sides.test_of_run(run_root(parsed))
    try:
        nets, _ = build_teachers(spec, options)
    except KdError as error:
        return dict(student.recorded), [RECORDED.format(error.diagnostics[0].message)]
    facts = opened.facts
    net = build_student(sides.task, spec, options)
    precision, precision_of_teachers = precisions(spec.runtime, processes.device)
    teachers = {}
    for name, taps in teacher_taps(spec, nets).items():
        settings = teacher_settings(spec, name)
        taps.net.to(processes.device)
        labels = labels_of(sides.task, spec, name, settings, facts, options.places)
        teachers[name] = Teacher(
            name,
            taps,
            batch_statistics=settings.teacher_bn_mode == "train",
            pixels=pixel_change(name, spec, facts, options.places, taps.net),
            autocast=autocast_for(precision_of_teachers, processes.device),
            labels=labels,
        )
    net.to(processes.device)
    loader = build_data(opened, spec, replace(processes, rank=0, world_size=1))
    with ExitStack() as stack:
        stack.callback(loader.close)
        first = to_device(first_samples(sample), processes.device)
        known = replace(facts, num_samples=_samples_learnt(state) or facts.num_samples)
        joined = join_jobs(spec, net, teachers, first, known, stack, made_up_labels(known))
        joined.trainee.to(processes.device)
        with fitting(adapters):
            joined.trainee.load_state_dict(state["trainee"])
        deployed = joined.deployed
        assert isinstance(deployed, (Network, DeployedStudent))
        deployed.load_state_dict(student.net.state_dict())
        metrics = measure_mimicry(
            joined,
            teachers,
            loader,
            sides.task,
            processes,
            agrees=with_heads(joined, teachers) if student.answers else (),
            seed=spec.runtime.random_seed,
            autocast=autocast_for(precision, processes.device),
            step_info=step_info_of(Progress(**state["progress"]), state["batches"]),
        )
    return metrics, []


def _samples_learnt(state: Mapping[str, Any]) -> int | None:
    """How many training samples the run of a checkpoint had, where it says so."""
    train = (state.get("data") or {}).get("train") or {}
    found = train.get("samples")
    return found if isinstance(found, int) else None


@torch.no_grad()
def _measure(
    task: Task,
    contenders: list[EvaluatedNetwork],
    batches: Any,
    meters: Mapping[str, Meter],
    processes: Processes,
    cast: torch.autocast | None,
    drawing: Drawing | None,
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Each network's summed measures, and each teacher's agreement with the student, in one pass.

    A network without a head (a teacher whose list ends early) has none.
    """
    sums: dict[str, Tensor] = {}
    headed: set[str] = set()
    by_name = {contender.name: contender for contender in contenders}
    for batch in batches:
        batch = to_device(dict(batch), processes.device)
        answers: dict[str, Mapping[str, Any]] = {}
        for contender in contenders:
            if cast is None:
                outputs = contender.outputs(batch)
            else:
                with cast:
                    outputs = contender.outputs(batch)
            answers[contender.name] = outputs
            if contender.answers and contender.name in meters and task.answers(outputs):
                meters[contender.name].update(outputs, batch)
                headed.add(contender.name)
        if drawing is not None:
            drawing.draw(answers, batch)
        for name in [contender.name for contender in contenders[1:]]:
            both = contenders[0].answers and by_name[name].answers and task.agreement is not None
            agreed = (
                task.agreement.sums(answers["student"], answers[name]) if both and task.agreement else None
            )
            if agreed is not None:
                sums[name] = sums[name] + agreed if name in sums else agreed
    total = {
        name: summed(meter, processes) for name, meter in meters.items() if processes.any(name in headed)
    }
    agreement = {}
    for name, agreed in sums.items():
        figures = task.agreement.result(processes.sum(agreed)) if task.agreement is not None else None
        if figures is not None:
            agreement[name] = figures
    return total, agreement


def row_of(
    contender: EvaluatedNetwork,
    metrics: dict[str, float],
    agreement: dict[str, float] | None,
    sample: dict[str, Any],
    *,
    seconds: float = LATENCY_SECONDS,
) -> Comparison:
    """One network's row; latency is measured for about so many seconds. Moves the network to the CPU."""
    net = contender.net.cpu()
    if contender.pixels is not None:
        sample = {**sample, "image": contender.pixels(sample["image"])}
    return Comparison(
        network=contender.name,
        metrics=metrics,
        parameters=_parameters(net, first_samples(sample, 1)),
        flops=flops_of(net, first_samples(sample, 1)),
        file_bytes=contender.file_bytes,
        latency_ms_batch_1=latency_ms(net, first_samples(sample, 1), seconds),
        latency_ms_batch=latency_ms(net, sample, seconds),
        batch_size=len(sample["image"]),
        agreement=agreement,
        flops_size=[int(side) for side in sample["image"].shape[-2:]],
    )


def _parameters(net: Network | DeployedStudent, sample: Mapping[str, Any]) -> int:
    """The number of parameters after training: without a classifier that another one has replaced."""
    dropped = net.training_only()
    replaced: set[int] = set()
    if isinstance(net, DeployedStudent):
        replaced = {id(p) for p in find_classifier(net.taps.net, sample).parameters()}
    return sum(
        p.numel()
        for name, p in net.named_parameters()
        if name.split(".", 1)[0] not in dropped and id(p) not in replaced
    )


@torch.inference_mode()
def latency_ms(net: Callable[[Any], Any], batch: Any, seconds: float = LATENCY_SECONDS) -> float:
    """Median milliseconds of a forward on the CPU, after one warm-up, over about so many seconds."""
    net(batch)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 200):
        start = time.perf_counter()
        net(batch)
        times.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(times)
