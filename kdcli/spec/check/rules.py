"""Rules between fields: errors where values are wrong together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from kdcli.errors import Diagnostic, RunError, SpecPath, did_you_mean
from kdcli.spec.check.labels import check_mixed_weighting, check_without_labels
from kdcli.spec.in_memory import is_given
from kdcli.spec.published import is_published, published
from kdcli.spec.schema import Cache, Job, JobTeacher, Saver, Spec, Temperature
from kdcli.spec.tables import TaskRecord, task_of

_NAME = re.compile(r"[A-Za-z_]\w*")  # of an output


def check_rules(spec: Spec) -> Iterator[Diagnostic]:
    """Every rule of the language that needs no table, each finding with its path."""
    yield from _runner(spec)
    yield from _lengths(spec)
    yield from _precision(spec)
    yield from _compiling(spec)
    yield from _networks(spec)
    yield from _weight_keys(spec)
    yield from _probe(spec)
    yield from check_without_labels(spec)
    yield from check_mixed_weighting(spec)
    if spec.mimic is not None and spec.distils:
        for name, job in spec.mimic.jobs.items():
            yield from _job(spec, ("mimic", "jobs", name), job)
        yield from _teacher_parts(spec)
        yield from check_caches(spec)
        yield from _stages(spec)


def _error(
    path: SpecPath, code: str, message: str, help: str | None = None, on_key: bool = False
) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path, on_key=on_key)


def _runner(spec: Spec) -> Iterator[Diagnostic]:
    if spec.distils and spec.mimic is None:
        help = "add `mimic`, or say `type: base` to train without distilling"
        yield _error(
            ("runtime", "runner", "type"), "KD210", "runner `kd` distils, but there is no `mimic`", help
        )
    if not spec.distils and spec.mimic is not None:
        yield Diagnostic(
            code="KD602",
            severity="warning",
            message="runner `base` trains without distilling: `mimic` is ignored",
            help="say `runtime.runner.type: kd` to distil",
            path=("mimic",),
            on_key=True,
        )


def _lengths(spec: Spec) -> Iterator[Diagnostic]:
    trainer = spec.trainer
    stages = spec.mimic.stages if spec.mimic is not None and spec.distils else ()
    open_stages = [i for i, stage in enumerate(stages) if stage.max_iter is None and stage.max_epoch is None]
    if stages:
        for index in open_stages:
            message = f"stage `{stages[index].name}` has neither `max_epoch` nor `max_iter`"
            yield _error(("mimic", "stages", index), "KD212", message, "say how long it lasts")
    elif trainer.max_epoch is None and trainer.max_iter is None:
        help = "say how long to train, for example `max_epoch: 100`"
        yield _error(
            ("trainer",), "KD212", "`trainer` has neither `max_epoch` nor `max_iter`", help, on_key=True
        )


def _precision(spec: Spec) -> Iterator[Diagnostic]:
    runtime = spec.runtime
    if runtime.fp16 and runtime.precision not in (None, "fp16"):
        message = f"`fp16: true` and `precision: {runtime.precision}` contradict each other"
        yield _error(("runtime", "precision"), "KD216", message, "keep `precision` alone")
    if runtime.deterministic and runtime.cudnn_benchmark:
        message = "`deterministic: true` and `cudnn_benchmark: true` contradict each other"
        help = "leave `cudnn_benchmark` out: what cuDNN finds fastest may differ from run to run"
        yield _error(("runtime", "cudnn_benchmark"), "KD288", message, help)


def _compiling(spec: Spec) -> Iterator[Diagnostic]:
    if not spec.runtime.compile:
        return
    path: SpecPath = ("runtime", "compile")
    if spec.trainer.parallel == "fsdp":
        yield _error(path, "KD222", "`compile` and `parallel: fsdp` don't go together", "leave one out")


def _networks(spec: Spec) -> Iterator[Diagnostic]:
    for path, modules in ((("net",), spec.net), *((("teachers", n), t) for n, t in spec.teachers.items())):
        if not any(module.type != "self" for module in modules):
            yield _error(path, "KD220", f"`{path[-1]}` has no modules", "list its modules", on_key=True)
        for index, module in enumerate(modules):
            yield from _outputs((*path, index, "outputs"), module.outputs or ())


def _outputs(path: SpecPath, names: tuple[str, ...]) -> Iterator[Diagnostic]:
    """Check the names of outputs: each once; `_` stands for an output that nobody needs."""
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name):
            message = f"`{name}` can't be the name of an output"
            yield _error(
                (*path, place), "KD227", message, "use letters, digits and `_`, or `_` alone to drop it"
            )
        elif name != "_" and name in names[:place]:
            yield _error((*path, place), "KD227", f"a second output is called `{name}`", "rename one")
    if names and set(names) == {"_"}:
        yield _error(path, "KD227", "`outputs` drops everything", "name the logits: `outputs: [logits, _]`")


def _job(spec: Spec, path: SpecPath, job: Job) -> Iterator[Diagnostic]:
    for name in job.teachers:
        if name not in spec.teachers:
            help = did_you_mean(name, list(spec.teachers))
            help = help or f"add its network at top level: `{name}: [...]`"
            message = f"no network `{name}` in this spec"
            yield _error((*path, "teachers", name), "KD301", message, help, on_key=True)
    for name, part in job.teachers.items():
        yield from _classes((*path, "teachers", name, "classes"), part)
    if job.loss_weight < 0 and not job.allow_negative:
        message = f"`loss_weight` must be at least 0, got the number {job.loss_weight:g}"
        yield _error((*path, "loss_weight"), "KD228", message, negative_help("loss_weight", "beside it"))
    yield from _interval(path, job.start_iter, job.end_iter)
    ends = [loss.end_iter for loss in job.losses.values()] or [None]
    if job.decay is not None and job.end_iter is None and None in ends:
        yield _endless((*path, "decay"))
    yield from _learned(path, job.temperature)
    for name, loss in job.losses.items():
        start = job.start_iter if loss.start_iter is None else loss.start_iter
        yield from _interval((*path, "losses", name), start, loss.end_iter)
        if loss.decay is not None and loss.end_iter is None and job.end_iter is None:
            yield _endless((*path, "losses", name, "decay"))
        yield from _learned((*path, "losses", name), loss.temperature)


def negative_help(weight: str, place: str) -> str:
    """What to do about a weight below 0 (KD228); place: where `allow_negative` is written."""
    return f"below 0 the loss is made larger: if that is meant, write `allow_negative: true` {place}"


def _classes(path: SpecPath, part: JobTeacher) -> Iterator[Diagnostic]:
    """Check `classes`: each class of the data has its own class of the teacher."""
    given = part.classes or ()
    steps: list[str | int] = list(given) if isinstance(given, dict) else list(range(len(given)))
    values = list(given.values()) if isinstance(given, dict) else list(given)
    for place, (step, value) in enumerate(zip(steps, values, strict=True)):
        if value in values[:place]:
            message = f"`classes` names the teacher's class `{value}` twice"
            help = "one class of the teacher can't stand for two of the data"
            yield _error((*path, step), "KD226", message, help)
    if part.classes is not None and not given:
        yield _error(
            path, "KD226", "`classes` is empty", "name one class of the teacher for each class of the data"
        )


def _interval(path: SpecPath, start: int, end: int | None) -> Iterator[Diagnostic]:
    if end is not None and end <= start:
        message = f"`end_iter` must be more than `start_iter` ({start}), got {end}"
        yield _error((*path, "end_iter"), "KD218", message, "the loss would never be in force")


def _endless(path: SpecPath) -> Diagnostic:
    return _error(
        path, "KD218", "`decay` needs `end_iter`", "say at which iteration the weight has fallen to 0"
    )


def _learned(path: SpecPath, temperature: float | Temperature | None) -> Iterator[Diagnostic]:
    """Check a learned temperature: it lies between `start` and `start + range`, both more than 0."""
    if isinstance(temperature, Temperature) and temperature.start + temperature.range <= 0:
        start = f"{temperature.start:g}"
        message = f"`range` must be more than -{start}, got the number {temperature.range:g}"
        help = f"the temperature is learned between `start` ({start}) and `start + range`"
        yield _error((*path, "temperature", "range"), "KD206", message, help)


def _teacher_parts(spec: Spec) -> Iterator[Diagnostic]:
    """Check that jobs agree about each teacher: one checkpoint, one mode."""
    assert spec.mimic is not None
    path: SpecPath
    parts: dict[str, list[tuple[str, JobTeacher]]] = {}
    for job_name, job in spec.mimic.jobs.items():
        for name, part in job.teachers.items():
            parts.setdefault(name, []).append((job_name, part))
    for name, uses in parts.items():
        if name not in spec.teachers:
            continue
        here = is_given(spec.teachers[name])
        if not here and not any(part.teacher_weight is not None or part.allow_random for _, part in uses):
            path = ("mimic", "jobs", uses[0][0], "teachers", name)
            help = "give its checkpoint, or say `allow_random: true` beside `mimic_name`"
            yield _error(path, "KD303", f"`{name}` has no `teacher_weight`", help, on_key=True)
        if spec.runtime.fold_bn and any(part.teacher_bn_mode == "train" for _, part in uses):
            message = f"`{name}` normalises by its batches (`teacher_bn_mode: train`): nothing can be folded"
            yield _error(("runtime", "fold_bn"), "KD221", message, "leave `fold_bn` out")
        for key in (
            "teacher_weight",
            "weight_key",
            "weight_order",
            "teacher_bn_mode",
            "classes",
            "input",
            "cache",
        ):
            given = [(job, getattr(part, key)) for job, part in uses if key in part.model_fields_set]
            for job_name, value in given[1:]:
                if value != given[0][1]:
                    path = ("mimic", "jobs", job_name, "teachers", name, key)
                    message = f"`{name}` is given another `{key}` than in `{given[0][0]}`"
                    help = "a teacher is built once: use one value, or a second teacher"
                    yield _error(path, "KD304", message, help)


def _weight_keys(spec: Spec) -> Iterator[Diagnostic]:
    """Check that each `weight_key` and `weight_order` stands beside a file, and each published name can be one."""
    beside: list[tuple[SpecPath, str, str | None, Saver | JobTeacher]] = [
        (("saver",), "pretrain_model", spec.saver.pretrain_model, spec.saver)
    ]
    jobs = spec.mimic.jobs if spec.mimic is not None and spec.distils else {}
    for job_name, job in jobs.items():
        for name, part in job.teachers.items():
            files = [j.teachers[name].teacher_weight for j in jobs.values() if name in j.teachers]
            file = next((file for file in files if file is not None), None)
            beside.append((("mimic", "jobs", job_name, "teachers", name), "teacher_weight", file, part))
    for path, key, file, settings in beside:
        if file is not None and is_published(file) and getattr(settings, key) is not None:
            try:
                published(file)
            except RunError as error:
                yield replace(error.diagnostics[0], path=(*path, key))
                continue
        for own in ("weight_key", "weight_order"):
            if getattr(settings, own) is None:
                continue
            where = "says where in a file weights lie" if own == "weight_key" else "says how a file is read"
            if file is None:
                message = f"`{own}` {where}, but there is no `{key}`"
                yield _error((*path, own), "KD556", message, f"add `{key}`, or delete `{own}`", on_key=True)
            elif file.startswith(("torchvision:", "timm:")):
                message = f"`{own}` is for files: `{file}` holds one network"
                yield _error((*path, own), "KD556", message, f"delete `{own}`", on_key=True)


def _stages(spec: Spec) -> Iterator[Diagnostic]:
    assert spec.mimic is not None
    seen: set[str] = set()
    for index, stage in enumerate(spec.mimic.stages):
        path: SpecPath = ("mimic", "stages", index)
        if stage.name in seen:
            yield _error((*path, "name"), "KD219", f"a second stage is called `{stage.name}`", "rename one")
        seen.add(stage.name)
        for place, job in enumerate(stage.jobs or ()):
            if job not in spec.mimic.jobs:
                help = did_you_mean(job, list(spec.mimic.jobs))
                yield _error((*path, "jobs", place), "KD305", f"no job `{job}` under `mimic`", help)


def caches_of(spec: Spec) -> dict[str, tuple[SpecPath, Cache]]:
    """The cache of each teacher that has one, with its path in the spec."""
    caches: dict[str, tuple[SpecPath, Cache]] = {}
    if spec.mimic is None or not spec.distils:
        return caches
    for job_name, job in spec.mimic.jobs.items():
        for name, part in job.teachers.items():
            if part.cache is not None and name not in caches:
                caches[name] = (("mimic", "jobs", job_name, "teachers", name, "cache"), part.cache)
    return caches


def views_of(spec: Spec) -> int | None:
    """The number of epochs after which augmentations repeat; None without a cache."""
    return next((cache.views for _, cache in caches_of(spec).values()), None)


def check_caches(spec: Spec) -> Iterator[Diagnostic]:
    """Findings for what can't be combined with a cache, each with its path."""
    caches = caches_of(spec)
    for name, (path, cache) in caches.items():
        why = _unfit(spec, name)
        if why is not None:
            yield unfit(name, path, *why)
        first = next(iter(caches.values()))[1]
        if cache.views != first.views:
            yield _error(
                (*path, "views"),
                "KD551",
                f"`{name}` has {cache.views} views and another teacher's cache {first.views}",
                "both see the pixels that the student sees: give every cache the same `views`",
                on_key=True,
            )


