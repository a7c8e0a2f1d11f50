"""Networks joined by the jobs: taps on both sides, mimickers sized from real features, the trainee.

The same code joins the networks of a run and those of the shape check on fake tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdcli.data.facts import DataFacts
from kdcli.distill.adapters import shown
from kdcli.distill.build_terms import compares_classes, read_as_logits
from kdcli.distill.dry_run import restored_state
from kdcli.distill.mimickers import method_of
from kdcli.distill.mimickers.mimicker import MimicContext, Mimicker, Requirements
from kdcli.distill.module_search import find_classifier, find_norm, frozen_copy, maker_of
from kdcli.distill.tap_checks import nearest_map
from kdcli.distill.tap_layouts import whole_path
from kdcli.distill.taps import Taps, View
from kdcli.distill.teacher import NO_LABELS, Labels, Teacher
from kdcli.distill.terms import Term, requirements_of_losses
from kdcli.distill.trainee import Trainee, deployed_student
from kdcli.errors import Findings, KdError, SpecError, SpecPath, first_line
from kdcli.failures import failure, place_of, with_place
from kdcli.losses import loss_of
from kdcli.models.layers import synchronise, synchronises
from kdcli.models.network import SELF, Network, build_network, is_whole
from kdcli.models.weight_files import find_file, stated_classes
from kdcli.models.weight_names import last_layer
from kdcli.models.weights import WeightSource
from kdcli.parallel.settings import compiled_networks
from kdcli.records import Pair
from kdcli.spec.in_memory import learnt_names
from kdcli.spec.places import Places
from kdcli.spec.published import is_published
from kdcli.spec.schema import Job, JobTeacher, LayoutSpec, Spec
from kdcli.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class JoinedJobs:
    """The jobs joined to the networks: the trainee, and of each job its teachers and requirements.

    deployed: what is measured and exported: the student, with another end where a method gives it one.
    """

    trainee: Trainee
    deployed: nn.Module
    jobs: Mapping[str, Job]
    requirements: Mapping[str, Requirements]
    student_view: View
    teacher_views: Mapping[str, View]
    pairs: tuple[Pair, ...]


def jobs_of(spec: Spec) -> dict[str, Job]:
    """The active mimic jobs; none with a `base` runner."""
    return dict(spec.mimic.jobs) if spec.distils and spec.mimic is not None else {}


def teacher_settings(spec: Spec, name: str) -> JobTeacher:
    """One teacher's settings, merged over all jobs; the parser has checked that they agree."""
    parts = [job.teachers[name] for job in jobs_of(spec).values() if name in job.teachers]
    given = {field: getattr(part, field) for part in reversed(parts) for field in part.model_fields_set}
    return parts[0].model_copy(update=given)


def weight_path(spec: Spec, name: str) -> SpecPath:
    """The path in the spec that gives a teacher's weights."""
    users = [job for job, its in jobs_of(spec).items() if name in its.teachers]
    saying = [job for job in users if jobs_of(spec)[job].teachers[name].teacher_weight is not None]
    return ("mimic", "jobs", (saying or users)[0], "teachers", name, "teacher_weight")


def student_source(spec: Spec, places: Places) -> WeightSource | None:
    """What the student's weights start from, `saver.pretrain_model`; None where they are random."""
    saver = spec.saver
    if saver.pretrain_model is None:
        return None
    return WeightSource(
        name=saver.pretrain_model,
        role="start",
        where=("saver", "pretrain_model"),
        key=saver.weight_key,
        by_order=bool(saver.weight_order),
        modules=spec.net,
        places=places,
    )


def teacher_source(spec: Spec, name: str, places: Places) -> WeightSource | None:
    """Where a teacher's weights come from, `teacher_weight`; None where they are random."""
    settings = teacher_settings(spec, name)
    if settings.teacher_weight is None:
        return None
    return WeightSource(
        name=settings.teacher_weight,
        role="teacher",
        where=weight_path(spec, name),
        key=settings.weight_key,
        by_order=bool(settings.weight_order),
        modules=spec.teachers[name],
        places=places,
    )


