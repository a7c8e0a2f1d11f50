"""Data that Python has given: a Dataset's items, or a DataLoader's batches, as sources that the rest of kdcli reads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from kdcli.data.classification.images import DatasetImages
from kdcli.data.draws import GIVEN, Draws, seed_of
from kdcli.data.facts import DataFacts
from kdcli.data.sources import BadSample, Batch, BatchSource, ImageSource
from kdcli.data.transforms.pipeline import generators_kept
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.in_memory import in_memory

BRIGHT = 30.0
"""Normalised pixels are a few units large; of 0..255 the largest is far beyond this."""

OWN_ORDER = (
    "{what} decides the order of the batches, which kdcli can't repeat: a resumed run sees others than an"
    " uninterrupted one"
)


def from_python(train: bool, path: SpecPath) -> ImageSource:
    """A Dataset of (image, label) or a DataLoader in memory, given as `data` to a function of Python's `kdcli`."""
    source: ImageSource = in_memory().source(train, path)
    return source


def source_of(
    given: Any,
    side: str,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> GivenImages | GivenBatches:
    """A Dataset or DataLoader as a source. side: `train` or `test`; classes: names in the order of their numbers.

    mean, std: what float images are normalised by, where the caller knows it. Raises SpecError KD874 for anything that
    can't be used.
    """
    if isinstance(given, DataLoader) or (not hasattr(given, "__getitem__") and hasattr(given, "__iter__")):
        return GivenBatches(given, side, classes, mean, std)
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise _unusable(
            side,
            f"a `{type(given).__name__}` is no data",
            "give a Dataset with `__len__` and `__getitem__`, whose items are (image, label), or a DataLoader",
        )
    if not len(given):
        raise _unusable(side, "the Dataset is empty", "it needs at least one item")
    try:
        return GivenImages(given, side, class_names=classes, mean=mean, std=std)
    except ValueError as reason:
        raise _unusable(
            side, str(reason), "an item is (image, label), its label a whole number from 0 on"
        ) from reason


class GivenImages(DatasetImages):
    """A Dataset of (image, label): PIL's and uint8 images, which the spec's transforms read; or finished floats.

    Float images [C, H, W] are taken as they are. What the Dataset draws itself from torch's, numpy's or Python's
    generators is a function of the run's seed, the epoch and the item, so that a resumed run sees the same.
    """

    def __init__(
        self,
        dataset: Any,
        side: str,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        with generators_kept():
            first = _item(dataset, side)
            found = labels if labels is not None else _labels(dataset)
            super().__init__(dataset, found, _classes(dataset) if class_names is None else class_names)
        self.side = side
        self.mean, self.std = _numbers(mean), _numbers(std)
        image = first[0]
        self.finished = isinstance(image, Tensor) and image.is_floating_point()
        if isinstance(image, Tensor):
            _check_image(image[None] if image.dim() == 3 else image, side, one=image)
        self.brightest = _brightest(image) if self.finished else 0.0

    def read(self, index: int) -> Tensor:
        """uint8 [C, H, W], or float32 where the images are finished; raises BadSample."""
        return self.read_drawn(index, Draws(0, 0, np.array([index], dtype=np.int64)))

    def read_drawn(self, index: int, draws: Draws) -> Tensor:
        """The same, in the view that these draws stand for."""
        with _seeded(seed_of(draws.seed, draws.epoch, int(draws.ids[0]), stream=GIVEN)):
            if not self.finished:
                return super().read(index)
            try:
                image = self.dataset[index][0]
            except Exception as reason:  # the dataset's own code raises anything
                raise BadSample(self.name(index), str(reason) or type(reason).__name__) from reason
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.dim() != 3:
            raise BadSample(self.name(index), f"it is {_described(image)}, not float [C, H, W] as the first")
        return image.float()

    def name(self, index: int) -> str:
        """The number alone: a resumed run may get the same items from another class."""
        return f"item {index}"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> GivenImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        assert self.labels is not None
        labels = np.asarray(numbers, dtype=np.int64)[self.labels].tolist()
        return GivenImages(self.dataset, self.side, labels, names, self.mean, self.std)


class GivenBatches(BatchSource):
    """A DataLoader, or whatever can be gone through again and has a length: batches of (images, labels).

    Images are float [B, C, H, W], normalised already. A DataLoader of torch's own samplers over a Dataset draws what it
    draws as a function of the run's seed and the epoch; of others a notice says that a resumed run sees other batches.
    """

    def __init__(
        self,
        batches: Any,
        side: str,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.side = side
        self.facts = DataFacts()  # what is checked of the first batch needs none
        names = class_names or _classes(getattr(batches, "dataset", None))
        with generators_kept(), _own_generators_kept(batches):
            super().__init__(batches, class_names=None if names is None else list(map(str, names)))
            first = self.batch(next(iter(batches)), 0)
        self.facts = replace(self.facts, mean=_numbers(mean), std=_numbers(std))
        own = _own_order(batches)
        self.notices = () if own is None else (OWN_ORDER.format(what=own),)
        self.brightest = _brightest(first["image"])
        sizes = getattr(batches, "batch_size", None)
        self.batch_size = sizes if isinstance(sizes, int) else self.batch_size

    def batch(self, given: Any, start: int) -> Batch:
        """A batch as kdcli's own are; raises SpecError KD874 where it is none."""
        if isinstance(given, Tensor):
            given = (given,)
        found = super().batch(given, start)
        image, labels = found["image"], found.get("labels")
        _check_image(image, self.side)
        if labels is not None:
            _check_labels(labels, self.facts.num_classes, self.side)
        return found

    def epoch(self, seed: int, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, what torch's own samplers and the Dataset draw made from (seed, epoch)."""
        from kdcli.data.loaders import (
            starting_workers,  # which imports what this module's classes are made of
        )

        number = seed_of(seed, epoch, int(self.side == "train"), stream=GIVEN)
        own = _Generators(number)
        with _own_generators_kept(self.batches, number):
            with own, starting_workers():
                batches = iter(self.batches)
            while True:
                with own:
                    try:
                        given = next(batches)
                    except StopIteration:
                        return
                yield given


class _Generators:
    """Random state of the data's own: in its blocks the global CPU generators go on where the last one left them."""

    def __init__(self, seed: int) -> None:
        with _seeded(seed):
            self._own = _states()
        self._others = self._own

    def __enter__(self) -> None:
        self._others = _states()
        _restore(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = _states()
        _restore(self._others)


def _states() -> tuple[Tensor, Any, Any]:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def _restore(states: tuple[Tensor, Any, Any]) -> None:
    torch.default_generator.set_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global CPU generators begin with a seed inside the block, and are put back after it."""
    with generators_kept():
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        random.seed(seed)
        yield


@contextmanager
def _own_generators_kept(batches: Any, seed: int | None = None) -> Iterator[None]:
    """The generators that a DataLoader was given, put back after the block; inside it they begin with the seed."""
    samplers = (getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    places = [batches, *samplers, *(getattr(one, "sampler", None) for one in samplers)]
    found = {id(own): own for place in places if (own := getattr(place, "generator", None)) is not None}
    with ExitStack() as stack:
        for own in found.values():
            if isinstance(own, torch.Generator):
                stack.callback(own.set_state, own.get_state())
                if seed is not None:
                    own.manual_seed(seed)
        yield


def _own_order(batches: Any) -> str | None:
    """What of the batches is beyond kdcli's seeds, in a word; None where a function of (seed, epoch) gives them."""
    if not isinstance(batches, DataLoader):
        return f"`{type(batches).__name__}`"
    if isinstance(batches.dataset, IterableDataset):
        return "its IterableDataset"
    if type(batches.batch_sampler) is not BatchSampler:
        return "its own batch sampler"
    known = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)
    if type(batches.sampler) not in known:
        return "its own sampler"
    if batches.persistent_workers:
        return "the state of its persistent workers"
    return None


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _item(dataset: Any, side: str) -> Sequence[Any]:
    """The first item; raises SpecError KD874 where it is no pair."""
    try:
        item = dataset[0]
    except Exception as reason:
        message = f"the first item can't be read: {type(reason).__name__}: {reason}"
        raise _unusable(side, message, "`dataset[0]` has to work") from reason
    if isinstance(item, Mapping) or not hasattr(item, "__getitem__") or isinstance(item, Tensor):
        what = f"an item is {_described(item)}, not (image, label)"
        raise _unusable(
            side, what, "let `__getitem__` return a pair: the image, and its class as a whole number"
        )
    if len(item) < 2:
        raise _unusable(side, "an item has no label", "let `__getitem__` return (image, label)")
    pair: Sequence[Any] = item
    if not (isinstance(pair[0], Tensor | np.ndarray) or hasattr(pair[0], "mode")):
        what = f"the image of an item is {_described(pair[0])}"
        raise _unusable(side, what, "give PIL images, uint8 arrays [H, W, C], or tensors [C, H, W]")
    return pair


def _labels(dataset: Any) -> Sequence[int] | None:
    """The labels that a Dataset lists, also behind Subsets; None where each item has to be asked."""
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:
        found = _labels(inner)
        return None if found is None else [int(found[index]) for index in indices]
    for attribute in ("targets", "labels"):
        listed = getattr(dataset, attribute, None)
        if listed is not None:
            return listed.tolist() if hasattr(listed, "tolist") else list(listed)
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1:
        found = tensors[1]
        return found.tolist() if not found.is_floating_point() and found.dim() == 1 else None
    return None


def _classes(dataset: Any) -> Sequence[str] | None:
    """The names of the classes that a Dataset lists, also behind Subsets; None without them."""
    names = getattr(dataset, "classes", None)
    inner = getattr(dataset, "dataset", None)
    return names if names is not None or inner is None else _classes(inner)


def _check_image(image: Any, side: str, one: Tensor | None = None) -> None:
    """Raise SpecError KD874 for images that no network of maps takes; image: [B, C, H, W]; one: the item it is of."""
    called = "an image is" if one is not None else "a batch of images is"
    shown = _described(image if one is None else one)
    wanted = "[C, H, W]" if one is not None else "[B, C, H, W]"
    if image.dim() != 4:
        raise _unusable(side, f"{called} {shown}, not {wanted}", "one axis for channels, also of grey images")
    channels, last = image.shape[1], image.shape[-1]
    if channels not in (1, 2, 3, 4) and last in (1, 3, 4):
        axes = "(2, 0, 1)" if one is not None else "(0, 3, 1, 2)"
        help = f"give channels first: `image.permute{axes}`"
        raise _unusable(side, f"{called} {shown}: its channels come last, not as {wanted}", help)
    if one is None and not image.is_floating_point():
        help = "normalise them as floats in the DataLoader, or give the Dataset: the spec's transforms read uint8"
        raise _unusable(side, f"{called} {shown}, not floats", help)


def _check_labels(labels: Any, classes: int | None, side: str) -> None:
    """Raise SpecError KD874 for labels that are no class numbers."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        help = "one whole number for each image; of one-hot rows: `labels.argmax(1)`"
        raise _unusable(side, f"the labels of a batch are {_described(labels)}, not whole numbers [B]", help)
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        counted = "" if classes is None else f", and there are {classes} classes"
        raise _unusable(side, f"a label is {wrong}{counted}", "classes are counted from 0 on")


def _brightest(image: Tensor) -> float:
    return float(image.abs().max()) if image.numel() else 0.0


def _described(value: Any) -> str:
    """`torch.uint8 [8, 3, 32, 32]`, or the type of what is no tensor."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"a `{type(value).__name__}`"


def _unusable(side: str, message: str, help: str) -> SpecError:
    what = "training" if side == "train" else "test"
    return SpecError.at(
        ("dataset", side, "dataset"), "KD874", f"the {what} data that was given: {message}", help
    )
