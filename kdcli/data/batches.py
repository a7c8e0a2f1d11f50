"""From a key (epoch, batch, ids) to a batch: a pure function, run here or in a data worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from kdcli.data.draws import MIXING, Draws, EpochDraws, Ids, generator
from kdcli.data.facts import DataFacts
from kdcli.data.sources import ArrayImages, BadSample, Images, ImageSource, SampleSource
from kdcli.data.transforms.geometry import RandomResizedCrop, Resize
from kdcli.data.transforms.pipeline import Pipeline
from kdcli.errors import RunError, SpecError, SpecPath

MixFn = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


class BatchKey(NamedTuple):
    """What a batch is a function of, besides the spec.

    view is the epoch that augmentation sees, number the batch's place in the epoch over all processes.
    """

    epoch: int
    view: int
    number: int
    ids: Ids


class BadRecord(NamedTuple):
    """A sample that could not be read. fits is false where it was read and no transform could take it."""

    sample: int
    name: str
    reason: str
    fits: bool = True


Loaded = tuple[dict[str, Any], tuple[BadRecord, ...]]
"""A batch and the bad samples met on the way; the batch is empty where the run is to stop."""


class BatchReader(Protocol):
    """Reads the batch of a key; picklable, without state. reading: tells which sample it reads, where it has one."""

    reading: Reading | None

    def __getitem__(self, key: BatchKey) -> Loaded: ...


class Reading:
    """The sample that each data worker reads now, in memory that all processes see; the main process is the last."""

    def __init__(self, num_workers: int) -> None:
        self._samples = torch.full((num_workers + 1,), -1, dtype=torch.int64)
        if num_workers:
            self._samples.share_memory_()  # type: ignore[no-untyped-call]

    def begins(self, sample: int) -> None:
        """This process begins with a sample."""
        worker = get_worker_info()
        self._samples[-1 if worker is None else worker.id] = sample

    def of(self, worker: int | None) -> int | None:
        """The sample of a worker, None: of the main process; None before the first."""
        sample = int(self._samples[-1 if worker is None else worker])
        return None if sample < 0 else sample


class Mixing:
    """Applies the `batch_fn` (mixup, cutmix) to a finished batch, as a function of (seed, epoch, batch)."""

    def __init__(self, function: MixFn | None, seed: int) -> None:
        self.function, self.seed = function, seed

    def __call__(self, batch: dict[str, Any], key: BatchKey) -> dict[str, Any]:
        """The mixed batch, or the batch itself."""
        if self.function is None or not batch:
            return batch
        return self.function(batch, generator(self.seed, key.epoch, key.number, stream=MIXING))


class ArrayReader:
    """Batches from images in memory: one gather, then every transform on the whole batch.

    replaced maps a sample to the one that stands for it (itself, or -1 for none).
    """

    def __init__(
        self,
        source: ArrayImages,
        pipeline: Pipeline,
        seed: int,
        mixing: Mixing,
        *,
        start: int = 0,
        replaced: Ids | None = None,
    ) -> None:
        self.images = source.images
        self.labels = None if source.labels is None else torch.from_numpy(source.labels)
        self.pipeline, self.seed, self.mixing = pipeline, seed, mixing
        self.start, self.replaced = start, replaced
        self.reading: Reading | None = None
        self._together = EpochDraws(seed, 0, len(self.images))

    def __getitem__(self, key: BatchKey) -> Loaded:
        ids = key.ids
        if self.replaced is not None:
            ids = self.replaced[ids]
            ids = ids[ids >= 0]
            if not len(ids):
                return {}, ()
        indices = torch.from_numpy(ids)
        together = self._together
        if together.epoch != key.view:
            together = self._together = EpochDraws(self.seed, key.view, len(self.images))
        draws = Draws(self.seed, key.view, ids, together=together)
        try:
            image = self.pipeline(self.images[indices], draws, start=self.start)
        except ValueError as reason:
            return {}, (BadRecord(int(ids[0]), f"sample {ids[0]}", str(reason), False),)
        batch = {"image": image, **self._labels_of(indices), "indices": indices}
        return self.mixing(batch, key), ()

    def _labels_of(self, indices: Tensor) -> dict[str, Tensor]:
        return {} if self.labels is None else {"labels": self.labels[indices]}


class OfSample(ValueError):
    """What is wrong with one sample of a batch. index: of the sample in its source."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class SampleReader:
    """Batches sample by sample, with what is to happen to bad ones.

    skip false: the first bad sample ends the batch. Else a training sample is replaced by the next good
    one in the dataset, a test sample is left out.
    """

    tries = 100

    def __init__(self, source: SampleSource, seed: int, mixing: Mixing, *, train: bool, skip: bool) -> None:
        self.source, self.seed, self.mixing = source, seed, mixing
        self.train, self.skip = train, skip
        self.reading: Reading | None = None

    def __getitem__(self, key: BatchKey) -> Loaded:
        samples: list[Mapping[str, Any]] = []
        indices: list[int] = []
        bad: list[BadRecord] = []
        for sample in key.ids:
            for offset in range(self.tries if self.skip and self.train else 1):
                index = (int(sample) + offset) % len(self.source)
                draws = Draws(self.seed, key.view, np.array([index], dtype=np.int64))
                if self.reading is not None:
                    self.reading.begins(index)
                try:
                    samples.append(self.source.load(index, draws))
                    indices.append(index)
                    break
                except BadSample as reason:
                    bad.append(BadRecord(index, reason.name, reason.reason))
                except ValueError as reason:
                    return {}, (BadRecord(index, self.source.name(index), str(reason), False),)
            if bad and not self.skip:
                return {}, tuple(bad)
        if not samples:
            return {}, tuple(bad)
        chosen = np.array(indices, dtype=np.int64)
        try:
            batch = self.source.collate(samples, chosen)
        except ValueError as reason:
            at = reason.index if isinstance(reason, OfSample) else indices[0]
            return {}, (BadRecord(at, self.source.name(at), str(reason), False),)
        return self.mixing(batch, key), tuple(bad)