def weight_sources(spec: Spec, places: Places) -> dict[str, WeightSource]:
    """The weights of `net` and of the teachers that a job uses, by name; not of those with random ones."""
    named = {"net": student_source(spec, places)}
    for job in jobs_of(spec).values():
        named |= {name: teacher_source(spec, name, places) for name in job.teachers if name in spec.teachers}
    return {name: source for name, source in named.items() if source is not None}


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
    names = _class_names(spec, name, settings, places) if files and task.matching is not None else None
    labels = NO_LABELS
    if task.matching is not None and settings.classes is not None:
        path = classes_path(spec, name)
        labels = task.matching.asked(settings.classes, name, names, facts, path, known=files)
    # The names that a library has for ImageNet are seldom those of a data set's folders: they prove nothing.
    elif task.matching is not None and not is_published(str(settings.teacher_weight)):
        labels = task.matching.stated(name, names, facts)
    jobs = [job for job in jobs_of(spec).values() if name in job.teachers]
    labels = replace(labels, taps=read_as_logits(jobs, name), by_class=compares_classes(jobs))
    if labels.by_class and labels.misplaced is not None:
        raise SpecError.at(
            weight_path(spec, name),
            "KD470",
            f"{name} would teach class by class, but {labels.unlike}: {labels.misplaced}",
            f"say beside its mimic_name which of its classes each of the data's is: `{labels.hint}`"
            + (", a number for each `?`" if "?" in (labels.hint or "") else ""),
        )
    if labels.by_class and labels.unlike is not None:
        return replace(
            labels,
            notice=f"{name} teaches class by class, and {labels.unlike}: they are matched by number; `classes` beside "
            "its mimic_name says it otherwise",
        )
    return labels


def classes_path(spec: Spec, name: str) -> SpecPath:
    """The path in the spec of a teacher's `classes`."""
    users = [job for job, its in jobs_of(spec).items() if name in its.teachers]
    users = [job for job in users if jobs_of(spec)[job].teachers[name].classes is not None] or users
    return ("mimic", "jobs", users[0], "teachers", name, "classes")


def _class_names(spec: Spec, name: str, settings: JobTeacher, places: Places) -> tuple[str, ...] | None:
    if settings.teacher_weight is None:
        return learnt_names(name)
    words = settings.classes.values() if isinstance(settings.classes, dict) else settings.classes or ()
    try:
        if not is_published(settings.teacher_weight):
            return stated_classes(find_file(settings.teacher_weight, places))
        if not any(isinstance(word, str) for word in words):
            return None  # its names cost a second of import, and nobody asks for them
        source = teacher_source(spec, name, places)
        card = None if source is None else source.card()
        return None if card is None else card.classes
    except KdError:
        return None  # an error where the weights are read


def with_jobs(spec: Spec, jobs: Mapping[str, Job]) -> Spec:
    """The spec with these of its jobs alone."""
    if spec.mimic is None or jobs.keys() == spec.mimic.jobs.keys():
        return spec
    return spec.model_copy(update={"mimic": spec.mimic.model_copy(update={"jobs": jobs})})


def requirements_of(job: Job) -> Requirements:
    """What a job reads beside its taps."""
    method = method_of(job.mimic_ins_type).load()
    if method.requirements_of.__func__ is Mimicker.requirements_of.__func__:  # type: ignore[attr-defined]
        return requirements_of_losses(method.losses_of(job))
    requirements: Requirements = method.requirements_of(job)
    return requirements


