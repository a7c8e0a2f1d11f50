"""From one side of a spec's `dataset` to its loader."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kdcli.data import BATCH_FNS, DATASETS, IMAGE_READERS, SAMPLERS
from kdcli.data.batches import (
    ArrayReader,
    BadRecord,
    ImageSamples,
    Mixing,
    Normalizing,
    SampleReader,
    in_memory,
)
from kdcli.data.classification.images import DatasetImages
from kdcli.data.draws import Draws
from kdcli.data.facts import DataFacts, describe
from kdcli.data.loaders import GivenLoader, Loader
from kdcli.data.order import AspectGroups, Order
from kdcli.data.sources import (
    ArrayImages,
    BadSample,
    BatchSource,
    Images,
    ImageSource,
    OpenedData,
    SampleSource,
    Source,
)
from kdcli.data.transforms.pipeline import Foreign, Pipeline, build_pipeline
from kdcli.data.workers import automatic_workers, local_processes, usable_cores
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.places import HERE, Places
from kdcli.spec.plugins import constructed, is_own, lookup, mixes_labels
from kdcli.spec.schema import Component, DataPart
from kdcli.spec.tables import Table, Target

TORCHVISION = "torchvision."


def open_source(source: Source | BatchSource, part: DataPart, *, train: bool, path: SpecPath) -> OpenedData:
    """One side of the data from its source: what is true of it, its first readable image decoded.

    Raises SpecError KD509 without samples, KD515 and KD517 where labels or images don't fit the spec.
    """
    if len(source) == 0:
        raise SpecError.at((*path, "dataset"), "KD509", f"`{part.dataset.type}` has no samples")
    if isinstance(source, (SampleSource, BatchSource)):
        facts = source.facts
    else:
        pipeline = build_pipeline(part.dataset.kwargs.transformer, _pipeline_path(path))
        facts = _facts(source, pipeline, part, path, train)
        _check_labels(source, part, path)
    notices = tuple(getattr(source, "notices", ()))
    return OpenedData(part=part, train=train, path=path, source=source, facts=facts, notices=notices)


def build_loader(
    opened: OpenedData,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    views: int | None = None,
    on_cuda: bool = False,
    as_bytes: bool = False,
) -> Loader:
    """The loader of one side. views: augmentation repeats after so many epochs (a teacher cache).

    on_cuda: the batches go to a CUDA device, from pinned memory unless the spec says `pin_memory: false`. as_bytes:
    images of a classifier stay uint8 where nothing is left but to normalise them, and `to_device` does that.

    Raises SpecError and RunError KD50x to KD519.
    """
    part, source, path, train = opened.part, opened.source, opened.path, opened.train
    if isinstance(source, BatchSource):
        return GivenLoader(source, seed)
    kwargs = part.dataloader.kwargs
    mixing = Mixing(_batch_fn(part, path, opened.facts.num_classes), seed)
    skip = kwargs.on_bad_sample == "skip"
    bad: tuple[BadRecord, ...] = ()
    prefetch = False
    normalizing: Normalizing | None = None
    reader: ArrayReader | SampleReader
    if isinstance(source, SampleSource):
        reader = SampleReader(source, seed, mixing, train=train, skip=skip)
    else:
        # Mixed images are no bytes any more.
        shape = opened.facts.shape if as_bytes and mixing.function is None else None
        transformer = part.dataset.kwargs.transformer
        pipeline = build_pipeline(transformer, _pipeline_path(path), as_bytes=shape is not None)
        if shape is not None:
            normalizing = Normalizing(pipeline, shape[0])
        held = kwargs.in_memory if kwargs.in_memory is not None else isinstance(source, ArrayImages)
        if held:
            _not_scaled(source, path)
            reader, bad = in_memory(source, pipeline, seed, mixing, train=train, skip=skip, path=path)
            prefetch = not any(isinstance(t, Foreign) for t in pipeline.transforms)
        else:
            samples = ImageSamples(source, pipeline, opened.facts)
            reader = SampleReader(samples, seed, mixing, train=train, skip=skip)
    order = _order(part, source, path, train=train, seed=seed, rank=rank, world_size=world_size)
    if not order.batches(0) and (train or rank == 0):
        raise SpecError.at(
            (*path, "batch_sampler", "kwargs", "drop_last"),
            "KD509",
            f"{len(source)} samples don't fill one batch of "
            f"{world_size} x {part.batch_sampler.kwargs.batch_size}, and `drop_last` drops it",
        )
    workers, notices = _workers(opened, reader, order, on_cuda=on_cuda, world_size=world_size)
    return Loader(
        reader,
        order,
        opened.facts,
        batch_size=part.batch_sampler.kwargs.batch_size,
        rank=rank,
        world_size=world_size,
        views=views,
        num_workers=workers,
        pin_memory=on_cuda and kwargs.pin_memory is not False,
        # A second thread of tensor work helps where the main one waits for a GPU, and hurts elsewhere.
        prefetch=prefetch and workers > 0 and on_cuda,
        bad_sample_budget=kwargs.bad_sample_budget if skip else None,
        every_batch=train,
        normalizing=normalizing,
        bad_samples=bad,
        notices=(*opened.notices, *notices),
        name=source.name,
    )


def unaugmented_loader(
    train: OpenedData,
    test: OpenedData,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    on_cuda: bool = False,
) -> Loader | None:
    """The training data's first epoch with the transforms of the test side, nothing mixed.

    None where a side makes its samples or batches itself, so that its augmentation can't be told apart.
    """
    part, source = train.part, train.source
    if not all(isinstance(side.source, (ArrayImages, ImageSource)) for side in (train, test)):
        return None
    assert isinstance(source, (ArrayImages, ImageSource))
    kwargs, mixing = part.dataloader.kwargs, Mixing(None, seed)
    skip = kwargs.on_bad_sample == "skip"
    pipeline = build_pipeline(test.part.dataset.kwargs.transformer, _pipeline_path(test.path))
    reader: ArrayReader | SampleReader
    if isinstance(source, ArrayImages):
        reader = ArrayReader(source, pipeline, seed, mixing)
    else:
        # Never held in memory: it is read once.
        samples = ImageSamples(source, pipeline, train.facts)
        reader = SampleReader(samples, seed, mixing, train=True, skip=skip)
    order = _order(part, source, train.path, train=True, seed=seed, rank=rank, world_size=world_size)
    workers, _ = _workers(train, reader, order, on_cuda=on_cuda, world_size=world_size)
    return Loader(
        reader,
        order,
        train.facts,
        batch_size=part.batch_sampler.kwargs.batch_size,
        rank=rank,
        world_size=world_size,
        num_workers=workers,
        pin_memory=on_cuda and kwargs.pin_memory is not False,
        bad_sample_budget=kwargs.bad_sample_budget if skip else None,
        name=source.name,
    )


def _workers(
    opened: OpenedData, reader: ArrayReader | SampleReader, order: Order, *, on_cuda: bool, world_size: int
) -> tuple[int, list[str]]:
    """The number of data workers of one side, and a sentence about it where it was not written as a number."""
    kwargs = opened.part.dataloader.kwargs
    if kwargs.num_workers != "auto":
        return kwargs.num_workers, []
    batches = order.batches(0)
    cores, processes = usable_cores(), local_processes(world_size)
    in_memory = isinstance(reader, ArrayReader)
    workers = automatic_workers(
        cores=cores,
        processes=processes,
        on_cuda=on_cuda,
        in_memory=in_memory,
        images=sum(map(len, batches)),
        batches=len(batches),
    )
    # Of the default that changes nothing there is nothing to say, nor of the same twice.
    written = "num_workers" in kwargs.model_fields_set
    if in_memory or not opened.train or not (workers or written):
        return workers, []
    shared = f" for {processes} processes" if processes > 1 else ""
    unit = "core" if cores == 1 else "cores"
    return workers, [
        f"`num_workers: auto` is {workers} here: {cores:g} {unit}{shared}, {len(batches):,} batches"
    ]


def _not_scaled(source: Images, path: SpecPath) -> None:
    """Raise SpecError KD292 where images that are held in memory would be decoded smaller for each epoch's crop."""
    if getattr(getattr(source, "reader", None), "scaled_decode", False):
        raise SpecError.at(
            (*path, "dataloader", "kwargs", "in_memory"),
            "KD292",
            "`in_memory` decodes each image once, and `scaled_decode` as large as each epoch's crop needs it",
            "take one of them out",
        )


