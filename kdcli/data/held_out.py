"""A share of the training data held out of training, to choose settings on: `dataset.hold_out`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.classification.images import FileImages
from kdcli.data.draws import SPLIT, Draws, Ids, hashes
from kdcli.data.sources import ArrayImages, BatchSource, ImageSource, Located, SampleSource, Source
from kdcli.errors import SpecError

SEED = 0
"""The choice is the same in every run, whatever its `random_seed`: runs are compared on the same images."""


def held_out(labels: Ids | None, samples: int, share: float) -> NDArray[np.bool_]:
    """bool [samples]: which are held out, `share` of each class, rounded; without one class each, of all.

    A class keeps one sample at least in training.
    """
    ranks = hashes(SEED, 0, np.arange(samples), 1, stream=SPLIT)[:, 0]
    held = np.zeros(samples, dtype=bool)
    classes = np.zeros(samples, dtype=np.int64) if labels is None or labels.ndim > 1 else labels
    for number in np.unique(classes):
        own = np.flatnonzero(classes == number)
        count = min(int(share * len(own) + 0.5), len(own) - 1)
        held[own[np.argsort(ranks[own], kind="stable")[:count]]] = True
    return held


def split(source: Source | BatchSource, share: float, *, held: bool) -> Source:
    """The samples of a training source that are held out, or those that are not.

    Raises SpecError KD271 where that can't be told, or where none would be held out.
    """
    if isinstance(source, BatchSource):
        raise SpecError.at(
            ("dataset", "hold_out"),
            "KD271",
            "no share of batches that are made outside kdcli can be held out",
            "give a dataset, or a test side of images that are not trained on",
        )
    chosen = held_out(getattr(source, "labels", None), len(source), share)
    if not chosen.any():
        raise SpecError.at(
            ("dataset", "hold_out"),
            "KD271",
            f"nothing can be held out: {share:g} of {len(source):,} samples is none of any class",
            "hold out a larger share, or give a test side of images that are not trained on and leave it out",
        )
    indices = np.flatnonzero(chosen == held)
    if isinstance(source, ArrayImages):
        labels = None if source.labels is None else source.labels[indices]
        return replace(source, images=source.images[indices], labels=labels)
    if isinstance(source, FileImages):
        fewer = copy.copy(source)
        fewer.files = [source.files[index] for index in indices]
        fewer.labels = None if source.labels is None else source.labels[indices]
        return fewer
    if isinstance(source, SampleSource):
        own = getattr(source, "subset", None)
        return SomeSamples(source, indices) if own is None else own(indices)
    return SomeImages(source, indices)


class SomeImages:
    """Some of the images of a source, in its order."""

    def __init__(self, whole: ImageSource, indices: Ids) -> None:
        self.whole, self.indices = whole, indices
        self.labels = None if whole.labels is None else whole.labels[indices]
        self.num_classes, self.class_names = whole.num_classes, whole.class_names
        self.notices: tuple[str, ...] = tuple(getattr(whole, "notices", ()))
        self.invented: bool = getattr(whole, "invented", False)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W]; raises BadSample."""
        return self.whole.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        """What the whole source calls it."""
        return self.whole.name(int(self.indices[index]))

    def located(self) -> tuple[Sequence[str], Sequence[str]] | None:
        """The files, where the whole source knows them."""
        found = self.whole.located() if isinstance(self.whole, Located) else None
        return None if found is None else ([found[0][index] for index in self.indices], found[1])

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> SomeImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        return SomeImages(self.whole.renumbered(names, numbers), self.indices)


class SomeSamples:
    """Some of the samples of a source that batches its samples itself, in its order."""

    def __init__(self, whole: SampleSource, indices: Ids) -> None:
        self.whole, self.indices = whole, indices
        self.facts = replace(whole.facts, num_samples=len(indices))
        self.notices: tuple[str, ...] = tuple(getattr(whole, "notices", ()))

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int, draws: Draws) -> Mapping[str, Any]:
        """One augmented sample; raises BadSample."""
        return self.whole.load(int(self.indices[index]), draws)

    def collate(self, samples: Sequence[Mapping[str, Any]], indices: Ids) -> dict[str, Any]:
        """Samples as one batch; indices are their places among these."""
        return self.whole.collate(samples, indices)

    def name(self, index: int) -> str:
        """What the whole source calls it."""
        return self.whole.name(int(self.indices[index]))

    def aspect_ratios(self) -> NDArray[np.float64]:
        """Height/width of every sample."""
        return self.whole.aspect_ratios()[self.indices]