def unread_of(spec: Spec, name: str, net: nn.Module) -> frozenset[str]:
    """What of a teacher no job reads, as `Network.unread` has it.

    An output that a job asks for may be made by any module, but for proposals: these come from the last one that
    is called so.
    """
    modules = [module for module in spec.teachers[name] if module.type != SELF]
    names = [module.name for module in modules]
    last, whole = last_layer(net), isinstance(net, Network) and is_whole(net)
    read = -1
    for job in jobs_of(spec).values():
        if name not in job.teachers:
            continue
        needs = requirements_of(job)
        rpn = max((i for i, module in enumerate(modules) if module.type == "rpn_post"), default=len(names))
        outputs = [rpn if output == "rpn_dt_bboxes" else len(names) for output in needs.teacher_outputs]
        if "teacher_classifier" in needs.facts:
            outputs.append(len(names))
        taps = [whole_path(net, re.split(r"[:\[]", tap)[0]) for tap in job.teachers[name].mimic_name]
        if whole and (outputs or any(f"{last}.".startswith(f"{tap}.") or tap == "logits" for tap in taps)):
            return frozenset()
        # An option may name a layer, such as the one that pools proposals.
        layers = [
            *taps,
            *(value for value in job.options.values() if isinstance(value, str) and "." in value),
        ]
        at = [names.index(part) for layer in layers if (part := layer.partition(".")[0]) in names]
        outputs += [len(names)] * sum(tap.partition(".")[0] not in names for tap in taps)
        read = max((read, *outputs, *at))
    return frozenset(filter(None, [last])) if whole else frozenset(names[read + 1 :])


def teacher_network(spec: Spec, name: str, plugins: tuple[str, ...]) -> Network:
    """A teacher with random weights; it knows what of it no job reads."""
    path: SpecPath = ("teachers", name)
    net = build_network(spec.teachers[name], path=path, plugins=plugins, aligned=spec.runtime.aligned)
    net.unread = unread_of(spec, name, net)
    return net


def teacher_taps(
    spec: Spec, nets: Mapping[str, nn.Module], findings: Findings | None = None
) -> dict[str, Taps]:
    """The taps of every teacher that a job uses, over all jobs; findings: as Taps takes them."""
    taps = {}
    for name, net in nets.items():
        paths: dict[str, SpecPath] = {}
        outputs: frozenset[str] = frozenset()
        for job_name, job in jobs_of(spec).items():
            if name not in job.teachers:
                continue
            path = ("mimic", "jobs", job_name, "teachers", name, "mimic_name")
            for index, tap in enumerate(job.teachers[name].mimic_name):
                paths.setdefault(tap, (*path, index))
            outputs |= requirements_of(job).teacher_outputs
        taps[name] = Taps(net, paths, outputs, paths, findings, stated_layouts(spec, name))
    return taps


def student_taps(spec: Spec, student: nn.Module, findings: Findings | None = None) -> Taps | None:
    """The taps of the student over all jobs; None without jobs. findings: as Taps takes them."""
    jobs = jobs_of(spec)
    if not jobs:
        return None
    paths: dict[str, SpecPath] = {}
    for job_name, job in jobs.items():
        path = ("mimic", "jobs", job_name, "student", "mimic_name")
        for index, tap in enumerate(job.student.mimic_name):
            paths.setdefault(tap, (*path, index))
    return Taps(student, paths, None, paths, findings, stated_layouts(spec, None))


def stated_layouts(spec: Spec, teacher: str | None) -> dict[str, LayoutSpec]:
    """What the jobs say of the layout of a teacher's taps, or of the student's (None), by tap.

    `layout` beside the `mimic_name` counts before that of the job; of several jobs the first one that says it.
    """
    stated: dict[str, LayoutSpec] = {}
    for job in jobs_of(spec).values():
        side = job.student if teacher is None else job.teachers.get(teacher)
        layout = None if side is None else side.layout or job.layout
        if side is not None and layout is not None:
            stated = {**dict.fromkeys(side.mimic_name, layout), **stated}
    return stated