def _pipeline_path(path: SpecPath) -> SpecPath:
    return (*path, "dataset", "kwargs", "transformer")


def build_source(
    part: DataPart,
    *,
    train: bool,
    path: SpecPath,
    places: Places = HERE,
    aligned: bool = True,
    classes: Mapping[int, str] | None = None,
) -> Source:
    """The dataset itself, by name.

    A constructor's positional parameters are facts, bound by name: path (of the dataset in the spec),
    places, train, image_reader (built), transformer (components), alignment, aligned, classes.
    """
    place = (*path, "dataset")
    spec = part.dataset
    own: dict[str, Any] = dict(spec.kwargs.model_extra or {})
    if spec.type.startswith(TORCHVISION) and not is_own(spec.type):
        from kdcli.data.classification.torchvision_datasets import torchvision_dataset

        found: Source
        found = torchvision_dataset(spec.type.removeprefix(TORCHVISION), own, place, places, train)
        return found
    target = lookup(DATASETS, spec.type, path=(*place, "type"), code="KD501", what="dataset")
    wanted = _wanted(target)
    facts: dict[str, Any] = {
        "path": place,
        "places": places,
        "train": train,
        "transformer": spec.kwargs.transformer,
        "alignment": part.dataloader.kwargs.alignment,
        "aligned": aligned,
        "classes": classes,
    }
    bound = {name: value for name, value in facts.items() if name in wanted}
    if "image_reader" in wanted and (not target.own or spec.kwargs.image_reader is not None):
        bound["image_reader"] = _image_reader(spec.kwargs.image_reader, place, places)
    source = constructed(target, {**bound, **own}, spec.type, (*place, "kwargs"))
    if target.own and not isinstance(source, (ArrayImages, ImageSource, SampleSource)):
        if not all(callable(getattr(source, method, None)) for method in ("__len__", "__getitem__")):
            raise SpecError.at(
                (*place, "type"),
                "KD505",
                f"`{spec.type}` gives a `{type(source).__name__}`, which is no dataset",
                "it gives a torch Dataset of (image, label), or a source of kdcli.data.sources",
            )
        try:
            source = DatasetImages(source)
        except ValueError as reason:
            raise SpecError.at((*place, "type"), "KD505", f"`{spec.type}`: {reason}") from reason
    found = source
    return found


