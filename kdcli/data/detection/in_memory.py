"""A Dataset of images with boxes that Python has given, as samples for a detector."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.classes import contradict
from kdcli.data.classification.in_memory import (
    brightest,
    described,
    numbers_of,
    seeded,
    unusable,
)
from kdcli.data.detection.coco import CocoDataset, box_transforms, numbered, said_of
from kdcli.data.detection.coco_json import CocoImage, cut, read_coco
from kdcli.data.draws import GIVEN, Draws, seed_of
from kdcli.data.facts import statistics
from kdcli.data.image_readers import pixels_of
from kdcli.data.pixel_values import Refused
from kdcli.data.sources import BadSample
from kdcli.disk import write_whole
from kdcli.errors import SpecPath
from kdcli.spec.schema import Component

BACKGROUND = ("__background__", "background")
"""What a Dataset's `classes` may begin with: torchvision's labels count the background as 0."""

WANTED = "an item is (image, {'boxes': [n, 4] as x1, y1, x2, y2 in pixels, 'labels': [n] from 1 on}), as torchvision's"


class GivenBoxes:
    """A Dataset of (image, {boxes, labels}): PIL's and uint8 images for the spec's transforms, or finished floats.

    boxes: [n, 4], x1, y1, x2, y2 as edges in pixels of the image; labels: [n], from 1 on, 0 being the background;
    iscrowd: [n], optional: 1 for a region of many. Every item is read once here; what the Dataset draws is a function
    of the run's seed, the epoch and the item. names: of the classes, by the label. Raises SpecError KD874.
    """

    gives_boxes: ClassVar[bool] = True

    def __init__(
        self,
        dataset: Any,
        side: str,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.dataset, self.side = dataset, side
        self.mean, self.std = numbers_of(mean), numbers_of(std)
        named, own = None if class_names is None else without_background(class_names), _own_classes(dataset)
        for names in (named, own):
            if twice := [name for name, count in Counter(names or ()).items() if count > 1]:
                raise unusable(
                    side, f"two classes are called `{twice[0]}`", "give each class a name of its own"
                )
        if named is not None and own is not None and contradict(own, named):
            message = f"its classes are {', '.join(own)}, and other names or another order were given"
            raise unusable(side, message, "a label is a number: bring labels and names into one order")
        own = own if named is None else named
        self.stated = own is not None
        self._images: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        most, self.finished, self.brightest = 0, False, 0.0
        for index in range(len(dataset)):
            with seeded(seed_of(0, 0, index, stream=GIVEN)):
                try:
                    item = dataset[index]
                except Exception as reason:  # the dataset's own code raises anything
                    raise unusable(
                        side, f"item {index} can't be read: {type(reason).__name__}: {reason}", WANTED
                    ) from reason
            try:
                pixels, boxes, labels, crowds, areas = parts_of(item)
            except Refused as reason:
                help = "convert it before (`image.convert('RGB')`), or give its pixels as a uint8 tensor"
                raise unusable(side, f"item {index}: its image has the mode {item[0].mode}", help) from reason
            except Exception as reason:  # whatever an odd item makes of numpy
                raise unusable(side, f"item {index}: {reason}", WANTED) from reason
            if index == 0:
                self.finished = pixels.is_floating_point()
                self.brightest = brightest(pixels) if self.finished else 0.0
            if pixels.is_floating_point() != self.finished:
                raise unusable(side, f"item {index} is {described(pixels)}, unlike item 0", WANTED)
            height, width = pixels.shape[1:]
            name = f"item {index}"
            self._images.append({"id": index, "file_name": name, "height": height, "width": width})
            for (x1, y1, x2, y2), label, crowd, area in zip(
                boxes.tolist(), labels.tolist(), crowds.tolist(), areas.tolist(), strict=True
            ):
                most = max(most, label)
                row = {"id": len(self._rows), "image_id": index, "category_id": label, "iscrowd": int(crowd)}
                row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area}
                self._rows.append(row)
        self.names = tuple(map(str, range(1, most + 1))) if own is None else tuple(map(str, own))
        if most > len(self.names):
            message = f"a box has the label {most}, and there are {len(self.names)} classes, counted from 1"
            raise unusable(side, message, "give one name for each class, without the background")
        if not any(self._in_its_image(row) for row in self._rows if not row["iscrowd"]):
            raise unusable(side, "no item has a box that lies in its image", WANTED)
        self._file: Path | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def _in_its_image(self, row: Mapping[str, Any]) -> bool:
        (left, top, width, height), image = row["bbox"], self._images[row["image_id"]]
        right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
        return bool(right > max(left, 0) and bottom > max(top, 0))

    def with_classes(self, count: int) -> None:
        """Number the classes to `count` where nothing names them: the other side has labels up to there."""
        if not self.stated and count > len(self.names):
            self.names = tuple(map(str, range(1, count + 1)))
            self._file = None

    @property
    def file(self) -> Path:
        """The boxes as a COCO file, which is measured by; it lives as long as this object."""
        if self._file is None:
            folder = Path(tempfile.mkdtemp(prefix="kdcli-boxes-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            categories = [{"id": label, "name": name} for label, name in enumerate(self.names, 1)]
            said = {"images": self._images, "annotations": self._rows, "categories": categories}
            self._file = folder / f"{self.side} data of Python.json"
            write_whole(self._file, json.dumps(said))
        return self._file

    def samples(
        self,
        path: SpecPath,
        train: bool,
        transformer: Sequence[Component],
        alignment: int,
        aligned: bool,
        classes: Mapping[int, str] | None,
    ) -> GivenScenes:
        """The samples, as the `coco` dataset gives them (kdcli.data.detection.coco), with the spec's transforms."""
        transforms = box_transforms(transformer, (*path, "kwargs", "transformer"), train=train)
        found = read_coco(self.file)
        learnt, images = numbered(found, classes)
        kept = images.with_boxes() if train else images
        mean, std = statistics(transformer, 3)
        if self.mean is not None:
            mean, std = self.mean, self.std
        annotations, facts = said_of(found, learnt, len(kept), aligned=aligned, mean=mean, std=std)
        what = "training" if self.side == "train" else "test"
        notices = []
        if found.misfits:
            notices.append(f"{what} data: {found.misfits}")
        if len(kept) < len(images):
            notices.append(f"{what} data: {len(images) - len(kept)} images have no box, left out of training")
        ids = {category: number for number, category in enumerate(learnt, start=1)}
        by_name = {name: ids[category] for category, name in learnt.items()}
        scenes = GivenScenes(
            kept,
            None,
            transforms,
            facts,
            annotations,
            alignment=alignment,
            use_ignore=False,
            notices=tuple(notices),
        )
        scenes.dataset, scenes.train = self.dataset, train
        scenes.numbers = np.array([0, *(by_name.get(name, 0) for name in self.names)], dtype=np.float32)
        return scenes