def join_jobs(
    spec: Spec,
    student: nn.Module,
    teachers: Mapping[str, Teacher],
    sample: Mapping[str, Any],
    facts: DataFacts,
    stack: ExitStack,
    sample_labels: NDArray[np.int64] | None,
    *,
    before_layouts: bool = False,
) -> JoinedJobs:
    """Run every network once on the sample, then build the mimickers from what it gave.

    sample: a small batch of training data. The hooks stay until the stack is closed. The others: see MimicContext.
    """
    taps = student_taps(spec, student)
    if taps is None and compiled_networks(spec.runtime) in (True, "student"):
        taps = Taps(student, ())
    views = {name: show_teacher(teacher, sample, stack) for name, teacher in teachers.items()}
    student_view = View({}) if taps is None else show_student(taps, sample, stack)
    return join_views(
        spec,
        student,
        taps,
        teachers,
        student_view,
        views,
        sample,
        facts,
        sample_labels,
        before_layouts=before_layouts,
    )


def _require_no_count(spec: Spec, facts: DataFacts) -> None:
    """Raise SpecError KD544 for a loss that needs to know the samples."""
    why = (
        "does not say how many there are"
        if facts.identified
        else "comes in batches that don't say which ones"
    )
    for name, job in jobs_of(spec).items():
        for key, loss in job.losses.items():
            if "num_samples" in signature(loss_of(loss.type).load()).parameters:
                what = f"`{loss.type}` keeps something of every sample, and this data {why}"
                help = "give the Dataset (a source of batches says `num_samples`), or take another loss"
                raise SpecError.at(("mimic", "jobs", name, "losses", key), "KD544", what, help)


def show_teacher(teacher: Teacher, sample: Mapping[str, Any], stack: ExitStack) -> View:
    """A teacher's view on the sample, its whole network run; its hooks stay until the stack is closed."""
    stack.enter_context(teacher.taps)
    return teacher.learn(sample)


def show_student(taps: Taps, sample: Mapping[str, Any], stack: ExitStack, *, gradients: bool = False) -> View:
    """The student's view on the sample; its hooks stay until the stack is closed."""
    stack.enter_context(taps)
    with restored_state(taps.net):
        return taps.learn(sample, gradients=gradients)


def join_views(
    spec: Spec,
    student: nn.Module,
    taps: Taps | None,
    teachers: Mapping[str, Teacher],
    student_view: View,
    views: Mapping[str, View],
    sample: Mapping[str, Any],
    facts: DataFacts,
    sample_labels: NDArray[np.int64] | None,
    *,
    before_layouts: bool = False,
) -> JoinedJobs:
    """Build every job's mimicker from the networks' views; raises all that is wrong with the jobs."""
    if facts.num_samples is None or not facts.identified:
        _require_no_count(spec, facts)
    jobs = jobs_of(spec)
    wrong = Findings()
    mimickers: dict[str, Mimicker] = {}
    for name, job in jobs.items():
        path: SpecPath = ("mimic", "jobs", name)
        context = MimicContext(
            job=job,
            name=name,
            path=path,
            student=student_view,
            teachers={teacher: views[teacher] for teacher in job.teachers},
            num_samples=facts.num_samples or len(sample["image"]),
            num_classes=facts.num_classes or 0,
            sample_labels=sample_labels,
            teacher_classifier=lambda t: teachers[t].labels.classifier(
                frozen_copy(find_classifier(teachers[t].net, teachers[t].pixels_of(sample)))
            ),
            teacher_norm=lambda t, tap: frozen_copy(
                find_norm(teachers[t].net, teachers[t].pixels_of(sample), tap)
            ),
            teacher_module=lambda t, p: teachers[t].net.get_submodule(p),
            student_module=student.get_submodule,
            maker=lambda t, tap, kinds: maker_of(
                student if t is None else teachers[t].net,
                sample if t is None else teachers[t].pixels_of(sample),
                tap,
                kinds,
            ),
            labels={teacher: teachers[teacher].labels for teacher in job.teachers},
            nearest_map=lambda t, tap: nearest_map(
                student if t is None else teachers[t].net,
                sample if t is None else teachers[t].pixels_of(sample),
                tap,
            ),
            before_layouts=before_layouts,
        )
        with wrong.part():
            mimickers[name] = build_mimicker(context)
    wrong.raise_errors()
    if synchronises(student):
        for mimicker in mimickers.values():
            synchronise(mimicker, but=[student, *(teacher.net for teacher in teachers.values())])
    trainee = Trainee(student, taps, jobs, mimickers)
    return JoinedJobs(
        trainee=trainee,
        deployed=deployed_student(student, mimickers, spec.mimic),
        jobs=jobs,
        requirements={name: requirements_of(job) for name, job in jobs.items()},
        student_view=student_view,
        teacher_views=views,
        pairs=tuple(
            row for name, mimicker in mimickers.items() for row in rows_of(name, jobs[name], mimicker)
        ),
    )


