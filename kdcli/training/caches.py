"""The caches of a run: which store on disk belongs to which teacher, data and taps.

A store lies in `<cache.dir>/<teacher>-<key>`. The key is a hash of everything that decides what the teacher
shows: its weights and modules, its pixels and precision, the data's spec and seed, the taps. Beside it
the store keeps a hash of the list of images and a few samples' pixels; where the data no longer gives these, or the
teacher answers a few samples otherwise than is stored (its code was edited), all is made anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcli.data.digest import other_pixels, probe_of
from kdcli.data.facts import DataFacts
from kdcli.data.loaders import Loader
from kdcli.data.transforms.pipeline import build_transform
from kdcli.disk import (
    TEMPORARY,
    entries,
    entries_like,
    exists,
    expanded,
    free_bytes,
    size_of,
    sweep_temporary,
)
from kdcli.distill.cached import CachedTeacher, CacheLayout, Store, bytes_of, cache_layout_of, read_meta
from kdcli.distill.taps import View
from kdcli.distill.teacher import Teacher, ViewSource
from kdcli.errors import Diagnostic, KdError, RunError, SpecError, SpecPath
from kdcli.parallel.devices import to_device
from kdcli.parallel.distributed import Processes
from kdcli.spec.check.rules import caches_of, unfit
from kdcli.spec.schema import Cache, ModuleSpec, Spec

FORMAT = 1
WHAT = {
    "weights": "its weights",
    "modules": "its modules",
    "input": "its `input`",
    "pixels": "the pixels that its weights state",
    "precision": "its precision",
    "data": "the data",
    "seed": "the seed",
    "samples": "the number of samples",
    "views": "`views`",
    "columns": "what the jobs read of it",
    "classes": "`classes`",
    "layouts": "how features are laid out",
}


def cache_findings(spec: Spec, facts: DataFacts, epochs: float | None = None) -> list[Diagnostic]:
    """KD550 where the data comes in ready batches, of which no cache knows the samples.

    Else the warning KD640 where a cache has fewer views than there are epochs, so that augmentations come again.
    epochs: where the spec counts steps instead.
    """
    caches = caches_of(spec)
    stages = spec.mimic.stages if spec.mimic is not None and spec.mimic.stages else None
    counted = [stage.max_epoch for stage in stages] if stages else [spec.trainer.max_epoch]
    known = [number for number in counted if number is not None]
    total = float(sum(known)) if len(known) == len(counted) else epochs
    if not caches:
        return []
    name, (path, cache) = next(iter(caches.items()))
    if facts.batched:
        return [unfit(name, path, "the data comes in batches that are made already", GIVE_DATASET)]
    if total is None:
        return []
    transforms = spec.dataset.train.dataset.kwargs.transformer
    place = ("dataset", "train", "dataset", "kwargs", "transformer")
    drawing: list[str] = []
    with suppress(KdError):  # of whoever builds the data
        drawing = [
            part.type for i, part in enumerate(transforms) if build_transform(part, (*place, i)).random
        ]
    if not drawing or cache.views >= total:
        return []
    views = f"{cache.views} view{'s' if cache.views > 1 else ''}"
    message = (
        f"`{name}` is cached in {views}: what {', '.join(f'`{one}`' for one in drawing[:3])} draws for an image comes"
        f" again after {cache.views} of {total:g} epochs"
    )
    help = (
        f"`views: {math.ceil(total)}` gives fresh pixels in every epoch, as without `cache`; with fewer, a baseline"
        " without a cache is no equal comparison"
    )
    return [Diagnostic(code="KD640", severity="warning", message=message, help=help, path=path)]


GIVE_DATASET = "give the Dataset itself, whose items have a number, or leave `cache` out"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlan:
    """What one teacher's store will hold, before it is opened."""

    name: str
    path: SpecPath
    cache: Cache
    layout: CacheLayout
    rows: int
    facts: Mapping[str, Any]
    folder: Path

    @property
    def size(self) -> int:
        """Bytes that the store takes on disk."""
        return bytes_of(self.layout.columns, self.rows)


def sources_of(
    spec: Spec,
    teachers: Mapping[str, Teacher],
    shown: Mapping[str, View],
    shown_samples: int,
    hashes: Mapping[str, str],
    loader: Loader,
    processes: Processes,
    default: Path,
    images: str | None,
) -> tuple[dict[str, ViewSource], list[str]]:
    """Where each teacher's views come from, the teacher itself or its cache; and notices about them.

    shown: what each teacher showed of `shown_samples` samples. default: where caches lie that name no `dir`.
    images: a hash of the list of training images, None where it isn't known (in other processes than the first).
    Raises SpecError KD553 and RunError KD552, KD554.
    """
    sources: dict[str, ViewSource] = dict(teachers)
    notices = []
    for name in caches_of(spec):
        if name in teachers:
            if loader.facts.batched:
                raise SpecError(cache_findings(spec, loader.facts))
            cache = caches_of(spec)[name][1]
            layout = cache_layout_of(
                teachers[name], shown[name], shown_samples, half=cache.dtype == "float16", topk=cache.topk
            )
            samples = loader.facts.num_samples or 0
            teacher = teachers[name]
            pixels = None if teacher.pixels is None or teacher.pixels.by is None else teacher.pixels.facts()
            numbers, precision = teacher.labels.numbers, teacher.precision
            plan = plan_of(spec, name, layout, hashes[name], samples, default, numbers, pixels, precision)
            sources[name], cache_notices = opened(plan, teachers[name], loader, processes, images)
            notices += cache_notices
    return sources, notices


