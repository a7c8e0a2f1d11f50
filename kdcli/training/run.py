"""A built run: everything `train` needs, made by build.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdcli.data.digest import Digest
from kdcli.data.facts import DataFacts
from kdcli.data.loaders import Loader
from kdcli.distill.teacher import Teacher, ViewSource
from kdcli.distill.trainee import DeployedStudent, Trainee
from kdcli.models.network import Network
from kdcli.parallel.distributed import Processes
from kdcli.records import NetworkFacts, Notice, Pair
from kdcli.spec.parse import ParsedSpec
from kdcli.spec.places import HERE, Places
from kdcli.spec.schema import Spec
from kdcli.tasks.task import Task
from kdcli.training.ema import MovingAverage
from kdcli.training.run_folder import RunFolder
from kdcli.training.stages import StagePlan
from kdcli.training.wiring import JoinedJobs


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line says beside the spec.

    resume: continue from the newest valid checkpoint, or from this one. allow_changed: keys that may
    differ from the checkpoint's spec, and what else may (`data`, `teachers.teacher0`, `world_size`).
    plugins: packages that may be imported. places: where the spec's files are looked up. restarted: the
    launcher has started the processes again after one died. again: the command that continues the run, for
    the user to read. profile: look at so many steps, and train no further. prove: prove the spec before the
    start. proof: of what that is done, and its warnings told (kdcli.check.proof).
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


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that this run may continue from, and notices about it."""

    path: Path
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is built and not yet started.

    sources: where each teacher's views come from in training: itself, or its cache. allowed_weak_teachers: teachers
    that may be near chance. digests: of the data, by side; empty on processes that don't speak. found: the
    checkpoint to continue from.
    """

    name: str
    parsed: ParsedSpec
    options: RunOptions
    processes: Processes
    folder: RunFolder
    task: Task
    facts: DataFacts
    train_loader: Loader
    test_loader: Loader
    wiring: JoinedJobs
    teachers: Mapping[str, Teacher]
    sources: Mapping[str, ViewSource]
    teacher_hashes: Mapping[str, str]
    allowed_weak_teachers: frozenset[str]
    stages: tuple[StagePlan, ...]
    ema: MovingAverage | None
    precision: str
    autocast: torch.autocast | None
    scaler: torch.amp.GradScaler | None
    digests: Mapping[str, Digest] = field(default_factory=dict)
    found: Found | None = None
    networks: tuple[NetworkFacts, ...] = ()
    pairs: tuple[Pair, ...] = ()
    notices: tuple[str, ...] = field(default=())

    @property
    def spec(self) -> Spec:
        """The spec as parsed."""
        return self.parsed.spec

    @property
    def trainee(self) -> Trainee:
        """The module of everything that trains: student, adapters, losses with parameters."""
        return self.wiring.trainee

    @property
    def student(self) -> Network:
        """The student network."""
        assert isinstance(self.trainee.student, Network)
        return self.trainee.student

    @property
    def deployed(self) -> Network | DeployedStudent:
        """The network that is measured and exported: the student, with another end where a method gives it one."""
        assert isinstance(self.wiring.deployed, (Network, DeployedStudent))
        return self.wiring.deployed

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step."""
        return self.spec.trainer.accumulate_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""
        return -(-len(self.train_loader) // self.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)
