"""Data that Python has given: a Dataset's items, or a DataLoader's batches, as sources that the rest of kdcli reads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
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

from kdcli.data.check_images import spread
from kdcli.data.classes import contradict
from kdcli.data.classification.images import DatasetImages
from kdcli.data.draws import GIVEN, Draws, seed_of
from kdcli.data.facts import DataFacts, Labelling
from kdcli.data.sources import BadSample, Batch, BatchSource, Source
from kdcli.data.transforms.pipeline import generators_kept
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.in_memory import in_memory
from kdcli.spec.schema import Component

BRIGHT = 30.0
"""Normalised pixels are a few units large; of 0..255 the largest is far beyond this."""

SOME_IMAGES = 8
"""So many images, evenly spaced, are looked at before anything is trained."""

OWN_ORDER = (
    "{what} decides the order of the batches, which kdcli can't repeat: a resumed run sees others than an"
    " uninterrupted one"
)


def from_python(
    train: bool,
    path: SpecPath,
    transformer: Sequence[Component],
    alignment: int,
    aligned: bool = True,
    classes: Mapping[int, str] | None = None,
    *,
    labels: Labelling = "classes",
) -> Source:
    """A Dataset or a DataLoader in memory, given as `data` to a function of Python's `kdcli`.

    Its items are (image, label), images alone (`labels: none`), or images with boxes, which need the rest to be
    transformed and numbered as `coco` does.
    """
    given = in_memory().source(train, path)
    if hasattr(given, "samples"):  # boxes: kdcli.data.detection.in_memory
        scenes: Source = given.samples(path, train, transformer, alignment, aligned, classes)
        return scenes
    source: Source = given
    return source


def source_of(
    given: Any,
    side: str,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    labels: Labelling = "classes",
) -> GivenImages | GivenBatches:
    """A Dataset or DataLoader as a source. side: `train` or `test`; classes: names in the order of their numbers.

    mean, std: what float images are normalised by, where the caller knows it. labels: `none` where any there are count
    for nothing. Raises SpecError KD874 for anything that can't be used.
    """
    if isinstance(given, DataLoader) or (not hasattr(given, "__getitem__") and hasattr(given, "__iter__")):
        return GivenBatches(given, side, classes, mean, std, labels=labels)
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise unusable(
            side,
            f"a `{type(given).__name__}` is no data",
            "give a Dataset with `__len__` and `__getitem__`, whose items are (image, label), or a DataLoader",
        )
    if not len(given):
        raise unusable(side, "the Dataset is empty", "it needs at least one item")
    try:
        return GivenImages(given, side, class_names=classes, mean=mean, std=std, unlabelled=labels == "none")
    except ValueError as reason:
        raise unusable(
            side, str(reason), "an item is (image, label), its label a whole number from 0 on"
        ) from reason


class GivenImages(DatasetImages):
    """A Dataset of (image, label): PIL's and uint8 images, which the spec's transforms read; or finished floats.

    Without labels where its items are images alone, or where it is told so. Float images [C, H, W] are taken as they
    are. What the Dataset draws itself from torch's, numpy's or Python's generators is a function of the run's seed, the
    epoch and the item, so that a resumed run sees the same.
    """

    def __init__(
        self,
        dataset: Any,
        side: str,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        unlabelled: bool = False,
    ) -> None:
        with generators_kept():
            image, labelled = _item(dataset, side)
            if unlabelled or not labelled:
                self.dataset = dataset
                self.labels, self.num_classes, self.class_names = None, 0, None
            else:
                # Labels come with the names that they are numbered by, those of the Dataset with its own.
                super().__init__(dataset, labels, _classes(dataset) if labels is None else class_names)
                if labels is None and class_names is not None:
                    self._name(tuple(map(str, class_names)))
            self.side = side
            self.mean, self.std = numbers_of(mean), numbers_of(std)
            self.finished = isinstance(image, Tensor) and image.is_floating_point()
            if isinstance(image, Tensor):
                _check_image(image[None] if image.dim() == 3 else image, side, one=image)
            self.brightest = self._brightest() if self.finished else 0.0

    def _brightest(self) -> float:
        """The largest magnitude in some images: the first one may be black."""
        found = 0.0
        for index in spread(len(self), SOME_IMAGES):
            with suppress(Exception):  # what can't be read is told when its turn comes
                found = max(found, brightest(self.image(index)))
        return found

    def _name(self, names: tuple[str, ...]) -> None:
        """Take these names of the classes; a Dataset that names its own among them is numbered by them.

        Raises ValueError for a label beyond them, and for a Dataset some of whose own names are none of these.
        """
        own = self.class_names
        if own is not None and contradict(own, names):
            if strange := [name for name in own if name not in names]:
                raise ValueError(
                    f"its class `{strange[0]}` is none of the names that were given: {', '.join(names)}"
                )
            self.labels = np.asarray([names.index(name) for name in own], dtype=np.int64)[self.labels]
        assert self.labels is not None
        beyond = np.flatnonzero(self.labels >= len(names))
        if len(beyond) or (own is not None and not set(own) & set(names) and len(own) != len(names)):
            found = self.num_classes if own is None else len(own)
            raise ValueError(f"it has {found} classes, and {len(names)} names were given")
        self.class_names, self.num_classes = names, len(names)

    def read(self, index: int) -> Tensor:
        """uint8 [C, H, W], or float32 where the images are finished; raises BadSample."""
        return self.read_drawn(index, Draws(0, 0, np.array([index], dtype=np.int64)))

    def read_drawn(self, index: int, draws: Draws) -> Tensor:
        """The same, in the view that these draws stand for."""
        with seeded(seed_of(draws.seed, draws.epoch, int(draws.ids[0]), stream=GIVEN)):
            if not self.finished:
                return super().read(index)
            try:
                image = self.image(index)
            except Exception as reason:  # the dataset's own code raises anything
                raise BadSample(self.name(index), str(reason) or type(reason).__name__) from reason
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.dim() != 3:
            raise BadSample(self.name(index), f"it is {described(image)}, not float [C, H, W] as the first")
        return image.float()

    def image(self, index: int) -> Any:
        """The image of an item, which may be nothing else."""
        item = self.dataset[index]
        return item if _is_image(item) else item[0]

    def name(self, index: int) -> str:
        """The number alone: a resumed run may get the same items from another class."""
        return f"item {index}"

    def renumbered(self, names: tuple[str, ...], numbers: Sequence[int]) -> GivenImages:
        """The same images with the classes `names`; numbers: for each class of before its place in them."""
        assert self.labels is not None
        labels = np.asarray(numbers, dtype=np.int64)[self.labels].tolist()
        return GivenImages(self.dataset, self.side, labels, names, self.mean, self.std)


class GivenBatches(BatchSource):
    """A DataLoader, or whatever can be gone through again and has a length: batches of (images, labels), or of images.

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
        *,
        labels: Labelling = "classes",
    ) -> None:
        self.side, self.unlabelled = side, labels == "none"
        self.facts = DataFacts()  # what is checked of the first batch needs none
        own = _classes(getattr(batches, "dataset", None))
        if class_names and own and contradict(own, class_names):
            message = f"its Dataset has the classes {', '.join(map(str, own))}, and others or another order were given"
            raise unusable(
                side, message, "of a batch labels are numbers alone: give the Dataset, matched by name"
            )
        names = None if self.unlabelled else class_names or own
        with generators_kept(), _own_generators_kept(batches):
            super().__init__(batches, class_names=None if names is None else list(map(str, names)))
            first = self.batch(next(iter(batches)), 0)
        self.facts = replace(self.facts, mean=numbers_of(mean), std=numbers_of(std))
        if self.facts.labels == "none":
            self.facts = replace(self.facts, num_classes=None, class_names=None)
        order = _own_order(batches)
        if order is None and type(batches.sampler) is SequentialSampler:
            self.facts = replace(self.facts, identified=True)
        self.notices = () if order is None else (OWN_ORDER.format(what=order),)
        self.brightest = brightest(first["image"])
        sizes = getattr(batches, "batch_size", None)
        self.batch_size = sizes if isinstance(sizes, int) else self.batch_size

    def batch(self, given: Any, start: int) -> Batch:
        """A batch as kdcli's own are; raises SpecError KD874 where it is none."""
        if isinstance(given, Tensor):
            given = (given,)
        if isinstance(given, Sequence) and len(given) > 1 and _are_targets(given[1]):
            help = "give its Dataset: kdcli transforms, pads and batches images with boxes itself"
            raise unusable(self.side, "a DataLoader's batches with boxes can't be taken", help)
        if self.unlabelled:
            given = (given["image"] if isinstance(given, Mapping) else given[0],)
        found = super().batch(given, start)
        image, labels = found["image"], found.get("labels")
        _check_image(image, self.side)
        if labels is not None:
            _check_labels(labels, self.facts.num_classes, self.side)
            if labels.dtype != torch.int64:
                found = MappingProxyType({**found, "labels": labels.long()})
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
        with seeded(seed):
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
def seeded(seed: int) -> Iterator[None]:
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