class GivenScenes(CocoDataset):
    """Samples of a Dataset in memory: of training data the image and the boxes are drawn anew each time."""

    in_files = False
    dataset: Any
    train: bool
    numbers: NDArray[np.float32]
    """The class, from 1, of each label."""

    def load(self, index: int, draws: Draws) -> Mapping[str, Any]:
        """One sample, augmented; raises BadSample."""
        image = self.images[index]
        # Test data is measured by the boxes that were read first.
        seed, epoch = (draws.seed, draws.epoch) if self.train else (0, 0)
        with seeded(seed_of(seed, epoch, image.id, stream=GIVEN)):
            try:
                pixels, boxes, labels, crowds, _ = parts_of(self.dataset[image.id])
            except Exception as reason:  # the dataset's own code raises anything
                raise BadSample(self.name(index), str(reason) or type(reason).__name__) from reason
        if len(labels) and int(labels.max()) >= len(self.numbers):
            raise BadSample(self.name(index), f"a box has the label {int(labels.max())}, beyond the classes")
        return self.augmented(self._drawn(image, pixels, boxes, labels, crowds), pixels, draws)

    def _drawn(
        self,
        image: CocoImage,
        pixels: Tensor,
        boxes: NDArray[np.float64],
        labels: NDArray[np.int64],
        crowds: NDArray[np.bool_],
    ) -> CocoImage:
        """The image with the boxes of this view, cut to it."""
        height, width = pixels.shape[1:]
        sized = boxes.copy()
        sized[:, 2:] -= boxes[:, :2]
        edges, inside = cut(sized, np.tile([height, width], (len(boxes), 1)))
        rows = np.concatenate([edges, self.numbers[labels][:, None]], axis=1).astype(np.float32)
        return replace(
            image,
            height=height,
            width=width,
            boxes=rows[inside & ~crowds],
            crowds=rows[inside & crowds][:, :4],
        )


