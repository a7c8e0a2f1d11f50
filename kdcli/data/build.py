"""From one side of a spec's `dataset` to its loader."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kdcli.data import BATCH_FNS, DATASETS, IMAGE_READERS, SAMPLERS
from kdcli.data.batches import ArrayReader, BadRecord, ImageSamples, Mixing, SampleReader, in_memory
from kdcli.data.draws import Draws
from kdcli.data.facts import DataFacts, describe
from kdcli.data.loaders import AspectGroups, GivenLoader, Loader, Order
from kdcli.data.sources import ArrayImages, BadSample, BatchSource, Images, OpenedData, SampleSource, Source
from kdcli.data.transforms.pipeline import Pipeline, build_pipeline
from kdcli.data.transforms.torchvision_v2 import Foreign
from kdcli.errors import SpecError, SpecPath, did_you_mean
from kdcli.spec.places import HERE, Places
from kdcli.spec.schema import Component, DataPart
from kdcli.spec.tables import Table

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
    opened: OpenedData, *, seed: int, rank: int = 0, world_size: int = 1, views: int | None = None
) -> Loader:
    """The loader of one side. views: augmentation repeats after so many epochs (a teacher cache).

    Raises SpecError and RunError KD50x to KD519.
    """
    part, source, path, train = opened.part, opened.source, opened.path, opened.train
    if isinstance(source, BatchSource):
        return GivenLoader(source)
    kwargs = part.dataloader.kwargs
    mixing = Mixing(_batch_fn(part, path), seed)
    skip = kwargs.on_bad_sample == "skip"
    bad: tuple[BadRecord, ...] = ()
    prefetch = False
    reader: ArrayReader | SampleReader
    if isinstance(source, SampleSource):
        reader = SampleReader(source, seed, mixing, train=train, skip=skip)
    else:
        pipeline = build_pipeline(part.dataset.kwargs.transformer, _pipeline_path(path))
        held = kwargs.in_memory if kwargs.in_memory is not None else isinstance(source, ArrayImages)
        if held:
            reader, bad = in_memory(source, pipeline, seed, mixing, train=train, skip=skip, path=path)
            prefetch = kwargs.num_workers > 0 and not any(isinstance(t, Foreign) for t in pipeline.transforms)
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
    return Loader(
        reader,
        order,
        opened.facts,
        batch_size=part.batch_sampler.kwargs.batch_size,
        rank=rank,
        world_size=world_size,
        views=views,
        num_workers=kwargs.num_workers,
        pin_memory=kwargs.pin_memory,
        # A second thread of tensor work helps where the main one waits for a GPU, and hurts elsewhere.
        prefetch=prefetch and torch.cuda.is_available(),
        bad_sample_budget=kwargs.bad_sample_budget if skip else None,
        bad_samples=bad,
        notices=opened.notices,
        name=source.name,
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
    if spec.type.startswith(TORCHVISION):
        from kdcli.data.classification.torchvision_datasets import torchvision_dataset

        found: Source = torchvision_dataset(spec.type.removeprefix(TORCHVISION), own, place, places, train)
        return found
    target = DATASETS.get(spec.type)
    if target is None:
        raise SpecError.at(
            (*place, "type"),
            "KD501",
            f"there is no dataset `{spec.type}`",
            did_you_mean(spec.type, sorted(DATASETS)),
        )
    constructor = target.load()
    wanted = inspect.signature(constructor).parameters
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
    if "image_reader" in wanted:
        bound["image_reader"] = _image_reader(spec.kwargs.image_reader, place, places)
    source: Source
    source = _construct(constructor, {**bound, **target.preset, **own}, spec.type, (*place, "kwargs"))
    return source


def _construct(constructor: Any, kwargs: Mapping[str, Any], name: str, path: SpecPath) -> Any:
    try:
        return constructor(**kwargs)
    except (TypeError, ValueError) as reason:
        message = re.sub(r"^[\w.<>]+\(\) ", "", str(reason))
        raise SpecError.at(path, "KD505", f"`{name}`: {message}") from reason


def _by_name(
    table: Table, component: Component, kind: str, path: SpecPath, facts: Mapping[str, Any] | None = None
) -> Any:
    target = table.get(component.type)
    if target is None:
        raise SpecError.at(
            (*path, "type"),
            "KD501",
            f"there is no {kind} `{component.type}`",
            did_you_mean(component.type, sorted(table)),
        )
    kwargs = {**(facts or {}), **target.preset, **component.kwargs}
    return _construct(target.load(), kwargs, component.type, path)


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


def _batch_fn(part: DataPart, path: SpecPath) -> Any:
    component = part.dataloader.kwargs.batch_fn
    if component is None:
        return None
    return _by_name(BATCH_FNS, component, "batch_fn", (*path, "dataloader", "kwargs", "batch_fn"))


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
        num_classes=source.num_classes,
        num_samples=len(source),
        class_names=source.class_names,
        labelled=True,
    )
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
    if component is None:
        return
    num_classes = component.kwargs.get("num_classes", 1000)
    if source.labels.max(initial=0) >= num_classes:
        raise SpecError.at(
            (*path, "dataloader", "kwargs", "batch_fn", "kwargs", "num_classes"),
            "KD515",
            f"`{component.type}` has {num_classes} classes and the data a label {source.labels.max()}",
        )