def numbers_of(values: Sequence[float] | None) -> tuple[float, ...] | None:
    """The values as floats."""
    return None if values is None else tuple(map(float, values))


def _item(dataset: Any, side: str) -> tuple[Any, bool]:
    """The image of the first item, and whether a label stands beside it; raises SpecError KD874 for other items."""
    try:
        item = dataset[0]
    except Exception as reason:
        message = f"the first item can't be read: {type(reason).__name__}: {reason}"
        raise unusable(side, message, "`dataset[0]` has to work") from reason
    if _is_image(item):
        return item, False
    if isinstance(item, Mapping) or not hasattr(item, "__getitem__") or not len(item):
        what = f"an item is {described(item)}, not (image, label)"
        raise unusable(
            side, what, "let `__getitem__` return a pair: the image, and its class as a whole number"
        )
    image = item[0]
    if not _is_image(image):
        what = f"the image of an item is {described(image)}"
        raise unusable(side, what, "give PIL images, uint8 arrays [H, W, C], or tensors [C, H, W]")
    return image, len(item) > 1


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "mode")


def _are_targets(value: Any) -> bool:
    """Whether the second part of a batch says where boxes are, for all its images or for each."""
    one = value[0] if isinstance(value, Sequence) and len(value) else value
    return isinstance(one, Mapping) and "boxes" in one


