"""Warnings about what is allowed and seldom meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from kdcli.errors import Diagnostic, SpecPath, did_you_mean
from kdcli.spec.schema import Job, SchedulerSpec, Spec
from kdcli.spec.tables import LossTable

_PLACEHOLDER = re.compile(
    r"(^|[/_.\-])x{3,}($|[/_.\-])|path[/_]to|pretrain_path|your[/_\-]|^/path\b|<[^>]*>|\.\.\.|\b(?:todo|fixme)\b",
    re.IGNORECASE,
)
_LOGITS = ("classifier", "fc", "logits")
_RESNET = re.compile(r"resnet(?:18|34|50|101|152|_custom)")


def check_cautions(spec: Spec, losses: LossTable, hooks: Collection[str]) -> Iterator[Diagnostic]:
    """Every warning that needs no torch, with its path."""
    yield from _teachers(spec)
    yield from _logits(spec, losses)
    yield from _schedule(spec)
    yield from _placeholders(spec)
    yield from _frozen_norms(spec)
    yield from _scaled_lr(spec)
    yield from _untrained_starts(spec, losses)
    for index, hook in enumerate(spec.hooks):
        if hook.type not in hooks:
            message = f"kdcli has no hook `{hook.type}`: it is not run"
            yield _warning(("hooks", index, "type"), "KD612", message, did_you_mean(hook.type, list(hooks)))


def _warning(
    path: SpecPath, code: str, message: str, help: str | None = None, on_key: bool = False
) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path, on_key=on_key, severity="warning")


def _teachers(spec: Spec) -> Iterator[Diagnostic]:
    if spec.mimic is None or not spec.distils:
        return
    used = {name for job in spec.mimic.jobs.values() for name in job.teachers}
    for name in spec.teachers:
        if name not in used:
            help = "name it in a job under `mimic`, or delete it"
            yield _warning(("teachers", name), "KD605", f"no job uses `{name}`: it is not built", help, True)


def _logits(spec: Spec, losses: LossTable) -> Iterator[Diagnostic]:
    if spec.mimic is None or not spec.distils:
        return
    for name, job in spec.mimic.jobs.items():
        layers = [*job.student.mimic_name, *(n for t in job.teachers.values() for n in t.mimic_name)]
        on_logits = next((layer for layer in layers if _is_logits(layer)), None)
        if on_logits is None:
            continue
        for key, loss in job.losses.items():
            if loss.type in losses and losses[loss.type].rectifies:
                message = f"{loss.type} takes the ReLU of `{on_logits}`: negative logits are lost"
                path = ("mimic", "jobs", name, "losses", key, "type")
                yield _warning(path, "KD606", message, "kd_loss with `T` is mostly meant")


def _is_logits(layer: str) -> bool:
    return layer.split(":")[0].split("[")[0].split(".")[-1] in _LOGITS


def _schedule(spec: Spec) -> Iterator[Diagnostic]:
    trainer = spec.trainer
    places: list[tuple[SpecPath, Any]] = [(("trainer",), trainer)]
    if spec.mimic is not None and spec.distils and spec.mimic.stages:
        places = [(("mimic", "stages", i), stage) for i, stage in enumerate(spec.mimic.stages)]
    for path, place in places:
        scheduler: SchedulerSpec | None = place.lr_scheduler
        if scheduler is None:
            continue
        where = (*path, "lr_scheduler")
        yield from _shifted(scheduler, where)
        if place.max_epoch is not None and place.max_iter is None:
            milestones = scheduler.kwargs.get("milestones")
            for index, milestone in enumerate(milestones if isinstance(milestones, list) else ()):
                if isinstance(milestone, (int, float)) and milestone >= place.max_epoch:
                    message = f"milestone {milestone} is past the end: training has {place.max_epoch} epochs"
                    yield _warning((*where, "kwargs", "milestones", index), "KD607", message)
        if place.max_iter is not None and scheduler.warmup_iter >= place.max_iter:
            message = f"the warm-up takes {scheduler.warmup_iter} iterations, the training {place.max_iter}"
            yield _warning((*where, "warmup_iter"), "KD608", message, "lower `warmup_iter`")
    if spec.mimic is None or not spec.distils or spec.mimic.stages or trainer.max_iter is None:
        return
    for name, job in spec.mimic.jobs.items():
        if job.start_iter + job.warm_up_iters >= trainer.max_iter:
            message = f"the job's warm-up ends after the training of {trainer.max_iter} iterations"
            path = ("mimic", "jobs", name, "warm_up_iters")
            yield _warning(path, "KD608", message, "lower `warm_up_iters`")


def _shifted(scheduler: SchedulerSpec, where: SpecPath) -> Iterator[Diagnostic]:
    """Warn of `warmup_iter` in a cosine's kwargs: it delays the cosine and is no warm-up."""
    shift = scheduler.kwargs.get("warmup_iter")
    if scheduler.type != "CosineAnnealingLR" or not isinstance(shift, int) or shift <= scheduler.warmup_iter:
        return
    warm = f"the warm-up ends at {scheduler.warmup_iter}" if scheduler.warmup_iter else "there is no warm-up"
    message = f"`warmup_iter` in `kwargs` is no warm-up: it begins the cosine at step {shift}, and {warm}"
    help = f"for a warm-up write `warmup_iter: {shift}` beside `kwargs` too"
    yield _warning((*where, "kwargs", "warmup_iter"), "KD603", message, help)


