"""Student and teachers of a run measured side by side: quality, size, speed, agreement."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.analysis.probed import probe_figures
from kdcli.data.facts import DataFacts, describe
from kdcli.disk import exists, is_file, size_of
from kdcli.distill.module_search import find_classifier
from kdcli.distill.teacher import Labels, Teacher
from kdcli.distill.trainee import DeployedStudent, Trainee
from kdcli.errors import KdError, RunError, SpecError
from kdcli.losses import loss_of
from kdcli.models.network import Network
from kdcli.models.torch_modes import flops_of
from kdcli.models.weight_files import find_file, stated_classes
from kdcli.models.weights import fit_weights, load_weights
from kdcli.parallel.devices import autocast_for, student_precision, to_device
from kdcli.parallel.distributed import Processes
from kdcli.records import Comparison, Notice
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.schema import Spec
from kdcli.tasks.saved_outputs import DetectionOutputs
from kdcli.tasks.task import Drawing, Matching, Meter, Task
from kdcli.training.build import (
    build_data,
    build_student,
    build_teachers,
    file_notices,
    pixel_change,
    run_root,
)
from kdcli.training.checkpoint import (
    ANSWERS,
    FEATURES,
    UNTRAINED,
    Progress,
    checkpoints,
    fitting,
    load_checkpoint,
    newest_valid,
    step_info_of,
    step_of,
    training_metadata,
)
from kdcli.training.evaluate import measure_mimicry, unanswered, with_heads
from kdcli.training.join_jobs import (
    first_samples,
    jobs_of,
    join_jobs,
    labels_of,
    made_up_labels,
    teacher_network,
    teacher_settings,
    teacher_source,
    teacher_taps,
)
from kdcli.training.run import RunOptions
from kdcli.training.run_folder import RunFolder
from kdcli.training.sides import Sides

LATENCY_SECONDS = 0.5


class Scoring:
    """A network's outputs as answers to the data's classes; `why` says why it has none."""

    def __init__(self, matching: Matching, name: str, labels: Labels, facts: DataFacts) -> None:
        self.matching = matching
        self.name, self.labels, self.facts = name, labels, facts
        self.why: str | None = None

    def __call__(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs that a meter may read; raises SpecError KD472 where the network lacks those classes."""
        self.labels.check(self.name, outputs)
        outputs = self.labels.outputs(outputs)
        if "logits" not in outputs:
            return outputs
        self.why = self.matching.not_scored(self.name, self.labels, outputs, self.facts)
        return (
            outputs
            if self.why is None
            else {name: value for name, value in outputs.items() if name != "logits"}
        )


@dataclass(frozen=True)
class EvaluatedNetwork:
    """One network in the comparison. pixels: from the student's to its own. left_out: notices of what its
    file holds and its list has no module for. scoring: of a teacher, whether it answers the data's classes.
    source: of the student, its file. answers: whether it has a head that was trained. step, recorded: of the run and
    its metrics then, where its file says it. untrained: the names of its parameters that nothing trained, where it
    has no trained head."""

    name: str
    net: Network | DeployedStudent
    file_bytes: int | None
    pixels: Any = None
    left_out: tuple[str, ...] = ()
    scoring: Scoring | None = None
    source: Path | None = None
    answers: bool = True
    step: int | None = None
    recorded: Mapping[str, float] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()

    @property
    def class_notices(self) -> list[str]:
        """Notices about its classes, once it has run on a batch."""
        known = () if self.scoring is None else (self.scoring.labels.notice, self.scoring.why)
        return [one for one in known if one is not None]

    def outputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Its named outputs on a batch with the student's pixels."""
        if self.pixels is not None:
            batch = {**batch, "image": self.pixels(batch["image"])}
        result: Mapping[str, Any] = self.net(batch)
        return result if self.scoring is None else self.scoring(result)


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
    cast = autocast_for(student_precision(spec.runtime), processes.device)
    meters = {contender.name: task.meter(loader.facts) for contender in contenders}
    labelled = loader.facts.labels != "none"
    sums, agreement = _measure(
        task, contenders, loader.batches(0), meters if labelled else {}, processes, cast, drawing
    )
    metrics = {name: meters[name].result(sums_of_network) for name, sums_of_network in sums.items()}
    notices += [Notice(message=one) for contender in contenders for one in contender.class_notices]
    for name, sums_of_network in sums.items():
        messages = unanswered(name, meters[name], sums_of_network, processes, loader)
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


RECORDED = "what the student has learnt of its teachers is as training measured it, not measured anew: {}"


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
            autocast=autocast_for(
                spec.runtime.teacher_precision or student_precision(spec.runtime), processes.device
            ),
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
            autocast=autocast_for(student_precision(spec.runtime), processes.device),
            step_info=step_info_of(Progress(**state["progress"]), state["batches"]),
        )
    return metrics, []


def _samples_learnt(state: Mapping[str, Any]) -> int | None:
    """How many training samples the run of a checkpoint had, where it says so."""
    train = (state.get("data") or {}).get("train") or {}
    found = train.get("samples")
    return found if isinstance(found, int) else None


def stated_by_student(parsed: ParsedSpec, weights: Path | None) -> tuple[str, ...] | None:
    """The class names in the student's weight file, the one that `student_of` measures; None without them."""
    folder = RunFolder(run_root(parsed))
    candidates = [weights] if weights is not None else [folder.best_student, folder.student]
    file = next((path for path in candidates if is_file(path)), None)
    return None if file is None else stated_classes(file)


def used_teachers(spec: Spec) -> list[str]:
    """The teachers that a job uses."""
    jobs = jobs_of(spec).values()
    return [name for name in spec.teachers if any(name in job.teachers for job in jobs)]


