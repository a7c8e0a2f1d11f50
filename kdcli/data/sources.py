"""Kinds of dataset before batches are made: arrays in memory, images, whole samples, batches made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.draws import Draws, Ids
from kdcli.data.facts import DataFacts
from kdcli.errors import RunError, SpecPath
from kdcli.spec.schema import DataPart

Batch = Mapping[str, Any]
"""A read-only batch: `image` float32 [B, C, H, W], `indices` int64 [B], and with labels `labels` int64 [B], ..."""


class BadSample(Exception):
    """One sample that cannot be read: which, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayImages:
    """A classification dataset in memory: images uint8 [N, C, H, W], labels int64 [N], None without labels."""

    images: Tensor
    labels: Ids | None
    num_classes: int
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W]."""
        return self.images[index]

    def name(self, index: int) -> str:
        """What to call this sample in a message."""
        return f"sample {index}"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> ArrayImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        assert self.labels is not None
        labels = np.asarray(numbers, dtype=np.int64)[self.labels]
        return replace(self, labels=labels, class_names=names, num_classes=len(names))

    def without_labels(self) -> ArrayImages:
        """The images alone."""
        return replace(self, labels=None, class_names=None, num_classes=0)


@runtime_checkable
class ImageSource(Protocol):
    """A classification dataset that is read image by image.

    labels: int64 [N], None for images without labels; num_classes is 0 then.
    """

    labels: Ids | None
    num_classes: int
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W]; raises BadSample."""
        ...

    def name(self, index: int) -> str:
        """What to call this sample in a message: its file."""
        ...

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> Self:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        ...


@runtime_checkable
class SampleSource(Protocol):
    """A dataset that augments and batches its samples itself (detection).

    It must be picklable, and hold no random state: everything random comes from `draws`, whose ids are
    the one sample's.
    """

    facts: DataFacts

    def __len__(self) -> int: ...

    def load(self, index: int, draws: Draws) -> Mapping[str, Any]:
        """One augmented sample; raises BadSample."""
        ...

    def collate(self, samples: Sequence[Mapping[str, Any]], indices: Ids) -> dict[str, Any]:
        """Samples as one batch; indices int64 [B] are their places in the dataset."""
        ...

    def name(self, index: int) -> str:
        """What to call this sample in a message: its file."""
        ...

    def aspect_ratios(self) -> NDArray[np.float64]:
        """Height/width of every sample."""
        ...


@runtime_checkable
class Located(Protocol):
    """A dataset whose samples are files."""

    def located(self) -> tuple[Sequence[str], Sequence[str]] | None:
        """The file of each sample, and the folders that they lie in; None where these are not known."""
        ...


Images = ArrayImages | ImageSource
"""A classification dataset."""

Source = ArrayImages | ImageSource | SampleSource
"""What a dataset's constructor may return."""


ALSO_LABELS = ("label", "target", "targets")
"""How others call the labels in a batch: without them it would be one of images alone."""


class BatchSource:
    """Batches that something else makes (a DataLoader): mappings with `image`, or pairs (image, labels).

    It can be gone through again for each epoch, and has a length. What is not said of it is unknown: num_samples
    (else that of the loader's `dataset`), num_classes, class_names. Order and augmentation are its maker's, so that
    a resumed run sees other pixels.
    """

    notices: tuple[str, ...] = (
        "the batches are made outside kdcli: a resumed run may see others than an uninterrupted one",
    )

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        num_samples: int | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.batches = batches
        try:
            taken = next(iter(batches))
        except StopIteration:
            raise RunError.of(
                "KD542",
                "the iterable of batches gives none",
                "has it fewer items than a batch, and `drop_last`?",
            ) from None
        first = self.batch(taken, 0)
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
            labels="classes" if "labels" in first else "none",
            batched=True,
            identified=isinstance(taken, Mapping) and "indices" in taken,
        )

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """What to call one of the samples."""
        return f"sample {index}"

    def epoch(self, seed: int, epoch: int) -> Iterator[Any]:
        """The batches of one pass, as they are given."""
        yield from self.batches

    def batch(self, given: Any, start: int) -> Batch:
        """A batch as kdcli's own are; start: how many samples of the epoch came before it."""
        batch = (
            dict(given) if isinstance(given, Mapping) else dict(zip(("image", "labels"), given, strict=False))
        )
        other = next((name for name in ALSO_LABELS if name in batch), None)
        if other is not None and "labels" not in batch:
            message = f"a batch has `{other}`, and labels are read under the name `labels`"
            raise RunError.of("KD542", message, "name it so; or say `labels: none`, and it is left out")
        if not isinstance(batch.get("image"), Tensor):
            raise RunError.of(
                "KD542",
                "a batch has no tensor `image`",
                "give mappings with `image`, or pairs (image, labels)",
            )
        batch.setdefault("indices", torch.arange(start, start + len(batch["image"])))
        return MappingProxyType(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedData:
    """A dataset that has been opened: its lists and labels are read, its samples not yet.

    part: as the spec gives it; path: where that stands, ("dataset", "train"). facts: what the source says, with
    the shape of its first readable image after the transforms. notices: plain sentences for the user.
    """

    part: DataPart
    train: bool
    path: SpecPath
    source: Source | BatchSource
    facts: DataFacts
    notices: tuple[str, ...] = ()

    @property
    def labels(self) -> Ids | None:
        """The class of each sample; None where only its batches say it, or nothing does."""
        return None if isinstance(self.source, (SampleSource, BatchSource)) else self.source.labels

    def numbered_by(self, names: tuple[str, ...], numbers: list[int]) -> OpenedData:
        """The same samples with the classes `names`; numbers: for each class of this side its place in them."""
        assert not isinstance(self.source, (SampleSource, BatchSource))
        source = self.source.renumbered(names, numbers)
        facts = replace(self.facts, class_names=names, num_classes=source.num_classes)
        return replace(self, source=source, facts=facts)