class ImageSamples:
    """A classification source with its transforms, as samples to be batched one by one.

    Once images are of one size they wait, as bytes mostly, for the batch to be made: then each is finished and written
    to its place. To transform the batch at once costs 2.5 times as much at 224 pixels, as no cache holds it.
    """

    def __init__(self, source: Images, pipeline: Pipeline, facts: DataFacts) -> None:
        self.source, self.pipeline, self.facts = source, pipeline, facts
        self.labels = source.labels
        self.alone = pipeline.alone()

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int, draws: Draws) -> Mapping[str, Any]:
        """One image [C, H, W] after the transforms that make it one size, and its draws for the others."""
        pixels, start = self._read(index, draws)
        return {"image": self.pipeline.part(pixels, draws, start, self.alone)[0], "draws": draws}

    def _read(self, index: int, draws: Draws) -> tuple[Tensor, int]:
        """Images [1, C, H, W], and how many transforms are done: one, where the reader did its part of it."""
        drawn = getattr(self.source, "read_drawn", None)
        if drawn is not None:
            return drawn(index, draws)[None], 0
        reads = getattr(self.source, "read_reduced", None)
        first = self.pipeline.transforms[0] if self.pipeline.transforms else None
        if reads is None or not isinstance(first, (Resize, RandomResizedCrop)):
            return self.source.read(index)[None], 0
        own = draws.of(0)
        pixels, whole, by = reads(index, lambda height, width: first.reduction(height, width, own))
        if by == 1:
            return pixels[None], 0
        return first.of_reduced(pixels[None], whole, by, own), 1

    def collate(self, samples: Sequence[Mapping[str, Any]], indices: Ids) -> dict[str, Any]:
        """image float32 [B, C, H, W], indices, labels where there are any; raises ValueError where sizes differ."""
        labels = {} if self.labels is None else {"labels": torch.from_numpy(self.labels[indices])}
        batch = torch.empty(0)
        for row, sample in enumerate(samples):
            try:
                image = self.pipeline(sample["image"][None], sample["draws"], start=self.alone)[0]
            except ValueError as reason:
                raise OfSample(int(indices[row]), str(reason)) from reason
            if not row:
                batch = image.new_empty((len(samples), *image.shape))
            elif image.shape != batch.shape[1:]:
                raise self._other_size(batch[0], image, int(indices[row]))
            batch[row] = image
        return {"image": batch, **labels, "indices": torch.from_numpy(indices)}

    def _other_size(self, first: Tensor, image: Tensor, index: int) -> ValueError:
        return ValueError(
            f"it comes out as {size_text(first)} and `{self.name(index)}` as {size_text(image)}; "
            "end with one size for all"
        )

    def name(self, index: int) -> str:
        """The sample's file."""
        return self.source.name(index)

    def aspect_ratios(self) -> NDArray[np.float64]:
        """Height/width of every sample; reads each."""
        sizes = [self.source.read(i).shape for i in range(len(self))]
        return np.array([h / w for _, h, w in sizes])


