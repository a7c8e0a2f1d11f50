"""Warnings of what is allowed in a spec and seldom meant."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from kdcli.disk import shown_path
from kdcli.errors import Diagnostic, SpecPath, did_you_mean
from kdcli.spec.schema import DataPart, Job, OptimizerSpec, SchedulerSpec, Spec
from kdcli.spec.tables import ADAPTIVE, SAME_OPTIMIZERS, SETS_LR, LossTable

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
    yield from _zero_weights(spec)
    yield from _steps_of_optimizers(spec)
    yield from _placeholders(spec)
    yield from _frozen_norms(spec)
    yield from _scaled_lr(spec)
    yield from _untrained_starts(spec, losses)
    yield from _pixel_scales(spec)
    yield from _unlike_pixels(spec)
    yield from _same_data(spec)
    for index, hook in enumerate(spec.hooks):
        if hook.type not in hooks:
            message = f"kdcli has no hook `{hook.type}`: it is not run"
            yield _warning(("hooks", index, "type"), "KD612", message, did_you_mean(hook.type, list(hooks)))


def _warning(
    path: SpecPath, code: str, message: str, help: str | None = None, on_key: bool = False
) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path, on_key=on_key, severity="warning")


SCALES = {"to_tensor": 1, "torchvision.ToTensor": 1, "custom_to_tensor": 255}
"""Transforms behind which pixels go from 0 to 1, or to 255 as in the file."""

NORMALIZERS = ("normalize", "torchvision.Normalize")


def _pixel_scales(spec: Spec) -> Iterator[Diagnostic]:
    """KD668 for a mean or a deviation of other pixels than those that reach it: of 0..255 for 0..1, or the reverse."""
    said: list[list[float]] = []
    for side in ("train", "test"):
        part: DataPart = getattr(spec.dataset, side)
        scale = None
        for index, transform in enumerate(part.dataset.kwargs.transformer):
            if transform.type in SCALES:
                scale = 1 if transform.kwargs.get("norm_image") else SCALES[transform.type]
            elif transform.type in NORMALIZERS:
                written = [transform.kwargs.get(key) for key in ("mean", "std")]
                values = [abs(v) for one in written if isinstance(one, list) for v in one if _is_number(v)]
                path: SpecPath = ("dataset", side, "dataset", "kwargs", "transformer", index, "kwargs")
                if values in said:
                    continue  # both sides have the same, mostly by an anchor
                said.append(values)
                if scale == 1 and max(values, default=0) > MOST_OF_ONE:
                    message = "the mean and deviation of pixels from 0 to 255, for pixels from 0 to 1"
                    yield _warning(path, "KD668", message, "divide them by 255")
                elif scale == 255 and values and max(values) <= 1 and any(values[: len(values) // 2]):
                    message = "the mean and deviation of pixels from 0 to 1, for pixels from 0 to 255"
                    yield _warning(
                        path, "KD668", message, "multiply them by 255, or say `norm_image: true` before"
                    )


MOST_OF_ONE = 1.5
"""No mean or deviation of pixels from 0 to 1 is larger."""


def _unlike_pixels(spec: Spec) -> Iterator[Diagnostic]:
    """KD645 where kdcli's own transforms normalise the two sides' images differently."""
    sides = [spec.dataset.train.dataset, spec.dataset.test.dataset]
    lists = [side.kwargs.transformer for side in sides]
    if any(":" in transform.type for transforms in lists for transform in transforms):
        return  # one's own may normalise
    if sides[0].type != sides[1].type and not all(lists):
        return
    train, test = (
        [(one.kwargs.get("mean"), one.kwargs.get("std")) for one in transforms if one.type in NORMALIZERS]
        for transforms in lists
    )
    if train != test:
        words = [
            f"by mean {values[-1][0]} and std {values[-1][1]}" if values else "not at all"
            for values in (train, test)
        ]
        yield _warning(
            ("dataset", "test", "dataset"),
            "KD645",
            f"the test images are normalised {words[1]}, the training images {words[0]}",
            "a network has to see both alike: repeat the `normalize` of the one",
        )


def _same_data(spec: Spec) -> Iterator[Diagnostic]:
    """KD646 where both sides name the same data, and none of it is held out."""
    train, test = spec.dataset.train.dataset, spec.dataset.test.dataset
    if train.type != test.type or train.type not in FILE_DATASETS or spec.dataset.hold_out:
        return
    files = [
        (
            _as_paths(kwargs.model_extra),
            _as_paths((kwargs.image_reader.kwargs if kwargs.image_reader else {}).get("image_dir")),
        )
        for kwargs in (train.kwargs, test.kwargs)
    ]
    if files[0] == files[1]:
        yield _warning(
            ("dataset", "test", "dataset"),
            "KD646",
            "the test data is the training data",
            "what is measured on images that were trained on is remembered, not recognised: name other images, or "
            "hold some out with `dataset.hold_out`",
        )


def _as_paths(value: Any) -> Any:
    """A value in which texts that are the same path are the same: `./images` is `images`."""
    if isinstance(value, dict):
        return {key: _as_paths(one) for key, one in value.items()}
    return posixpath.normpath(value) if isinstance(value, str) and value else value


FILE_DATASETS = ("cls", "coco", "image_folder")
"""Datasets whose arguments say which files they are of; others give each side a part of what they hold."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
        scheduler_path = (*path, "lr_scheduler")
        yield from _shifted(scheduler, scheduler_path)
        if place.max_epoch is not None and place.max_iter is None and not spec.runtime.iter_base:
            milestones = scheduler.kwargs.get("milestones")
            for index, milestone in enumerate(milestones if isinstance(milestones, list) else ()):
                if isinstance(milestone, (int, float)) and milestone >= place.max_epoch:
                    epochs = f"{place.max_epoch:g} epoch{'' if place.max_epoch == 1 else 's'}"
                    message = f"milestone {milestone} is past the end: training has {epochs}"
                    yield _warning((*scheduler_path, "kwargs", "milestones", index), "KD607", message)
        if place.max_iter is not None and scheduler.warmup_iter >= place.max_iter:
            message = f"the warm-up takes {scheduler.warmup_iter} iterations, the training {place.max_iter}"
            yield _warning((*scheduler_path, "warmup_iter"), "KD608", message, "lower `warmup_iter`")
    if not spec.runtime.iter_base:
        yield from _other_epochs(places, trainer.lr_scheduler)
    if spec.mimic is None or not spec.distils or not spec.mimic.stages:
        return
    for key in ("max_epoch", "max_iter"):
        given, lengths = getattr(trainer, key), [getattr(stage, key) for stage in spec.mimic.stages]
        together = None if None in lengths else sum(lengths)
        if given is not None and given != together:
            message = f"`{key}` has no effect: each of `mimic.stages` says how long it lasts"
            message += "" if together is None else f", together {together:g}"
            yield _warning(
                ("trainer", key), "KD648", message, "leave it out, or change the stages' own", on_key=True
            )


