"""A run that is built and not yet started: its options, its stages, all that `train` needs; made by build.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdcli.data.build import build_loader, unaugmented_loader
from kdcli.data.digest import Digest
from kdcli.data.facts import DataFacts
from kdcli.data.loaders import Loader
from kdcli.distill.teacher import Teacher, ViewSource
from kdcli.distill.trainee import ActiveLosses, DeployedStudent, Trainee
from kdcli.errors import SpecError, SpecPath
from kdcli.models.fetching import Shown, unseen
from kdcli.models.network import Network
from kdcli.parallel.distributed import Processes
from kdcli.parallel.settings import Settings
from kdcli.records import NetworkFacts, Notice
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.places import HERE, Places
from kdcli.spec.schema import OptimizerSpec, SchedulerSpec, Spec, StageSpec, Trainer
from kdcli.tasks.probe.probe import Probe
from kdcli.tasks.task import Task
from kdcli.training.join_jobs import JoinedJobs
from kdcli.training.optim import MovingAverage

if TYPE_CHECKING:
    from kdcli.training.run_folder import RunFolder
    from kdcli.training.sides import Sides


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line says beside the spec.

    resume: continue from the newest valid checkpoint, or from this one. allow_changed: keys that may
    differ from the checkpoint's spec, and what else may (`data`, `teachers.teacher0`, `world_size`).
    plugins: packages that may be imported. places: where the spec's files are looked up. restarted: the
    launcher has started the processes again after one died. again: the command that continues the run, for
    the user to read. profile: look at so many steps, and train no further. prove: prove the spec before the
    start. proof: of what that is done, and its warnings told (kdcli.check.proof). shown: draws how far a download is.
    flops: of each network on one image of flops_size (height, width), where the proof has counted them.
    """

    device: str | None = None
    overwrite: bool = False
    resume: bool | Path = False
    allow_changed: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    places: Places = HERE
    restarted: bool = False
    again: str | None = None
    profile: int | None = None
    prove: bool = False
    proof: Mapping[str, Any] | None = None
    shown: Shown = unseen
    flops: Mapping[str, int] = field(default_factory=dict)
    flops_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A checkpoint that this run may continue from, and notices about it.

    before_layouts: see MimicContext. arithmetic: `Settings.kept` of the run that saved it.
    """

    path: Path
    notices: tuple[Notice, ...] = ()
    before_layouts: bool = False
    arithmetic: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is built and not yet started.

    sides: the opened data. sources: where each teacher's views come from in training: itself, or its cache.
    allowed_weak_teachers: teachers that may be near chance. digests: of the data, by side; empty on processes that
    don't speak. found_checkpoint: the one to continue from.
    """

    name: str
    parsed: ParsedSpec
    options: RunOptions
    processes: Processes
    folder: RunFolder
    task: Task
    facts: DataFacts
    train_loader: Loader
    sides: Sides
    test_loader: Loader
    probe: Probe | None
    joined: JoinedJobs
    teachers: Mapping[str, Teacher]
    sources: Mapping[str, ViewSource]
    teacher_hashes: Mapping[str, str]
    allowed_weak_teachers: frozenset[str]
    stages: tuple[StagePlan, ...]
    ema: MovingAverage | None
    settings: Settings
    autocast: torch.autocast | None
    scaler: torch.amp.GradScaler | None
    digests: Mapping[str, Digest] = field(default_factory=dict)
    found_checkpoint: FoundCheckpoint | None = None
    networks: tuple[NetworkFacts, ...] = ()
    notices: tuple[str, ...] = field(default=())

    def unaugmented(self) -> Loader | None:
        """A loader of the training data as the test side transforms it; None where that can't be."""
        return unaugmented_loader(
            self.sides.train,
            self.sides.test,
            seed=self.spec.runtime.random_seed,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            on_cuda=self.processes.device.type == "cuda",
        )

    @contextmanager
    def whole_test_loader(self) -> Iterator[Loader]:
        """The loader of all test batches, as a single process has them, for a `with` block."""
        if self.processes.world_size == 1:
            yield self.test_loader
            return
        on_cuda = self.processes.device.type == "cuda"
        loader = build_loader(self.sides.test, seed=self.spec.runtime.random_seed, on_cuda=on_cuda)
        with closing(loader):
            yield loader

    @property
    def tests_labels(self) -> bool:
        """Whether the test data has labels."""
        return self.test_loader.facts.labels != "none"

    def scores(self, teacher: Teacher) -> bool:
        """Whether a teacher's answers can be held against labels."""
        return self.tests_labels and not teacher.headless

    @property
    def spec(self) -> Spec:
        """The spec as parsed."""
        return self.parsed.spec

    @property
    def trainee(self) -> Trainee:
        """The module of everything that trains: student, adapters, losses with parameters."""
        return self.joined.trainee

    @property
    def student(self) -> Network:
        """The student network."""
        assert isinstance(self.trainee.student, Network)
        return self.trainee.student

    @property
    def deployed(self) -> Network | DeployedStudent:
        """The network that is measured and exported: the student, with another end where a method gives it one."""
        assert isinstance(self.joined.deployed, (Network, DeployedStudent))
        return self.joined.deployed

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step."""
        return self.spec.trainer.accumulate_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""
        return -(-len(self.train_loader) // self.accumulate)

    @property
    def schedule_unit(self) -> int:
        """Steps in what the schedule's lengths count: an epoch, or one step with `runtime.iter_base`."""
        return schedule_unit(self.spec, self.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage with all its settings; steps counts optimizer steps.

    train: parameter patterns (`prefix` or `r:regex`) of the student that train; None: all of it.
    """

    name: str | None
    steps: int
    active: ActiveLosses
    train: tuple[str, ...] | None
    optimizer: OptimizerSpec
    optimizer_path: SpecPath
    lr_scheduler: SchedulerSpec | None
    lr_path: SpecPath


def schedule_unit(spec: Spec, steps_per_epoch: int) -> int:
    """Steps in what the schedule's lengths count: an epoch, or one step with `runtime.iter_base`."""
    return 1 if spec.runtime.iter_base else steps_per_epoch


def _steps(place: Trainer | StageSpec, steps_per_epoch: int | None, path: SpecPath, what: str) -> int:
    """The steps of a stage; of epochs of unknown length as if each had one. Raises KD445 where there are none."""
    if place.max_iter is not None:
        return place.max_iter
    epochs = place.max_epoch or 0
    if steps_per_epoch is None:
        return max(1, int(epochs))
    steps = int(epochs * steps_per_epoch)
    if steps <= 0:
        message = f"{what} has no step: `max_epoch` is {epochs:g}, and an epoch has {steps_per_epoch:,}"
        raise SpecError.at((*path, "max_epoch"), "KD445", message, "give it more of an epoch, or `max_iter`")
    return steps


def plan_stages(spec: Spec, steps_per_epoch: int | None) -> tuple[StagePlan, ...]:
    """The stages in the spec, or the single one of a spec without stages.

    steps_per_epoch: None where the number of samples is unknown.
    """
    trainer, mimic = spec.trainer, spec.mimic if spec.distils else None
    whole = ActiveLosses(task_loss=True if mimic is None else mimic.task_loss)
    if mimic is None or not mimic.stages:
        steps = _steps(trainer, steps_per_epoch, ("trainer",), "the training")
        return (
            StagePlan(
                name=None,
                steps=steps,
                active=whole,
                train=None,
                optimizer=trainer.optimizer,
                optimizer_path=("trainer", "optimizer"),
                lr_scheduler=trainer.lr_scheduler,
                lr_path=("trainer", "lr_scheduler"),
            ),
        )
    plans = []
    for index, stage in enumerate(mimic.stages):
        path: SpecPath = ("mimic", "stages", index)
        steps = _steps(stage, steps_per_epoch, path, f"stage `{stage.name}`")
        plans.append(
            StagePlan(
                name=stage.name,
                steps=steps,
                active=ActiveLosses(
                    jobs=None if stage.jobs is None else frozenset(stage.jobs),
                    task_loss=mimic.task_loss if stage.task_loss is None else stage.task_loss,
                ),
                train=stage.train,
                optimizer=stage.optimizer or trainer.optimizer,
                optimizer_path=(*path, "optimizer") if stage.optimizer else ("trainer", "optimizer"),
                lr_scheduler=stage.lr_scheduler or trainer.lr_scheduler,
                lr_path=(*path, "lr_scheduler") if stage.lr_scheduler else ("trainer", "lr_scheduler"),
            )
        )
    return tuple(plans)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name matches one of the patterns."""
    return any(
        re.search(pattern[2:], name) is not None
        if pattern.startswith("r:")
        else name == pattern or name.startswith(pattern.rstrip(".") + ".")
        for pattern in patterns
    )


def train_only(
    trainee: Trainee, plan: StagePlan, trainable: Mapping[str, bool], reach: Mapping[str, frozenset[str]]
) -> list[nn.Parameter]:
    """Freeze all parameters but those that the stage trains and that one of its losses reaches; returns these.

    trainable: of each parameter's name whether it may train at all. reach: of each loss's name the parameters
    that its gradient reaches.
    """
    names = trained_names(trainee, plan, reach)
    parameters = []
    for name, parameter in trainee.named_parameters():
        parameter.requires_grad_(trainable[name] and name in names)
        if parameter.requires_grad:
            parameters.append(parameter)
    return parameters


def active_reach(plan: StagePlan, reach: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """What the losses of a stage reach; reach: as in `train_only`."""
    active = plan.active
    return {
        name: names
        for name, names in reach.items()
        if (
            active.task_loss
            if (job := name.partition(".")[0]) == "task"
            else active.jobs is None or job in active.jobs
        )
    }


def trained_names(trainee: Trainee, plan: StagePlan, reach: Mapping[str, frozenset[str]]) -> set[str]:
    """The parameters that a stage is meant to train and that one of its losses reaches; reach: as in `train_only`."""
    reached = frozenset[str]().union(*active_reach(plan, reach).values())
    return {
        name
        for name, _ in trainee.named_parameters()
        if name in reached
        and (
            plan.train is None
            or not name.startswith("student.")
            or matches(name.removeprefix("student."), plan.train)
        )
    }