def _placeholders(spec: Spec) -> Iterator[Diagnostic]:
    paths: list[tuple[SpecPath, str | None]] = [
        (("saver", key), getattr(spec.saver, key)) for key in ("pretrain_model", "resume_model")
    ]
    if spec.mimic is not None and spec.distils:
        paths += [
            (("mimic", "jobs", name, "teachers", teacher, "teacher_weight"), part.teacher_weight)
            for name, job in spec.mimic.jobs.items()
            for teacher, part in job.teachers.items()
        ]
    for path, value in paths:
        if value is not None and _PLACEHOLDER.search(value):
            message = f"`{value}` looks like a place to be filled in"
            help = "write the real path, or delete the line" if path[0] == "saver" else "write the real path"
            yield _warning(path, "KD609", message, help)


def _frozen_norms(spec: Spec) -> Iterator[Diagnostic]:
    if spec.saver.pretrain_model is not None or spec.saver.resume_model is not None:
        return
    for index, module in enumerate(spec.net):
        normalize = module.kwargs.get("normalize")
        kind = normalize.get("type", "freeze_bn") if isinstance(normalize, dict) else None
        by_default = normalize is None and _RESNET.fullmatch(module.type) is not None
        if kind != "freeze_bn" and not by_default:
            continue
        path: SpecPath = ("net", index, "type")
        if isinstance(normalize, dict):
            path = ("net", index, "kwargs", "normalize", *(("type",) if "type" in normalize else ()))
        message = "freeze_bn keeps the statistics of pretrained weights, but there are none"
        if by_default:
            message = f"`{module.type}` has freeze_bn by default, which needs pretrained weights"
        help = "say `normalize: {type: solo_bn}`, or give `saver.pretrain_model`"
        yield _warning(path, "KD610", message, help)


def _scaled_lr(spec: Spec) -> Iterator[Diagnostic]:
    scheduler = spec.trainer.lr_scheduler
    lr = spec.trainer.optimizer.kwargs.get("lr")
    if scheduler is None or scheduler.warmup_register_type == "no_scale_lr" or scheduler.warmup_iter > 0:
        return
    size = spec.dataset.train.batch_sampler.kwargs.batch_size
    if isinstance(lr, (int, float)) and size >= 10:
        message = f"lr {lr} is scaled by the batch size to {lr * size:g} on one process, without warm-up"
        help = "give `warmup_iter`, or `warmup_register_type: no_scale_lr` to use `lr` as written"
        yield _warning(("trainer", "optimizer", "kwargs", "lr"), "KD611", message, help)


def _untrained_starts(spec: Spec, losses: LossTable) -> Iterator[Diagnostic]:
    """A loss that starts from what another trains (`ft`), and no earlier stage has that on the same layer."""
    if spec.mimic is None or not spec.distils:
        return
    jobs = spec.mimic.jobs
    trained: dict[str, set[tuple[str, str]]] = {}
    told: set[str] = set()
    for stage in spec.mimic.stages or (None,):
        active = [name for name in jobs if stage is None or stage.jobs is None or name in stage.jobs]
        for name in active:
            for key, loss in jobs[name].losses.items():
                before = losses[loss.type].takes_over if loss.type in losses else None
                if before is None or name in told:
                    continue
                if not _teacher_layers(jobs[name]) <= trained.get(before, set()):
                    told.add(name)
                    message = (
                        f"`{loss.type}` starts from what `{before}` trains, and nothing has trained that"
                    )
                    help = f"let a stage with `{before}` on the same layer of the teacher come first"
                    yield _warning(("mimic", "jobs", name, "losses", key, "type"), "KD616", message, help)
        for name in active:
            for loss in jobs[name].losses.values():
                trained.setdefault(loss.type, set()).update(_teacher_layers(jobs[name]))


def _teacher_layers(job: Job) -> set[tuple[str, str]]:
    return {(name, layer) for name, teacher in job.teachers.items() for layer in teacher.mimic_name}