def _classes(dataset: Any) -> Sequence[str] | None:
    """The names of the classes that a Dataset lists, also behind Subsets; None without them."""
    names = getattr(dataset, "classes", None)
    inner = getattr(dataset, "dataset", None)
    return names if names is not None or inner is None else _classes(inner)


def _check_image(image: Any, side: str, one: Tensor | None = None) -> None:
    """Raise SpecError KD874 for images that no network of maps takes; image: [B, C, H, W]; one: the item it is of."""
    called = "an image is" if one is not None else "a batch of images is"
    shown = described(image if one is None else one)
    wanted = "[C, H, W]" if one is not None else "[B, C, H, W]"
    if image.dim() != 4:
        raise unusable(side, f"{called} {shown}, not {wanted}", "one axis for channels, also of grey images")
    channels, last = image.shape[1], image.shape[-1]
    if channels not in (1, 2, 3, 4) and last in (1, 3, 4):
        axes = "(2, 0, 1)" if one is not None else "(0, 3, 1, 2)"
        help = f"give channels first: `image.permute{axes}`"
        raise unusable(side, f"{called} {shown}: its channels come last, not as {wanted}", help)
    if one is None and not image.is_floating_point():
        help = "normalise them as floats in the DataLoader, or give the Dataset: the spec's transforms read uint8"
        raise unusable(side, f"{called} {shown}, not floats", help)


def _check_labels(labels: Any, classes: int | None, side: str) -> None:
    """Raise SpecError KD874 for labels that are no class numbers."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        help = "one whole number for each image; of one-hot rows: `labels.argmax(1)`"
        raise unusable(side, f"the labels of a batch are {described(labels)}, not whole numbers [B]", help)
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        counted = "" if classes is None else f", and there are {classes} classes"
        raise unusable(side, f"a label is {wrong}{counted}", "classes are counted from 0 on")


def brightest(image: Tensor) -> float:
    """The largest magnitude of an image's values, 0 of an empty one."""
    return float(image.abs().max()) if image.numel() else 0.0


def described(value: Any) -> str:
    """`torch.uint8 [8, 3, 32, 32]`, or the type of what is no tensor."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"a `{type(value).__name__}`"


def unusable(side: str, message: str, help: str) -> SpecError:
    """KD874 for the data of one side, in a message that says what is wrong with it."""
    what = "training" if side == "train" else "test"
    return SpecError.at(
        ("dataset", side, "dataset"), "KD874", f"the {what} data that was given: {message}", help
    )
