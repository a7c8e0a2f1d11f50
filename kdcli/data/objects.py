"""Data that a caller has in memory: a Dataset's items, or batches that something else makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.data.batches import BadRecord
from kdcli.data.draws import Ids
from kdcli.data.facts import DataFacts
from kdcli.data.image_readers import pixels_of
from kdcli.data.loaders import Loader
from kdcli.data.sources import BadSample, Batch
from kdcli.errors import RunError


class DatasetImages:
    """A dataset of (image, label) that is read item by item; images are PIL's, uint8 [C, H, W] or [H, W, C] arrays.

    labels: int64 [N]; else the dataset's `targets` or `labels`, else every item is asked for its own. class_names:
    else the dataset's `classes`; without names the greatest label tells how many there are.
    """

    notices: tuple[str, ...] = ()

    def __init__(
        self, dataset: Any, labels: Sequence[int] | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        self.dataset = dataset
        found = labels
        for attribute in ("targets", "labels"):
            found = getattr(dataset, attribute, None) if found is None else found
        found = [dataset[index][1] for index in range(len(dataset))] if found is None else found
        self.labels: Ids = np.asarray(found, dtype=np.int64)
        named = getattr(dataset, "classes", None) if class_names is None else class_names
        self.class_names = None if named is None else tuple(map(str, named))
        self.num_classes = int(self.labels.max(initial=-1)) + 1 if named is None else len(named)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Tensor:
        """uint8 [C, H, W]; raises BadSample."""
        try:
            image = self.dataset[index][0]
            if isinstance(image, Tensor):
                pixels = image
            else:
                array = np.asarray(image) if not hasattr(image, "mode") else pixels_of(image, _mode(image))
                array = array[:, :, None] if array.ndim == 2 else array
                pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
        except Exception as reason:  # the dataset's own code raises anything
            raise BadSample(self.name(index), str(reason) or type(reason).__name__) from reason
        if pixels.dtype != torch.uint8 or pixels.dim() != 3:
            raise BadSample(
                self.name(index), f"it is {pixels.dtype} {list(pixels.shape)}, not uint8 [C, H, W]"
            )
        return pixels

    def name(self, index: int) -> str:
        """The dataset and the number."""
        return f"{type(self.dataset).__name__}[{index}]"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> DatasetImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        return DatasetImages(self.dataset, np.asarray(numbers, dtype=np.int64)[self.labels].tolist(), names)


def _mode(image: Any) -> Any:
    return "GRAY" if image.mode in ("L", "1") else "RGB"


class BatchSource:
    """Batches that something else makes (a DataLoader): mappings with `image`, or pairs (image, labels).

    It can be gone through again for each epoch, and has a length. What is not said of it is unknown: num_samples
    (else that of the loader's `dataset`), num_classes, class_names. Order and augmentation are its maker's, so that
    a resumed run sees other pixels.
    """

    notices = ("the batches are made outside kdcli: a resumed run may see others than an uninterrupted one",)

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        num_samples: int | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.batches = batches
        first = self.batch(next(iter(batches)), 0)
        image = first["image"]
        self.batch_size = len(image)
        try:
            self.length = len(batches)  # type: ignore[arg-type]
        except TypeError as reason:
            raise RunError.of(
                "KD542", "an iterable of batches has no length", "give it a `__len__`: batches an epoch"
            ) from reason
        own = getattr(batches, "dataset", None)
        if num_samples is None and hasattr(own, "__len__"):
            num_samples = len(own)  # type: ignore[arg-type]
        names = None if class_names is None else tuple(class_names)
        self.facts = DataFacts(
            shape=tuple(image.shape[1:]) if image.dim() == 4 else None,
            num_classes=num_classes if names is None else len(names),
            num_samples=num_samples,
            class_names=names,
            labelled="labels" in first,
        )

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """What to call one of the samples."""
        return f"sample {index}"

    def batch(self, given: Any, start: int) -> Batch:
        """A batch as kdcli's own are; start: how many samples of the epoch came before it."""
        batch = (
            dict(given) if isinstance(given, Mapping) else dict(zip(("image", "labels"), given, strict=False))
        )
        if not isinstance(batch.get("image"), Tensor):
            raise RunError.of(
                "KD542",
                "a batch has no tensor `image`",
                "give mappings with `image`, or pairs (image, labels)",
            )
        batch.setdefault("indices", torch.arange(start, start + len(batch["image"])))
        return MappingProxyType(batch)


class GivenLoader(Loader):
    """The batches of a BatchSource, epoch by epoch."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self.facts, self.batch_size, self.notices = source.facts, source.batch_size, source.notices
        self.bad_samples: list[BadRecord] = []

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one pass, from number `start` on."""
        seen = 0
        for number, given in enumerate(islice(self.source.batches, len(self.source))):
            batch = self.source.batch(given, seen)
            seen += len(batch["image"])
            if number >= start:
                yield batch

    def some(self, ids: Sequence[int]) -> Batch:
        """Nothing: single samples can't be asked for."""
        return MappingProxyType({})

    def name_of(self, sample: int) -> str:
        """What to call one of the samples."""
        return self.source.name(sample)

    def close(self) -> None:
        """Nothing is open."""