def student_of(
    task: Task,
    parsed: ParsedSpec,
    options: RunOptions,
    weights: Path | None,
    sample: Mapping[str, Any],
    facts: DataFacts,
    *,
    key: str | None = None,
) -> tuple[EvaluatedNetwork, list[Notice]]:
    """The student with `weights`, else the best of its run, else the last. key: where in the file they lie."""
    net, trainee = rebuild(task, parsed.spec, options, first_samples(sample), facts)
    folder = RunFolder(run_root(parsed))
    candidates = [weights] if weights is not None else [folder.best_student, folder.student]
    for path in candidates:
        if path is not None and (weights is not None or exists(path)):
            found = find_file(path)
            read_otherwise = load_weights(net, found, key=key)
            size = size_of(found) if is_file(found) else None
            said = [f"student: {path}", *(f"student: {notice}" for notice in read_otherwise)]
            facts_of_file = training_metadata(found)
            student = EvaluatedNetwork(
                "student",
                net,
                size,
                source=path,
                answers=facts_of_file.get(ANSWERS) != FEATURES,
                step=int(facts_of_file["step"]) if facts_of_file.get("step", "").isdigit() else None,
                recorded=json.loads(facts_of_file.get("metrics", "{}")),
                untrained=tuple(json.loads(facts_of_file.get(UNTRAINED, "[]"))),
            )
            return student, [Notice(message=message) for message in said]
    notices: list[Notice] = []
    for path, state in newest_valid(folder.checkpoints):
        if isinstance(state, dict):
            fit_weights(net, deployed_state(net, trainee, state["trainee"]), f"`{path}`")
            progress = state["progress"]
            answers = not progress.get("features_only", False)
            student = EvaluatedNetwork(
                "student",
                net,
                None,
                source=path,
                answers=answers,
                step=progress["step"],
                untrained=tuple(progress.get("untrained", ())),
            )
            return student, [*notices, Notice(message=f"student: {path}")]
        notices.append(Notice(message=str(state), level="warning"))
    raise _without_weights(folder)


def require_weights(parsed: ParsedSpec, weights: Path | None) -> None:
    """Raise RunError KD719 where the run folder has no weights of the student."""
    folder = RunFolder(run_root(parsed))
    if weights is None and not (
        exists(folder.best_student) or exists(folder.student) or checkpoints(folder.checkpoints)
    ):
        raise _without_weights(folder)


def _without_weights(folder: RunFolder) -> RunError:
    return RunError.of(
        "KD719",
        f"there are no weights for the student in {folder.root}",
        "train it first (`kdcli train`), or name a file with `--weights`",
    )


def teacher_of(task: Task, name: str, spec: Spec, options: RunOptions, facts: Any) -> EvaluatedNetwork:
    """A teacher with its weights; raises KdError where it has none."""
    settings = teacher_settings(spec, name)
    if settings.teacher_weight is None:
        raise RunError.of("KD719", "it has no `teacher_weight`")
    source = teacher_source(spec, name, options.places)
    assert source is not None
    net = teacher_network(spec, name, options.plugins)
    left_out = tuple(source.load(net, options.shown))
    file = source.file()
    size = size_of(file) if file is not None and is_file(file) else None
    labels = labels_of(task, spec, name, settings, facts, options.places)
    scoring = None if task.matching is None else Scoring(task.matching, name, labels, facts)
    pixels = pixel_change(name, spec, facts, options.places, net)
    return EvaluatedNetwork(name, net, size, pixels, left_out, scoring, answers=not net.headless)


def learnt_classes(sides: Sides, test: DataFacts) -> DataFacts:
    """The test data's facts with as many classes as training has: a list without names may lack the last ones."""
    if test.class_names is not None:
        return test
    try:
        learnt = sides.train.facts.num_classes
    except KdError:  # measured elsewhere than it was trained
        learnt = describe(sides.spec.dataset.train).num_classes
    return test if learnt is None else replace(test, num_classes=learnt)


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
        name: processes.sum(meter.sums()) for name, meter in meters.items() if processes.any(name in headed)
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


def rebuild(
    task: Task, spec: Spec, options: RunOptions, sample: Mapping[str, Any], facts: DataFacts
) -> tuple[Network | DeployedStudent, Trainee]:
    """The deployed student with random weights, and the trainee that holds it; both on the CPU.

    sample: a small batch of the data. Teachers are built only where a job gives the student another end,
    and their weights are not read: what of them is deployed is in the student's own file.
    """
    student = build_student(task, spec, options)
    losses = [loss.type for job in jobs_of(spec).values() for loss in job.losses.values()]
    if not any(loss_of(name).replaces_end for name in losses):
        return student, Trainee(student, None, {}, {})
    nets, _ = build_teachers(spec, options, load=False)
    teachers = {}
    for name, taps in teacher_taps(spec, nets).items():
        settings = teacher_settings(spec, name)
        pixels = pixel_change(name, spec, facts, options.places, nets[name])
        # The shapes alone matter: which classes they were is in the student's file.
        labels = labels_of(task, spec, name, settings, facts, options.places, files=False)
        teachers[name] = Teacher(name, taps, pixels=pixels, labels=labels)
    with ExitStack() as stack:
        joined = join_jobs(spec, student, teachers, sample, facts, stack, made_up_labels(facts))
    assert isinstance(joined.deployed, (Network, DeployedStudent))
    return joined.deployed, joined.trainee


def deployed_state(
    deployed: Network | DeployedStudent, trainee: Trainee, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The part of a checkpoint's `trainee` state that belongs to the deployed student, under its names there."""
    names = {id(tensor): name for name, tensor in deployed.state_dict(keep_vars=True).items()}
    tensors = trainee.state_dict(keep_vars=True).items()
    return {names[id(t)]: state[name] for name, t in tensors if id(t) in names and name in state}