def has_boxes(item: Any) -> bool:
    """Whether an item is an image with boxes: (image, {boxes, ...})."""
    return isinstance(item, Sequence) and len(item) == 2 and is_target(item[1])


def is_target(value: Any) -> bool:
    """Whether a value says where boxes are, as torchvision's detectors take it: {boxes: ..., labels: ...}."""
    return isinstance(value, Mapping) and "boxes" in value


def parts_of(
    item: Any,
) -> tuple[Tensor, NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """An item's image [C, H, W] (uint8 or float), boxes [n, 4], labels [n], which are crowds [n], and areas [n].

    An area is the target's own, of an object's mask, or else the box's. Raises ValueError.
    """
    if not has_boxes(item):
        raise ValueError(f"it is {described(item)}, not an image with boxes")
    image, target = item
    if isinstance(image, Tensor):
        pixels = image.as_subclass(Tensor)
    else:
        array = (
            pixels_of(image, "GRAY" if image.mode in ("L", "1") else "RGB")
            if hasattr(image, "mode")
            else np.asarray(image)
        )
        array = array[:, :, None] if array.ndim == 2 else array
        pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    if pixels.dim() != 3 or pixels.shape[0] > 4:
        raise ValueError(f"its image is {described(pixels)}, not [C, H, W]")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise ValueError(f"its image is {described(pixels)}, neither uint8 nor floats")
    form = getattr(target["boxes"], "format", None)
    if form is not None and str(getattr(form, "value", form)).upper() != "XYXY":
        raise ValueError(f"its boxes are {getattr(form, 'value', form)}, not XYXY (x1, y1, x2, y2)")
    if "labels" not in target:
        raise ValueError("its boxes have no `labels`")
    boxes = _array(target["boxes"], "boxes", np.float64).reshape(-1, 4)
    labels = _array(target["labels"], "labels", np.float64).reshape(-1)
    crowds = _array(target.get("iscrowd", np.zeros(len(labels))), "iscrowd", np.float64).reshape(-1)
    if len(labels) != len(boxes):
        raise ValueError(f"it has {len(boxes)} boxes and {len(labels)} labels")
    if len(crowds) != len(boxes):
        raise ValueError(f"it has {len(boxes)} boxes and an `iscrowd` of {len(crowds)}")
    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    of_boxes = np.maximum(0.0, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    areas = _array(target.get("area", of_boxes), "area", np.float64).reshape(-1)
    if len(areas) != len(boxes) or not np.isfinite(areas).all():
        raise ValueError(f"it has {len(boxes)} boxes, and its `area` is none for each")
    if (labels != np.round(labels)).any() or (labels < 1).any():
        wrong = labels[(labels != np.round(labels)) | (labels < 1)][0]
        raise ValueError(
            f"a box has the label {wrong:g}: labels are whole numbers from 1 on, 0 is the background"
        )
    pixels = pixels.float() if pixels.is_floating_point() else pixels
    return pixels, boxes, labels.astype(np.int64), crowds.astype(bool), areas


def _array(value: Any, what: str, kind: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().as_subclass(Tensor).cpu().numpy()
    try:
        found = np.asarray(value, dtype=kind)
    except (TypeError, ValueError) as reason:
        raise ValueError(f"its `{what}` are no numbers") from reason
    if what == "boxes" and found.size and (found.ndim != 2 or found.shape[1] != 4):
        raise ValueError(f"its boxes are {list(found.shape)}, not [n, 4]")
    return found


def _own_classes(dataset: Any) -> list[str] | None:
    """The names of the classes that a Dataset lists, also behind Subsets, without the background."""
    names = getattr(dataset, "classes", None)
    inner = getattr(dataset, "dataset", None)
    if names is None:
        return None if inner is None else _own_classes(inner)
    return without_background(names)


def without_background(names: Sequence[str]) -> list[str]:
    """The names of the classes by their labels from 1 on: torchvision's lists begin with the background."""
    listed = list(map(str, names))
    return listed[1:] if listed and listed[0] in BACKGROUND else listed