def _wanted(target: Target) -> set[str]:
    """The parameters that kdcli may bind by name: of own code the positional ones, as keyword-only are the spec's."""
    parameters = inspect.signature(target.load()).parameters
    return {name for name, p in parameters.items() if not target.own or p.kind is p.POSITIONAL_OR_KEYWORD}


def _by_name(
    table: Table, component: Component, kind: str, path: SpecPath, facts: Mapping[str, Any] | None = None
) -> Any:
    target = lookup(table, component.type, path=(*path, "type"), code="KD501", what=kind)
    given = facts or {}
    if target.own:
        wanted = _wanted(target)
        given = {name: value for name, value in given.items() if name in wanted}
    return constructed(target, {**given, **component.kwargs}, component.type, path)


def _image_reader(component: Component | None, place: SpecPath, places: Places) -> Any:
    path = (*place, "kwargs", "image_reader")
    if component is None:
        raise SpecError.at(
            (*place, "kwargs"),
            "KD519",
            "this dataset needs an `image_reader`",
            "write `image_reader: {type: fs_pillow, kwargs: {image_dir: ..., color_mode: RGB}}`",
        )
    return _by_name(IMAGE_READERS, component, "image reader", path, {"path": path, "places": places})


def _batch_fn(part: DataPart, path: SpecPath, num_classes: int | None) -> Any:
    """What mixes batches; of kdcli's own, labels of as many classes as the data has, where the spec says no number."""
    component = part.dataloader.kwargs.batch_fn
    if component is None:
        return None
    facts = {"num_classes": num_classes} if num_classes and not is_own(component.type) else None
    return _by_name(
        BATCH_FNS, component, "batch function", (*path, "dataloader", "kwargs", "batch_fn"), facts
    )