class Normalizing:
    """The tail of a pipeline for images that came as bytes, on their device: a table of what each byte becomes.

    The table is made by the pipeline itself on the CPU, so that the values are the same bits on any device.
    """

    def __init__(self, pipeline: Pipeline, channels: int) -> None:
        levels = torch.arange(256, dtype=torch.uint8).expand(1, channels, 1, 256)
        self._table = pipeline.run_tail(levels.contiguous()).reshape(-1)
        self._first = 256 * torch.arange(channels, dtype=torch.int32).reshape(-1, 1, 1)
        self._there: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Of uint8 images [n, C, H, W] the float32 ones."""
        device = images.device
        if device not in self._there:
            self._there[device] = self._table.to(device), self._first.to(device)
        table, first = self._there[device]
        places = images.to(torch.int32) + first
        return table.index_select(0, places.reshape(-1)).reshape(images.shape)


NORMALIZING = "normalizing"
"""Where a batch holds what its images of bytes are still to go through."""


def marked(batch: dict[str, Any], normalizing: Normalizing | None) -> dict[str, Any]:
    """The batch; where its images are bytes, with what is still to be done with them."""
    if normalizing is None or not batch or batch["image"].dtype != torch.uint8:
        return batch
    return {**batch, NORMALIZING: normalizing}


def normalized(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its images normalised, where that is still to be done."""
    if NORMALIZING not in batch:
        return batch
    done = {**batch, "image": batch[NORMALIZING](batch["image"])}
    del done[NORMALIZING]
    return done


def size_text(image: Tensor) -> str:
    """3x32x32, for messages."""
    return "x".join(str(n) for n in image.shape)


def in_memory(
    source: Images,
    pipeline: Pipeline,
    seed: int,
    mixing: Mixing,
    *,
    train: bool,
    skip: bool,
    path: SpecPath,
) -> tuple[ArrayReader, tuple[BadRecord, ...]]:
    """A reader of images decoded once and held as bytes, with the transforms that draw nothing already applied."""
    nothing = Draws(seed, 0, np.zeros(1, dtype=np.int64))
    start = pipeline.head()
    if isinstance(source, ArrayImages):
        images = source.images
        if start:
            chunks = torch.split(images, 4096)
            images = torch.cat([pipeline.run_head(chunk, nothing) for chunk in chunks])
        return ArrayReader(replace(source, images=images), pipeline, seed, mixing, start=start), ()
    images, bad = _decoded(source, pipeline, skip=skip, path=path)
    replaced = _replaced(len(source), [record.sample for record in bad], train) if bad else None
    held = ArrayImages(
        images=images, labels=source.labels, num_classes=source.num_classes, class_names=source.class_names
    )
    return ArrayReader(held, pipeline, seed, mixing, start=start, replaced=replaced), bad


def _decoded(
    source: ImageSource, pipeline: Pipeline, *, skip: bool, path: SpecPath
) -> tuple[torch.Tensor, tuple[BadRecord, ...]]:
    """uint8 [N, C, H, W], bad samples left black; without `skip` the first bad one ends it."""
    nothing = Draws(0, 0, np.zeros(1, dtype=np.int64))
    held: torch.Tensor | None = None
    bad: list[BadRecord] = []
    for index in range(len(source)):
        try:
            image = pipeline.run_head(source.read(index)[None], nothing)[0]
        except BadSample as reason:
            bad.append(BadRecord(index, reason.name, reason.reason))
            if not skip:
                break
            continue
        if held is None:
            held = torch.zeros((len(source), *image.shape), dtype=torch.uint8)
        if image.shape != held.shape[1:]:
            raise SpecError.at(
                (*path, "dataloader", "kwargs", "in_memory"),
                "KD508",
                f"`in_memory` wants images of one size; `{source.name(index)}` is {size_text(image)} and "
                f"others {size_text(held[0])}",
                "begin the transformer list with `torch_resize` to [height, width]",
            )
        held[index] = image
    if held is None:
        raise RunError.of("KD511", f"`{bad[0].name}` can't be read, nor any sample: {bad[0].reason}")
    return held, tuple(bad)


def _replaced(total: int, bad: list[int], train: bool) -> Ids:
    """int64 [total]: each sample itself; a bad one the next good one in training, -1 in test."""
    stands = np.arange(total, dtype=np.int64)
    if not train:
        stands[bad] = -1
        return stands
    unusable = set(bad)
    for index in bad:
        stands[index] = next(i % total for i in range(index + 1, index + total) if i % total not in unusable)
    return stands
