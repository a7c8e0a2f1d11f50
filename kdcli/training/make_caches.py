"""`kdcli cache`: fill the caches of a spec before training, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from kdcli.data.digest import listing_of
from kdcli.disk import entries, size_of
from kdcli.distill.cached import CachedTeacher
from kdcli.distill.folding import fold
from kdcli.errors import RunError
from kdcli.parallel.devices import to_device, use_threads
from kdcli.parallel.distributed import Processes
from kdcli.parallel.settings import facts_of, using
from kdcli.records import Notice
from kdcli.spec.check.rules import caches_of
from kdcli.spec.parse import ParsedSpec
from kdcli.training.build import (
    build_data,
    build_teacher,
    build_teachers,
    file_notices,
    run_root,
    settings_for,
)
from kdcli.training.caches import damaged_rows, flush_all, gigabytes, sources_of
from kdcli.training.join_jobs import first_samples, show_teacher, teacher_taps
from kdcli.training.run import RunOptions
from kdcli.training.sides import Sides

PROGRESS_NOTICES = 10
"""How often the progress of a pass is shown."""


def make_caches(parsed: ParsedSpec, options: RunOptions, processes: Processes) -> Iterator[Notice]:
    """Run each cached teacher on every training sample, once per view; rows that are whole stay.

    Raises RunError KD555 where the spec caches nothing, KD545 and KD552 to KD554 as in training.
    """
    spec = parsed.spec
    caches = caches_of(spec)
    if not caches:
        raise RunError.of(
            "KD555", "no teacher of this spec is cached", "say `cache: {}` beside its `mimic_name`"
        )
    use_threads(spec.runtime)
    with ExitStack() as stack:
        sides = Sides(spec, options.places, plugins=options.plugins)
        loader = build_data(sides.train, spec, processes)
        stack.callback(loader.close)
        sample = to_device(first_samples(next(loader.batches(0))), processes.device)
        left_out = file_notices(spec, options.places, "mimic", "dataset")
        nets, hashes = build_teachers(spec, options, notices=left_out)
        taps = teacher_taps(spec, {name: net for name, net in nets.items() if name in caches})
        settings = settings_for(spec, facts_of(processes.device), loader.facts, nets.values())
        stack.enter_context(using(settings))
        teachers = {
            name: build_teacher(
                sides.task, name, tap, spec, loader.facts, processes, options.places, settings
            )
            for name, tap in taps.items()
        }
        shown = {name: show_teacher(teacher, sample, stack) for name, teacher in teachers.items()}
        if spec.runtime.fold_bn:
            for teacher in teachers.values():
                fold(teacher, sample)
        root = run_root(parsed) / "cache"
        images = listing_of(sides.train).images() if processes.speaks else None
        sources, notices = sources_of(
            spec, teachers, shown, len(sample["image"]), hashes, loader, processes, root, images
        )
        for notice in (*left_out, *notices):
            yield Notice(message=notice)
        cached = [source for source in sources.values() if isinstance(source, CachedTeacher)]
        views = next(iter(caches.values()))[1].views
        due = views * len(loader)
        for view in range(views):
            for number, batch in enumerate(loader.batches(view), start=view * len(loader) + 1):
                moved = to_device(dict(batch), processes.device)
                for source in cached:
                    source.view(moved)
                if number * PROGRESS_NOTICES // due > (number - 1) * PROGRESS_NOTICES // due and number < due:
                    yield Notice(message=f"{100 * number // due} % of {due:,} batches")
            flush_all(sources, processes)
        for message in damaged_rows(sources, processes):
            yield Notice(message=message, level="warning")
        for source in cached:
            size = sum(size_of(file) for file in entries(source.store.folder))
            yield Notice(
                message=f"{source.teacher.name}: {source.store.count():,} of {source.store.rows:,} rows "
                f"are in {source.store.folder} ({gigabytes(size)})"
            )
