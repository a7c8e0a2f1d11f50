"""Student and teachers of a run with their weights, as `eval`, `report` and `export` measure them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kdcli.data.facts import DataFacts, describe
from kdcli.disk import exists, is_file, size_of
from kdcli.distill.teacher import Labels, Teacher
from kdcli.distill.trainee import DeployedStudent, Trainee
from kdcli.errors import KdError, RunError
from kdcli.losses import loss_of
from kdcli.models.network import Network
from kdcli.models.weight_files import find_file, stated_classes
from kdcli.models.weights import fit_weights, load_weights
from kdcli.records import Notice
from kdcli.spec.in_memory import is_given
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.schema import Spec
from kdcli.tasks.task import Matching, Task
from kdcli.training.build import (
    build_student,
    build_teachers,
    pixel_change,
    run_root,
)
from kdcli.training.checkpoint import (
    ANSWERS,
    FEATURES,
    UNTRAINED,
    checkpoints,
    newest_valid,
    training_metadata,
)
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
            with _others_named([] if weights is not None else [one for one in candidates if one != path]):
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


@contextmanager
def _others_named(others: Sequence[Path]) -> Iterator[None]:
    """A block in which a damaged file of a run is told with the run's other files that may be whole."""
    try:
        yield
    except KdError as error:
        there = [f"`--weights {one}`" for one in others if exists(one)]
        if there and all(one.code == "KD532" for one in error.diagnostics):
            help = f"the run has other weights too: {', '.join(there)}"
            raise type(error)([replace(one, help=help) for one in error.diagnostics]) from error
        raise


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
    source = teacher_source(spec, name, options.places)
    if source is None and not is_given(spec.teachers[name]):
        raise RunError.of("KD719", "it has no `teacher_weight`")
    net = teacher_network(spec, name, options.plugins)
    left_out = () if source is None else tuple(source.load(net, options.shown))
    file = None if source is None else source.file()
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