def _other_epochs(
    places: Iterable[tuple[SpecPath, Any]], shared: SchedulerSpec | None
) -> Iterator[Diagnostic]:
    """KD635 for schedulers that fall over another number of epochs than every stage that uses them has.

    places: the trainer or the stages. shared: the trainer's, of stages that have none.
    """
    uses: dict[SpecPath, tuple[SchedulerSpec, list[float]]] = {}
    for path, place in places:
        scheduler = place.lr_scheduler or shared
        if scheduler is not None and place.max_epoch is not None and place.max_iter is None:
            at: SpecPath = path if place.lr_scheduler is not None else ("trainer",)
            uses.setdefault((*at, "lr_scheduler"), (scheduler, []))[1].append(place.max_epoch)
    for path, (scheduler, lengths) in uses.items():
        found = [list(other_length(scheduler, path, length, "epochs")) for length in lengths]
        if all(found):
            yield from found[-1]


WHOLE_LENGTH = {
    "CosineAnnealingLR": "T_max",
    "CosineLREpochScheduler": "T_max",
    "EpochBasedCosineAnnealingLR": "T_max",
    "PolynomialLR": "total_iters",
    "polylr": "max_epoch",
}
"""The argument of a scheduler that says over which length the learning rate falls, in epochs."""


def other_length(
    scheduler: SchedulerSpec, path: SpecPath, length: float, unit: str, per_unit: float = 1
) -> Iterator[Diagnostic]:
    """KD635 for a learning rate that falls over another length than the training's.

    path: of the scheduler. length: of the training, in `unit`s, of which an epoch has `per_unit`.
    """
    key = WHOLE_LENGTH.get(scheduler.type)
    given = None if key is None else scheduler.kwargs.get(key)
    if not isinstance(given, (int, float)) or given <= 0:
        return
    falls = given if unit == "epochs" else round(given * per_unit)
    # Whole epochs can't meet every number of steps.
    if falls == length or (unit != "epochs" and abs(falls - length) < per_unit):
        return
    trained = f"the training has {length:g} {unit if length != 1 else unit.removesuffix('s')}"
    message = (
        f"the learning rate falls for {falls:g} {unit if falls != 1 else unit.removesuffix('s')}, {trained}"
    )
    if falls < length:
        message += ": after that it rises again" if key == "T_max" else ": after that it is 0"
    help = f"let `{key}` be as long as the training"
    yield _warning((*path, "kwargs", str(key)), "KD635", message, help)