def build_mimicker(context: MimicContext) -> Mimicker:
    """Build one job's mimic method; errors of its losses point at the job."""
    method = method_of(context.job.mimic_ins_type).load()
    try:
        mimicker = method(context)
    except KdError as error:
        placed = [d if d.path is not None else replace(d, path=context.path) for d in error.diagnostics]
        raise SpecError(placed) from error
    except Exception as error:
        if failure(error, running=True) is None and not isinstance(
            error, (ValueError, TypeError, RuntimeError)
        ):
            raise
        reason = f"{first_line(error)}{place_of(error)}" if type(error) is ValueError else with_place(error)
        raise SpecError.at(context.path, "KD435", f"job `{context.name}` can't be built: {reason}") from error
    assert isinstance(mimicker, Mimicker)
    return mimicker


def made_up_labels(facts: DataFacts) -> NDArray[np.int64]:
    """Labels of all training samples where networks are joined and nothing is drawn by class."""
    return np.arange(facts.num_samples or 2, dtype=np.int64) % 2


def rows_of(name: str, job: Job, mimicker: Mimicker) -> list[Pair]:
    """The rows of the plan's table for one job: which layer mimics which."""
    return [
        Pair(
            term=".".join(part for part in (name, term.teacher, term.name) if part),
            student_layer=pair.student.label,
            student_shape=shown(pair.student.shape),
            adapter=term.adapter_shown(index),
            teacher=term.teacher or "",
            teacher_layer=term.teacher_shown(index),
            teacher_shape=shown(pair.teacher.shape) if pair.teacher is not None else "",
            loss=term.loss_type,
            weight=job.loss_weight * term.loss_weight,
        )
        for term in mimicker.modules()
        if isinstance(term, Term)
        for index, pair in enumerate(term.pairs)
    ]


def require(
    joined: JoinedJobs, teachers: Mapping[str, Teacher], jobs: frozenset[str] | None, task_loss: bool
) -> list[str]:
    """Limit every network to the layers that these jobs need; returns the teachers that must run.

    A network then stops after the deepest layer that is needed; a student whose task loss counts runs
    to its end.
    """
    active = [name for name in joined.jobs if jobs is None or name in jobs]
    taps = joined.trainee.taps
    if taps is not None:
        names = {tap for name in active for tap in joined.jobs[name].student.mimic_name}
        outputs = {output for name in active for output in joined.requirements[name].student_outputs}
        taps.require(names, None if task_loss else outputs)
    running = []
    for teacher_name, teacher in teachers.items():
        users = [name for name in active if teacher_name in joined.jobs[name].teachers]
        if users:
            running.append(teacher_name)
            teacher.taps.require(
                {tap for name in users for tap in joined.jobs[name].teachers[teacher_name].mimic_name},
                {output for name in users for output in joined.requirements[name].teacher_outputs},
            )
    return running


def first_samples(batch: Mapping[str, Any], most: int = 2) -> dict[str, Any]:
    """The first samples of a batch."""
    return {
        name: value[:most] if isinstance(value, (torch.Tensor, list, tuple)) else value
        for name, value in batch.items()
    }
