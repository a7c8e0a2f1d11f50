"""Rules for a teacher's cache: when what it showed once can stand for what it would show again."""

from __future__ import annotations

from collections.abc import Iterator

from kdcli.errors import Diagnostic, SpecPath
from kdcli.spec.schema import Cache, Spec


def caches_of(spec: Spec) -> dict[str, tuple[SpecPath, Cache]]:
    """The cache of each teacher that has one, with its place in the spec."""
    found: dict[str, tuple[SpecPath, Cache]] = {}
    if spec.mimic is None or not spec.distils:
        return found
    for job_name, job in spec.mimic.jobs.items():
        for name, part in job.teachers.items():
            if part.cache is not None and name not in found:
                found[name] = (("mimic", "jobs", job_name, "teachers", name, "cache"), part.cache)
    return found


def views_of(spec: Spec) -> int | None:
    """After how many epochs the augmentations come again; None without a cache."""
    return next((cache.views for _, cache in caches_of(spec).values()), None)


def check_caches(spec: Spec) -> Iterator[Diagnostic]:
    """What a cache can't go with, each finding with its path."""
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
            )


def unfit(name: str, path: SpecPath, why: str, help: str) -> Diagnostic:
    """KD550 for a teacher; path: of its cache."""
    return _error(path, "KD550", f"`{name}` can't be cached: {why}", help)


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


def _error(path: SpecPath, code: str, message: str, help: str) -> Diagnostic:
    return Diagnostic(code=code, message=message, help=help, path=path, on_key=True)