def _shifted(scheduler: SchedulerSpec, path: SpecPath) -> Iterator[Diagnostic]:
    """Warn of `warmup_iter` in a cosine's kwargs: it delays the cosine and is no warm-up."""
    shift = scheduler.kwargs.get("warmup_iter")
    if scheduler.type != "CosineAnnealingLR" or not isinstance(shift, int) or shift <= scheduler.warmup_iter:
        return
    warm = f"the warm-up ends at {scheduler.warmup_iter}" if scheduler.warmup_iter else "there is no warm-up"
    message = f"`warmup_iter` in `kwargs` is no warm-up: it begins the cosine at step {shift}, and {warm}"
    help = f"for a warm-up write `warmup_iter: {shift}` beside `kwargs` too"
    yield _warning((*path, "kwargs", "warmup_iter"), "KD603", message, help)


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
            message = f"`{shown_path(value)}` looks like a place to be filled in"
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


ADAPTIVE_LR = 0.01
"""A larger one is seldom meant of an optimizer whose steps are as long as it."""
LARGEST_LR = 100.0
LARGEST_ADAPTIVE_LR = 1.0


def _optimized(spec: Spec) -> Iterator[tuple[SpecPath, OptimizerSpec, SpecPath, SchedulerSpec | None]]:
    """Every optimizer with its scheduler as a stage of the run uses them, and the places of both; each pair once."""
    trainer = spec.trainer
    whole: tuple[SpecPath, SpecPath] = (("trainer", "optimizer"), ("trainer", "lr_scheduler"))
    stages = spec.mimic.stages if spec.mimic is not None and spec.distils else ()
    if not stages:
        yield whole[0], trainer.optimizer, whole[1], trainer.lr_scheduler
    seen: set[tuple[SpecPath, SpecPath]] = set()
    for index, stage in enumerate(stages):
        path: SpecPath = ("mimic", "stages", index)
        places = (
            whole[0] if stage.optimizer is None else (*path, "optimizer"),
            whole[1] if stage.lr_scheduler is None else (*path, "lr_scheduler"),
        )
        if places not in seen:
            seen.add(places)
            optimizer = stage.optimizer or trainer.optimizer
            yield places[0], optimizer, places[1], stage.lr_scheduler or trainer.lr_scheduler


def _scaled_lr(spec: Spec) -> Iterator[Diagnostic]:
    """Warn of a learning rate that the batch size makes much larger than it is written."""
    size = spec.dataset.train.batch_sampler.kwargs.batch_size * spec.trainer.accumulate_steps
    for path, optimizer, _, scheduler in _optimized(spec):
        lr = optimizer.kwargs.get("lr")
        if not _scales(scheduler) or not isinstance(lr, (int, float)) or size < 10:
            continue
        assert scheduler is not None
        adaptive = optimizer.type in ADAPTIVE and lr * size > ADAPTIVE_LR
        warm = scheduler.warmup_iter > 0 or bool(scheduler.warmup_epochs)
        if warm and not adaptive:
            continue
        batches = "the batch size" if spec.trainer.accumulate_steps == 1 else "the samples of a step"
        message = f"lr {lr} is scaled by {batches} to {lr * size:g} on one process"
        message += ", without warm-up" if not warm else f", as long as a step of {optimizer.type}"
        help = "give `warmup_iter`, or `warmup_register_type: no_scale_lr` to use `lr` as written"
        if warm:
            help = "`warmup_register_type: no_scale_lr` uses `lr` as written"
        yield _warning((*path, "kwargs", "lr"), "KD611", message, help)


