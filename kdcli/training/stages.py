"""The stages of a run: each with its jobs, its steps and what trains in it; most runs have one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from kdcli.distill.trainee import ActiveLosses, Trainee
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.schema import OptimizerSpec, SchedulerSpec, Spec


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


def plan_stages(spec: Spec, steps_per_epoch: int) -> tuple[StagePlan, ...]:
    """The stages in the spec, or the single one of a spec without stages."""
    trainer, mimic = spec.trainer, spec.mimic if spec.distils else None
    whole = ActiveLosses(task_loss=True if mimic is None else mimic.task_loss)
    if mimic is None or not mimic.stages:
        steps = trainer.max_iter or (trainer.max_epoch or 0) * steps_per_epoch
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
        steps = stage.max_iter or (stage.max_epoch or 0) * steps_per_epoch
        if steps <= 0:
            raise SpecError.at(
                path, "KD445", f"stage `{stage.name}` has no length", "give it `max_epoch` or `max_iter`"
            )
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
    reached: set[str] = set()
    for name, names in reach.items():
        job = name.partition(".")[0]
        if plan.active.task_loss if job == "task" else plan.active.jobs is None or job in plan.active.jobs:
            reached |= names
    parameters = []
    for name, parameter in trainee.named_parameters():
        meant = (
            plan.train is None
            or not name.startswith("student.")
            or matches(name.removeprefix("student."), plan.train)
        )
        parameter.requires_grad_(trainable[name] and meant and name in reached)
        if parameter.requires_grad:
            parameters.append(parameter)
    return parameters
