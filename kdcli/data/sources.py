"""Where samples come from: what a dataset gives before batches are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.draws import Draws, Ids
from kdcli.data.facts import DataFacts

Batch = Mapping[str, Any]
"""A read-only batch: `image` float32 [B, C, H, W], `labels` int64 [B], `indices` int64 [B], ..."""


class BadSample(Exception):
    """One sample that cannot be read: which, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayImages:
    """A classification dataset that lies in memory: images uint8 [N, C, H, W], labels int64 [N]."""

    images: Tensor
    labels: Ids
    num_classes: int
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W]."""
        return self.images[index]

    def name(self, index: int) -> str:
        """What to call this sample in a message."""
        return f"sample {index}"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> ArrayImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        labels = np.asarray(numbers, dtype=np.int64)[self.labels]
        return replace(self, labels=labels, class_names=names, num_classes=len(names))


@runtime_checkable
class ImageSource(Protocol):
    """A classification dataset that is read image by image."""

    labels: Ids
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
