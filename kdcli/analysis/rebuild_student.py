"""The deployed student rebuilt from its spec: what `eval` measures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from kdcli.data.facts import DataFacts
from kdcli.distill.teacher import Teacher
from kdcli.distill.trainee import DeployedStudent, Trainee
from kdcli.losses import loss_of
from kdcli.models.network import Network
from kdcli.spec.schema import Spec
from kdcli.tasks.task import Task
from kdcli.training.build import build_student, build_teachers, pixel_change, teacher_settings
from kdcli.training.run import RunOptions
from kdcli.training.teacher_labels import labels_of
from kdcli.training.wiring import jobs_of, teacher_taps, wire


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
        pixels = pixel_change(name, settings, spec, facts)
        # The shapes alone matter: which classes they were is in the student's file.
        labels = labels_of(task, spec, name, settings, facts, options.places, files=False)
        teachers[name] = Teacher(name, taps, pixels=pixels, labels=labels)
    with ExitStack() as stack:
        wiring = wire(spec, student, teachers, sample, facts, stack, epochs=1)
    assert isinstance(wiring.deployed, (Network, DeployedStudent))
    return wiring.deployed, wiring.trainee


def deployed_state(
    deployed: Network | DeployedStudent, trainee: Trainee, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The part of a checkpoint's `trainee` state that belongs to the deployed student, under its names there."""
    names = {id(tensor): name for name, tensor in deployed.state_dict(keep_vars=True).items()}
    mine = trainee.state_dict(keep_vars=True).items()
    return {names[id(t)]: state[name] for name, t in mine if id(t) in names and name in state}