def unfit(name: str, path: SpecPath, why: str, help: str) -> Diagnostic:
    """The finding KD550 for a teacher that can't be cached; path: of its cache."""
    return _error(path, "KD550", f"`{name}` can't be cached: {why}", help, on_key=True)


def _unfit(spec: Spec, name: str) -> tuple[str, str] | None:
    assert spec.mimic is not None
    uses = [job.teachers[name] for job in spec.mimic.jobs.values() if name in job.teachers]
    if any(use.teacher_bn_mode == "train" for use in uses):
        return (
            "with `teacher_bn_mode: train` it shows a sample differently in every batch",
            "use `teacher_bn_mode: eval`, or leave `cache` out",
        )
    mixing = spec.dataset.train.dataloader.kwargs.batch_fn
    if mixing is not None:
        return (
            f"`{mixing.type}` mixes the samples of a batch, and batches are new in every epoch",
            "leave `batch_fn` or `cache` out",
        )
    if spec.trainer.parallel == "fsdp":
        return (
            "with `parallel: fsdp` all processes run a teacher together, and each misses other samples",
            "use `parallel: ddp`, or leave `cache` out",
        )
    return None


def check_task(spec: Spec, tasks: Mapping[str, TaskRecord]) -> Iterator[Diagnostic]:
    """Findings for what the task's networks can't do: be compiled (KD222), cached (KD550), probed (KD266)."""
    if not tasks:
        return
    record = tasks[task_of(tasks, spec.runtime.task_names, spec.dataset.train.dataset.type)]
    if spec.runtime.compile and record.not_compiled is not None:
        path: SpecPath = ("runtime", "compile")
        yield Diagnostic(code="KD222", message=record.not_compiled, help="leave `compile` out", path=path)
    if record.not_cached is not None:
        for name, (path, _) in caches_of(spec).items():
            yield unfit(name, path, record.not_cached, "leave `cache` out")
    if spec.dataset.probe is not None and record.not_probed is not None:
        path = ("dataset", "probe")
        yield Diagnostic(code="KD266", message=record.not_probed, help="leave `probe` out", path=path)


def _probe(spec: Spec) -> Iterator[Diagnostic]:
    """KD267 where `feature` of the probe names a network that is none of the run's."""
    probe = spec.dataset.probe
    if probe is None or not isinstance(probe.feature, dict):
        return
    jobs = spec.mimic.jobs.values() if spec.mimic is not None and spec.distils else ()
    networks = ["student", *dict.fromkeys(teacher for job in jobs for teacher in job.teachers)]
    for name in probe.feature:
        if name not in networks:
            help = (
                did_you_mean(name, networks)
                or f"its networks are {', '.join(f'`{one}`' for one in networks)}"
            )
            path: SpecPath = ("dataset", "probe", "feature", name)
            yield _error(path, "KD267", f"the run has no network `{name}` to probe", help, on_key=True)