def _scales(scheduler: SchedulerSpec | None) -> bool:
    """Whether the learning rate is multiplied by the batch size."""
    if scheduler is None or scheduler.type in SETS_LR:
        return False
    return scheduler.warmup_register_type != "no_scale_lr"


def _steps_of_optimizers(spec: Spec) -> Iterator[Diagnostic]:
    """Warn of optimizers that learn nothing, climb, or make steps that no network stands."""
    size = spec.dataset.train.batch_sampler.kwargs.batch_size * spec.trainer.accumulate_steps
    for path, optimizer, lr_path, scheduler in _optimized(spec):
        kwargs_path = (*path, "kwargs")
        same = SAME_OPTIMIZERS.get(optimizer.type)
        if same is not None:
            message = f"`{optimizer.type}` makes the steps of torch's `{same}`, which is used here"
            yield _warning((*path, "type"), "KD353", message, f"write `type: {same}`")
        if optimizer.kwargs.get("maximize") is True:
            message = "`maximize: true` makes the loss larger at every step"
            yield _warning((*kwargs_path, "maximize"), "KD633", message, "leave it out")
        lr = optimizer.kwargs.get("lr")
        path_of_lr: SpecPath = (*kwargs_path, "lr")
        if scheduler is not None and scheduler.type in SETS_LR:
            lr, path_of_lr = scheduler.kwargs.get("max_lr"), (*lr_path, "kwargs", "max_lr")
        if not isinstance(lr, (int, float)):
            continue
        if lr == 0:
            yield _warning(
                path_of_lr, "KD630", "the learning rate is 0: nothing is learnt", "give a larger `lr`"
            )
        effective = lr * size if _scales(scheduler) else lr
        scaled = f", {effective:g} with the batch size" if effective != lr else ""
        largest = LARGEST_ADAPTIVE_LR if optimizer.type in ADAPTIVE else LARGEST_LR
        if effective >= largest:
            message = f"a learning rate of {lr:g}{scaled} is more than `{optimizer.type}` can train with"
            yield _warning(path_of_lr, "KD632", message, f"usual are values far below {largest:g}")
        decay = optimizer.kwargs.get("weight_decay")
        if isinstance(decay, (int, float)) and effective * decay >= 1:
            message = f"lr {effective:g} times `weight_decay` {decay:g} is 1 or more: each step throws the weights away"
            yield _warning((*kwargs_path, "weight_decay"), "KD632", message, "usual are 0.0001 to 0.1")
        gamma = None if scheduler is None else scheduler.kwargs.get("gamma")
        if isinstance(gamma, (int, float)) and gamma > 1:
            message = f"`gamma` {gamma:g} makes the learning rate larger each time, not smaller"
            yield _warning((*lr_path, "kwargs", "gamma"), "KD634", message, "usual are values below 1")


def _zero_weights(spec: Spec) -> Iterator[Diagnostic]:
    """Warn of losses that are multiplied by 0."""
    if spec.mimic is None or not spec.distils:
        return
    for name, job in spec.mimic.jobs.items():
        path: SpecPath = ("mimic", "jobs", name)
        if job.loss_weight == 0:
            message = f"the losses of `{name}` are multiplied by 0: they teach nothing"
            yield _warning((*path, "loss_weight"), "KD631", message, "give a larger `loss_weight`")
        for key, loss in job.losses.items():
            if loss.kwargs.get("loss_weight") == 0 and not isinstance(loss.kwargs["loss_weight"], bool):
                message = f"`{loss.type}` is multiplied by 0: it teaches nothing"
                where = (*path, "losses", key, "kwargs", "loss_weight")
                yield _warning(where, "KD631", message, "give a larger `loss_weight`, or leave the loss out")


def _untrained_starts(spec: Spec, losses: LossTable) -> Iterator[Diagnostic]:
    """A loss that starts from what another trains (`ft`), and no earlier stage has that on the same layer."""
    if spec.mimic is None or not spec.distils:
        return
    jobs = spec.mimic.jobs
    trained: dict[str, set[tuple[str, str]]] = {}
    warned: set[str] = set()
    for stage in spec.mimic.stages or (None,):
        active = [name for name in jobs if stage is None or stage.jobs is None or name in stage.jobs]
        for name in active:
            for key, loss in jobs[name].losses.items():
                before = losses[loss.type].takes_over if loss.type in losses else None
                if before is None or name in warned:
                    continue
                if not _teacher_layers(jobs[name]) <= trained.get(before, set()):
                    warned.add(name)
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
