"""What `inspect-features --pairs` proposes: a loss for the pairs that fit, by what was measured, and its weight."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import yaml

from kdcli.analysis.pairs import FittingPair
from kdcli.disk import exists
from kdcli.distill.terms import binding_of
from kdcli.errors import KdError
from kdcli.losses import loss_of
from kdcli.parallel.distributed import Processes
from kdcli.spec.networks import ParsedNetworks
from kdcli.spec.parse import ParsedSpec, parse
from kdcli.spec.places import files_named
from kdcli.spec.schema import DataPart, JobTeacher, Mimic
from kdcli.spec.text.overrides import parse_assignment
from kdcli.training.build import built
from kdcli.training.guard import prove_losses
from kdcli.training.run import RunOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A loss for features, where it is proposed, and what it has shown there.

    task, labels, kind: of what data and features it is for: a task's name, whether the task's loss trains too, `map` or
    `tokens`; None for any. last: for the last pair of layers alone.
    """

    loss: str
    evidence: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    last: bool = False
    task: str | None = None
    labels: bool | None = None
    kind: str | None = None


PROPOSALS = (
    Proposal(
        task="detection",
        loss="l2_loss",
        kwargs={"feat_norm": True, "batch_mean": True},
        evidence="on scenes of garments 45.4 AP, pkd 44.4, the student alone 41.1",
    ),
    Proposal(
        labels=False,
        loss="itrd",
        last=True,
        evidence="without labels, on composed photographs, a linear probe on unseen objects scores 27.2 %, by l2_loss "
        "18.8 to 20.8 %, of a random network 17.3 %; more with the pooled vector too: kdcli init foundation",
    ),
    Proposal(
        loss="itrd",
        last=True,
        evidence="on Fashion-MNIST, 200 steps, 72.0 % top-1, by l2_loss 65.2 %, the student alone 65.6 %",
    ),
)
"""By task, labels and kind of feature, the first that fits is proposed: one line to change as more is measured."""


def proposal(task: str, labels: bool, kind: str) -> Proposal:
    """The loss that is proposed for features of this kind (`map`, `tokens`)."""
    return next(
        one
        for one in PROPOSALS
        if one.task in (None, task) and one.labels in (None, labels) and one.kind in (None, kind)
    )


def proposals_for(
    pairs: Mapping[str, Sequence[FittingPair]], task: str = "classification", labels: bool = True
) -> dict[str, tuple[Proposal, list[FittingPair]]]:
    """For each teacher with pairs the proposed loss, and those pairs that it is for."""
    found = {}
    for teacher, fitting in pairs.items():
        kinds = {
            layout.kind for pair in fitting for layout in (pair.student.layouts[0], pair.teacher.layouts[0])
        }
        one = proposal(task, labels, "map" if "map" in kinds else "tokens")
        if fitting:
            found[teacher] = one, list(fitting[-1:] if one.last else fitting)
    return found


def trains_task(train: DataPart | None, mimic: Mimic | None) -> bool:
    """Whether the task's own loss trains beside the distillation: not where the data has no labels."""
    unlabelled = train is not None and (train.dataset.kwargs.model_extra or {}).get("labels") == "none"
    return not unlabelled and (mimic is None or mimic.task_loss)


def mimic_block(
    proposals: Mapping[str, tuple[Proposal, Sequence[FittingPair]]],
    settings: Mapping[str, JobTeacher] | None = None,
    weights: Mapping[str, float] | None = None,
) -> str:
    """The YAML of `mimic` for these pairs, a job a teacher.

    settings: what the spec says of a teacher already; else its weights are named `<teacher>.safetensors`. weights: by
    teacher, the `loss_weight` that gives a pull of 1; where it isn't known the loss's own.
    """
    lines = ["mimic:"]
    several = len(proposals) > 1
    if several:
        lines.append("  mimic_as_jobs: true")
    for index, (teacher, (one, found)) in enumerate(proposals.items()):
        margin = "  "
        if several:
            lines.append(f"  mimic_job{index}:")
            margin = "    "
        told = (settings or {}).get(teacher)
        files = [f"teacher_weight: {teacher}.safetensors"]
        if told is not None:
            files = [f"teacher_weight: {told.teacher_weight}"] if told.teacher_weight is not None else []
            files += ["allow_random: true"] if told.allow_random else []
            files += ["allow_weak_teacher: true"] if told.allow_weak_teacher else []
        record = loss_of(one.loss)
        weight = (weights or {}).get(teacher, record.weight)
        kwargs = json.dumps({**one.kwargs, "loss_weight": weight}).replace('"', "")
        adapts = not (record.unlike_shapes or binding_of(record).sizes_itself)
        job = [
            "mimic_ins_type: base",
            *(["adapter: auto"] if adapts and any(pair.adapter for pair in found) else []),
            "cfgs:",
            f"  # {one.evidence}",
            f"  loss: {{type: {one.loss}, kwargs: {kwargs}}}",
            f"{teacher}:",
            f"  mimic_name: [{', '.join(pair.teacher.path for pair in found)}]",
            *(f"  {line}" for line in files),
            "student:",
            f"  mimic_name: [{', '.join(pair.student.path for pair in found)}]",
        ]
        lines += [margin + line for line in job]
    return "\n".join(lines) + "\n"