def grouped_batches(opened: OpenedData) -> int | None:
    """Batches an epoch of one process where images are grouped by height/width; None where they are not."""
    if opened.part.batch_sampler.type != "aspect_ratio_group":
        return None
    order = _order(opened.part, opened.source, opened.path, train=opened.train, seed=0, rank=0, world_size=1)
    return len(order.batches(0))


def _order(
    part: DataPart, source: Any, path: SpecPath, *, train: bool, seed: int, rank: int, world_size: int
) -> Order:
    kwargs = part.batch_sampler.kwargs
    drop = kwargs.drop_last and train
    if part.batch_sampler.type == "aspect_ratio_group":
        ratios = source.aspect_ratios()
        return AspectGroups(
            ratios, kwargs.aspect_grouping, kwargs.batch_size, train, seed, rank, world_size, drop
        )
    facts = {
        "num_samples": len(source),
        "batch_size": kwargs.batch_size,
        "train": train,
        "seed": seed,
        "rank": rank,
        "world_size": world_size,
        "drop_last": drop,
    }
    order: Order = _by_name(
        SAMPLERS, kwargs.sampler, "sampler", (*path, "batch_sampler", "kwargs", "sampler"), facts
    )
    return order


def _facts(source: Images, pipeline: Pipeline, part: DataPart, path: SpecPath, train: bool) -> DataFacts:
    """The facts of a side from its opened source: what the data states replaces what the spec implies."""
    facts = replace(
        describe(part, train=train),
        num_classes=None if source.labels is None else source.num_classes,
        num_samples=len(source),
        class_names=source.class_names,
        labels="none" if source.labels is None else "classes",
        lowest_label=None if source.labels is None or not source.labels.size else int(source.labels.min()),
        heads=None if source.labels is None or source.labels.ndim == 1 else source.labels.shape[1],
    )
    if getattr(source, "mean", None) is not None:
        facts = replace(facts, mean=source.mean, std=source.std)  # type: ignore[union-attr]
    for index in range(min(len(source), 100)):
        try:
            image = source.read(index)[None]
        except BadSample:
            continue  # reported by whoever reads that sample
        try:
            shape = pipeline(image, Draws(0, 0, np.zeros(1, dtype=np.int64))).shape[1:]
        except (ValueError, TypeError, RuntimeError) as reason:
            raise SpecError.at(
                (*path, "dataset", "kwargs", "transformer"),
                "KD517",
                f"`{source.name(index)}` does not fit the transforms: {reason}",
            ) from reason
        return replace(facts, shape=(shape[0], shape[1], shape[2]))
    return facts


def _check_labels(source: Images, part: DataPart, path: SpecPath) -> None:
    component = part.dataloader.kwargs.batch_fn
    if component is None or source.labels is None or not mixes_labels(component):
        return
    num_classes = component.kwargs.get("num_classes", source.num_classes)
    if source.labels.max(initial=0) >= num_classes:
        raise SpecError.at(
            (*path, "dataloader", "kwargs", "batch_fn", "kwargs", "num_classes"),
            "KD515",
            f"`{component.type}` has {num_classes} classes and the data a label {source.labels.max()}",
        )