def plan_of(
    spec: Spec,
    name: str,
    layout: CacheLayout,
    weights: str,
    samples: int,
    default: Path,
    classes: tuple[int, ...] | None = None,
    pixels: dict[str, Any] | None = None,
    precision: str = "fp32",
) -> StorePlan:
    """Plan the store of one teacher's views. weights: their hash; classes: which of its logits it shows.

    pixels: its own where its weights state them; those of the spec's `input` are there anyway. precision: its own.
    """
    path, cache = caches_of(spec)[name]
    data = spec.dataset.train.dataset.model_dump(mode="json")
    data["kwargs"].pop("evaluator", None)
    facts = {
        "format": FORMAT,
        "weights": weights,
        "modules": [_module(module) for module in spec.teachers[name]],
        "input": _input_of(spec, name),
        "precision": [
            precision,
            spec.runtime.fold_bn,
            spec.runtime.aligned,
        ],
        "data": data,
        "seed": spec.runtime.random_seed,
        "samples": samples,
        "views": cache.views,
        "columns": [column.facts() for column in layout.columns],
    }
    if classes is not None:
        facts["classes"] = list(classes)
    if pixels is not None:
        facts["pixels"] = pixels
    if (
        layout.changed
    ):  # only then: what was cached before layouts were known stays valid where it means the same
        facts["layouts"] = dict(layout.changed)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = (default if cache.dir is None else expanded(cache.dir)) / f"{name}-{key}"
    return StorePlan(
        name=name,
        path=path,
        cache=cache,
        layout=layout,
        rows=samples * cache.views,
        facts=facts,
        folder=folder,
    )


def opened(
    plan: StorePlan, teacher: Teacher, loader: Loader, processes: Processes, images: str | None
) -> tuple[CachedTeacher, list[str]]:
    """Open the cached teacher; the first process creates the store where none fits."""
    notices: list[str] = []
    if processes.speaks:
        notices = _made_ready(plan, teacher, loader, processes, images)
    processes.wait()
    try:
        store = Store(plan.folder, plan.layout.columns, plan.rows)
    except (OSError, RuntimeError) as error:
        raise _refused(plan, error) from error
    if processes.speaks:
        there = store.count()
        share = "" if there == 0 else f", {there:,} of {plan.rows:,} rows are there"
        views = f"{plan.cache.views} view{'s' if plan.cache.views > 1 else ''}"
        notices.append(
            f"{plan.name} is cached in {plan.folder} ({gigabytes(plan.size)}: "
            f"{plan.facts['samples']:,} samples x {views}{share})"
        )
        if store.checks is None:
            notices.append(
                f"{plan.folder} has no checksums, as kdcli 0.2 made it: damage to it can't be noticed; "
                "delete it to have it made anew"
            )
    return CachedTeacher(teacher, plan.layout, store, plan.facts["samples"]), notices


def _made_ready(
    plan: StorePlan, teacher: Teacher, loader: Loader, processes: Processes, images: str | None
) -> list[str]:
    sweep_temporary(plan.folder.parent)
    meta = read_meta(plan.folder)
    probe = probe_of(loader)
    notices = []
    if meta is not None:
        changed = None
        if meta.get("facts") != _plain(plan.facts) or other_pixels(meta.get("probe"), probe) != []:
            changed = "the data has changed"
        elif None not in (images, meta.get("images")) and meta["images"] != images:
            changed = "images came, went, changed or come in another order"
        elif _answers_otherwise(plan, teacher, loader, processes):
            changed = f"{plan.name} answers otherwise (its code has changed, or images have)"
        if changed is not None:
            notices.append(f"{changed} since {plan.folder} was made: {plan.name} is cached anew")
            shutil.rmtree(plan.folder, ignore_errors=True)
            meta = None
    if meta is None:
        notices += _others(plan)
        _check_size(plan)
        try:
            shutil.rmtree(plan.folder, ignore_errors=True)
            kept = None if probe is None else probe.tolist()
            content = {"facts": plan.facts, "probe": kept, "images": images}
            Store.create(plan.folder, plan.layout.columns, plan.rows, content)
        except OSError as error:
            raise _refused(plan, error) from error
    return notices


LOOKED_AT = 32
"""So many stored samples are answered again before a cache is read."""

OTHERWISE = 0.05
"""From this share of its norm on a stored answer is another; what differs by rounding and batch size is below."""