MEASURED_ON = 32
"""Images of the batch that pulls are measured on, at most: to inspect is meant to be quick."""


def even_weights(
    parsed: ParsedNetworks, changes: Sequence[str], block: str, plugins: tuple[str, ...] = ()
) -> dict[str, float]:
    """By teacher, the `loss_weight` in `kwargs` with which the loss of a block pulls as hard as the task's loss.

    parsed: a whole spec; changes: its arguments. block: as `mimic_block` gives it. Measured before a first step, as
    `train` does it, on one batch of the spec's data. Raises KdError where the spec isn't whole, or where its data or
    weights aren't there.
    """
    proposed = yaml.safe_load(block)["mimic"]
    for teacher, file in _weights_written(parsed, changes).items():
        if teacher in proposed:
            proposed[teacher]["teacher_weight"] = file
    mimic = json.dumps(proposed)
    with tempfile.TemporaryDirectory() as folder:
        own = [*changes, f"mimic={mimic}", f"saver.save_dir={folder}/run", "runtime.runner.type=kd"]
        spec = of_few_images(whole_spec(parsed, own))
        options = RunOptions(plugins=plugins, places=spec.places, device="cpu")
        with built(spec, options, Processes(device=torch.device("cpu"))) as run:
            found = prove_losses(run)
    weights = {}
    for name, even in found.even_weights.items():
        job = spec.spec.mimic.jobs[name.partition(".")[0]] if spec.spec.mimic is not None else None
        assert job is not None
        (teacher,), (loss,) = job.teachers, job.losses.values()
        weights[teacher] = float(f"{even * loss.kwargs['loss_weight'] / job.loss_weight:.2g}")
    return weights


def _weights_written(parsed: ParsedNetworks, changes: Sequence[str]) -> dict[str, str]:
    """By teacher, the file of its weights where the spec's own `mimic` names one, as it lies beside the spec.

    An argument's files, and so those of a proposed block, are looked up in the working directory alone.
    """
    try:
        spec = whole_spec(parsed, changes)
    except KdError:
        return {}
    return {
        str(path[-2]): str(spec.places.find(name, path).absolute())
        for path, name in files_named(spec.spec)
        if path[-1] == "teacher_weight" and exists(spec.places.find(name, path))
    }


def whole_spec(parsed: ParsedNetworks, changes: Sequence[str]) -> ParsedSpec:
    """The text as a whole spec with these arguments; raises KdError where it is none."""
    overrides = [parse_assignment(one, number) for number, one in enumerate(changes, 1)]
    return parse(parsed.text, parsed.source, overrides=overrides, base_dir=parsed.base_dir)


def of_few_images(parsed: ParsedSpec) -> ParsedSpec:
    """The spec with batches of at most MEASURED_ON training images."""
    train = parsed.spec.dataset.train
    sampler = train.batch_sampler.kwargs
    few = sampler.model_copy(update={"batch_size": min(MEASURED_ON, sampler.batch_size)})
    train = train.model_copy(update={"batch_sampler": train.batch_sampler.model_copy(update={"kwargs": few})})
    dataset = parsed.spec.dataset.model_copy(update={"train": train})
    return replace(parsed, spec=parsed.spec.model_copy(update={"dataset": dataset}))
