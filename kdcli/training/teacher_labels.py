"""What is known of each teacher's classes, and which teachers can be scored on the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kdcli.data.facts import DataFacts, describe
from kdcli.distill.teacher import NO_LABELS, Labels
from kdcli.errors import KdError, SpecPath
from kdcli.losses import loss_of
from kdcli.models.weight_files import find_file, stated_classes
from kdcli.spec.places import TORCHVISION, Places
from kdcli.spec.schema import JobTeacher, Spec
from kdcli.tasks.task import Matching, Task
from kdcli.training.sides import Sides
from kdcli.training.wiring import jobs_of


def labels_of(
    task: Task,
    spec: Spec,
    name: str,
    settings: JobTeacher,
    facts: DataFacts,
    places: Places,
    *,
    files: bool = True,
) -> Labels:
    """The labels of one teacher. settings: the jobs' for it; files: whether its file may be read.

    Raises SpecError KD471, KD472.
    """
    names = _names(settings, places) if files and task.matching is not None else None
    labels = NO_LABELS
    if task.matching is not None and settings.classes is not None:
        path = classes_path(spec, name)
        labels = task.matching.asked(settings.classes, name, names, facts, path, known=files)
    # torchvision's names for ImageNet are seldom those of a data set's folders: they prove nothing.
    elif task.matching is not None and not str(settings.teacher_weight).startswith(TORCHVISION):
        labels = task.matching.stated(name, names, facts)
    return replace(labels, taps=_read_as_logits(spec, name))


def _read_as_logits(spec: Spec, name: str) -> frozenset[str]:
    """The teacher's taps that a loss on logits reads."""
    jobs = [job for job in jobs_of(spec).values() if name in job.teachers]
    on_logits = [
        job for job in jobs if any(loss_of(loss.type).kind == "logit" for loss in job.losses.values())
    ]
    return frozenset(tap for job in on_logits for tap in job.teachers[name].mimic_name)


def learnt_classes(sides: Sides, test: DataFacts) -> DataFacts:
    """The test data's facts with as many classes as training has: a list without names may lack the last ones."""
    if test.class_names is not None:
        return test
    try:
        learnt = sides.train.facts.num_classes
    except KdError:  # measured elsewhere than it was trained
        learnt = describe(sides.spec.dataset.train).num_classes
    return test if learnt is None else replace(test, num_classes=learnt)


def classes_path(spec: Spec, name: str) -> SpecPath:
    """The path in the spec of a teacher's `classes`."""
    said = [job for job, its in jobs_of(spec).items() if name in its.teachers]
    said = [job for job in said if jobs_of(spec)[job].teachers[name].classes is not None] or said
    return ("mimic", "jobs", said[0], "teachers", name, "classes")


def _names(settings: JobTeacher, places: Places) -> tuple[str, ...] | None:
    if settings.teacher_weight is None:
        return None
    words = settings.classes.values() if isinstance(settings.classes, dict) else settings.classes or ()
    if settings.teacher_weight.startswith(TORCHVISION) and not any(isinstance(word, str) for word in words):
        return None  # its names cost a second of import, and nobody asks for them
    try:
        return stated_classes(find_file(settings.teacher_weight, places))
    except KdError:
        return None  # told where the weights are read


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