def _answers_otherwise(plan: StorePlan, teacher: Teacher, loader: Loader, processes: Processes) -> bool:
    """Whether the teacher shows other values of a few stored samples, in their first view, than the store has."""
    try:
        store = Store(plan.folder, plan.layout.columns, plan.rows)
    except (OSError, RuntimeError) as error:
        raise _refused(plan, error) from error
    there = store.filled[: plan.facts["samples"]].nonzero()[:, 0]
    rows = there[torch.linspace(0, len(there) - 1, min(LOOKED_AT, len(there))).long()]
    rows = rows[store.has(rows, range(len(store.columns)))]
    batch = loader.some(rows.tolist()) if len(rows) else {}
    if not batch or len(batch["image"]) != len(rows):
        return False
    cached = CachedTeacher(teacher, plan.layout, store, plan.facts["samples"])
    for number, value in enumerate(cached.shown(to_device(dict(batch), processes.device))):
        column = store.columns[number]
        now = column.unpack([part.cpu() for part in column.pack(value)]).double().flatten(1)
        kept = store.read(rows, number).double().flatten(1)
        size = kept.norm(dim=1)
        size = size.clamp_min(1e-3 * float(size.max()))  # next to nothing is rounding
        if bool(((now - kept).norm(dim=1) > OTHERWISE * size).any()):
            return True
    return False


def _others(plan: StorePlan) -> list[str]:
    """Stores of the same teacher that belong to other data or settings: what differs, and their bytes."""
    notices = []
    for folder in entries_like(plan.folder.parent, f"{plan.name}-*"):
        meta = read_meta(folder)
        if meta is None or folder == plan.folder or folder.suffix == TEMPORARY:
            continue
        before, now = meta.get("facts", {}), _plain(plan.facts)
        differs = [words for key, words in WHAT.items() if before.get(key) != now.get(key)]
        size = sum(size_of(file) for file in entries(folder))
        notices.append(
            f"{folder} ({gigabytes(size)}) does not fit {plan.name} any more: "
            f"{', '.join(differs) or 'its format'} changed; delete it if nothing else needs it"
        )
    return notices


def _check_size(plan: StorePlan) -> None:
    limit = plan.cache.limit_gb * 1e9
    nearest = next(p for p in (plan.folder, *plan.folder.absolute().parents) if exists(p))
    free = free_bytes(nearest)
    if plan.size <= min(limit, free):
        return
    largest = max(plan.layout.columns, key=lambda column: column.bytes_per_row)
    bound = (
        f"`limit_gb` allows {plan.cache.limit_gb:g} GB" if limit <= free else f"{gigabytes(free)} are free"
    )
    raise SpecError.at(
        plan.path,
        "KD552",
        f"the cache of {plan.name} would take {gigabytes(plan.size)}, and {bound} "
        f"(most of it for `{largest.name}`, [{', '.join(map(str, largest.shape))}] a sample)",
        "name smaller layers, lower `views`, say `dtype: float16` or `topk: 20`, or raise `limit_gb`",
        on_key=True,
    )


def flush_all(sources: Mapping[str, ViewSource], processes: Processes) -> None:
    """Write new cache rows to disk; every process takes part and then sees the others' rows."""
    cached = [source for source in sources.values() if isinstance(source, CachedTeacher)]
    for source in cached:
        try:
            source.flush()
        except OSError as error:
            raise RunError.of(
                "KD554", f"the cache {source.store.folder} can't be written: {error.strerror or error}"
            ) from error
    if cached:
        processes.wait()


def damaged_rows(sources: Mapping[str, ViewSource], processes: Processes) -> list[str]:
    """Warnings of cache rows that were damaged since the last call, and made anew; every process takes part."""
    messages = []
    for source in sources.values():
        if isinstance(source, CachedTeacher):
            count = sum(processes.gather(source.store.damaged))
            source.store.damaged = 0
            if count:
                rows, were = ("row", "was") if count == 1 else ("rows", "were")
                messages.append(
                    f"{count:,} {rows} of the cache {source.store.folder} {were} not as stored (damaged on the disk, "
                    f"or changed by something else): {source.teacher.name} has computed them again"
                )
    return messages


def gigabytes(size: float) -> str:
    """A number of bytes as text: 12.3 MB or 4.56 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _input_of(spec: Spec, name: str) -> Any:
    assert spec.mimic is not None
    parts = [job.teachers[name] for job in spec.mimic.jobs.values() if name in job.teachers]
    given = next((part.input for part in parts if part.input is not None), None)
    if given is None:
        return None
    fields = given.model_dump(mode="json")
    # Caches made before `interpolation` was a key stay valid.
    return {key: value for key, value in fields.items() if key != "interpolation" or value is not None}


def _module(module: ModuleSpec) -> dict[str, Any]:
    """A module as a part of the cache's key: caches made before `outputs` was a key stay valid."""
    fields = module.model_dump(mode="json")
    return {key: value for key, value in fields.items() if key != "outputs" or value is not None}


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _refused(plan: StorePlan, error: Exception) -> RunError:
    return RunError.of(
        "KD554",
        f"the cache {plan.folder} can't be made: {getattr(error, 'strerror', None) or error}",
        "choose another `cache.dir`",
    )
