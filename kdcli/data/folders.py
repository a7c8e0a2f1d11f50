"""What a folder of images is: class folders, images without labels or a COCO set; its two sides, number and sizes."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from kdcli.data.classes import listed
from kdcli.data.classification.image_folder import (
    TEST_SHARE,
    images_below,
    is_left_out,
    part_of,
    unlabelled_part,
)
from kdcli.data.detection.coco_json import read_coco
from kdcli.disk import entries, exists, is_folder
from kdcli.errors import RunError, UsageError, did_you_mean

SIDES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "held_out", "held-out"),
}
"""Names of the folders of a side, in any case."""

LOOKED_AT = 200
"""How many images are opened to see their sizes."""

NOT_BOXES = re.compile(r"caption|keypoint|panoptic|stuff|image_info")
"""Annotation files of COCO that are no boxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSide:
    """One side of the data. root: of its images. split: whether both sides are parts of that folder.

    annotations: COCO's file, where the images have boxes.
    """

    root: Path
    split: bool = False
    annotations: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """What a folder holds. test: what students are measured on while they are trained.

    labels: of each image. classes: their names, empty without labels. images: to train on. sides: the shorter side of
    images in pixels, smallest, median, largest. grey: whether all are. spare: the test images, where validation
    images are what is measured on. notes: what a user should know of how the folder was read.
    """

    labels: Literal["classes", "boxes", "none"]
    train: FolderSide
    test: FolderSide
    classes: tuple[str, ...]
    images: int
    sides: tuple[int, int, int]
    grey: bool
    spare: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The facts in one line."""
        least, _, most = self.sides
        size = f"{least} px" if least == most else f"{least} to {most} px"
        what = {
            "classes": f"{len(self.classes)} class folders",
            "boxes": f"COCO annotations of {len(self.classes)} categories",
            "none": "no labels",
        }[self.labels]
        return f"{what}, {self.images:,} {'grey ' if self.grey else ''}training images, shorter side {size}"


def look(folder: Path, *, labels: bool = True) -> ImageData:
    """What a folder is. labels: False reads class folders as images without labels.

    Raises UsageError where there is no such folder, RunError KD861 (no images), KD862 (one class), KD863 (a side that
    is missing), and what `read_coco` raises.
    """
    if not is_folder(folder):
        beside = [one.name for one in entries(folder.parent)] if is_folder(folder.parent) else []
        near = did_you_mean(folder.name, beside) if len(beside) > 12 or not beside else None
        raise UsageError.of(
            f"there is no folder `{folder}`", near or "`--data` names the folder of the images"
        )
    annotated = _coco_files(folder)
    if annotated and labels:
        return _detection(folder, annotated)
    places = {side: _named(folder, names) for side, names in SIDES.items()}
    train = places["train"]
    held = places["val"] or places["test"]
    if train is None and held is not None:
        others = [one for one in _subfolders(folder) if one not in places.values() and images_below(one)[0]]
        if not others:
            raise RunError.of(
                "KD863",
                f"`{folder}` has `{held.name}` and no folder of training images",
                f"put these into `{folder / 'train'}`",
            )
        held = None
    root = folder if train is None else train
    files, _ = images_below(root)
    if not files:
        raise RunError.of(
            "KD861",
            f"`{root}` has no images",
            "images are JPEG, PNG, WebP, BMP, GIF, TIFF or PPM files: in one folder a class"
            f" (`{root / 'cat' / '1.jpg'}`), or in any folders where they have no labels",
        )
    by_class = {one: found for one in _subfolders(root) if (found := images_below(one)[0])}
    classes = tuple(sorted(one.name for one in by_class))
    labelled = labels and bool(classes)
    if labelled and len(classes) == 1:
        raise RunError.of(
            "KD862",
            f"`{root}` has one class folder, `{classes[0]}`: there is nothing to tell apart",
            "add a folder for each further class, or take the images without labels: `--no-labels`",
        )
    notes = []
    if held is None:
        notes.append(f"`{root}` is divided by file names: 80 % to train on, 20 % to measure on")
    spare = places["test"] if places["val"] is not None and held is places["val"] else None
    sides, grey = _sizes(files)
    parts = sorted(by_class.items()) if labelled else [(root, files)]
    if held is None:
        few = [place for place, part in parts if len(part) < 2]
        if few:
            raise _too_few(root, [place.name for place in few] if labelled else [])
        if labelled:
            parts = [(place, part_of(part, place, "train", TEST_SHARE)) for place, part in parts]
        else:
            parts = [(root, unlabelled_part(files, root, "train", TEST_SHARE))]
    return ImageData(
        labels="classes" if labelled else "none",
        train=FolderSide(root=root, split=held is None),
        test=FolderSide(root=held or root, split=held is None),
        classes=classes if labelled else (),
        images=sum(len(part) for _, part in parts),
        sides=sides,
        grey=grey,
        spare=spare,
        notes=tuple(notes),
    )


def _too_few(root: Path, classes: Sequence[str]) -> RunError:
    what = (
        f"{len(classes)} class folders of `{root}` have"
        if len(classes) > 1
        else f"`{root / ''.join(classes)}` has"
    )
    which = f": {listed(classes)}" if len(classes) > 1 else ""
    return RunError.of(
        "KD860",
        f"{what} one image{which}, and each is divided into images to train on and images to measure on",
        f"add images, or say which are which: `{root / 'train'}` and `{root / 'val'}`",
    )


def _subfolders(folder: Path) -> list[Path]:
    return [one for one in entries(folder) if is_folder(one) and not is_left_out(one.name)]


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder of one side; the first of the names wins."""
    found = {one.name.lower(): one for one in _subfolders(folder)}
    return next((found[name] for name in names if name in found), None)


def _sizes(files: Sequence[str]) -> tuple[tuple[int, int, int], bool]:
    """Shorter sides (smallest, median, largest) of evenly chosen images, and whether all are grey; KD861."""
    step = max(1, len(files) // LOOKED_AT)
    shorter, grey = [], True
    for file in files[::step]:
        try:
            with Image.open(file) as image:
                shorter.append(min(image.size))
                grey = grey and image.mode in ("1", "L", "LA", "I;16")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # which files are damaged is said where the whole data is looked at
    if not shorter:
        raise RunError.of(
            "KD861", f"none of the images can be read, the first is `{files[0]}`", "are they whole?"
        )
    return (min(shorter), int(statistics.median(shorter)), max(shorter)), grey


# Boxes


def _coco_files(folder: Path) -> dict[str, list[Path]]:
    """The COCO annotation files of a folder, by the side that their name or folder says."""
    found: dict[str, list[Path]] = {}
    for place in (folder, *_subfolders(folder)):
        for file in entries(place):
            if file.suffix.lower() != ".json" or NOT_BOXES.search(file.name) or not _is_coco(file):
                continue
            side = _side_of(file.stem) or _side_of(place.name)
            if side is not None:
                found.setdefault(side, []).append(file)
    return found


def _is_coco(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig") as opened:
            data = json.load(opened)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and all(isinstance(data.get(k), list) for k in ("images", "annotations"))


def _side_of(name: str) -> str | None:
    """The side in a name such as `instances_train2017`."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((side for side, names in SIDES.items() if any(word in names for word in words)), None)


def _detection(folder: Path, annotated: dict[str, list[Path]]) -> ImageData:
    held = "val" if "val" in annotated else "test"
    for side in ("train", held):
        files = annotated.get(side, [])
        if not files:
            what = "train on" if side == "train" else "measure on"
            raise RunError.of(
                "KD863",
                f"`{folder}` has no annotations of images to {what}",
                "their names say of which side they are: `train.json`, `val.json`, `annotations/instances_train.json`",
            )
        if len(files) > 1:
            shown = ", ".join(f"`{file}`" for file in files)
            raise RunError.of(
                "KD863",
                f"`{folder}` has several annotation files of one side: {shown}",
                "leave one of them there",
            )
    train, test = (_coco_side(folder, annotated[side][0]) for side in ("train", held))
    assert train.annotations is not None
    content = read_coco(train.annotations)
    if not len(content.ids):
        raise RunError.of("KD861", f"`{train.annotations}` lists no images", "add the training images")
    shorter = np.minimum(content.sizes[:, 0], content.sizes[:, 1])
    return ImageData(
        labels="boxes",
        train=train,
        test=test,
        classes=content.class_names,
        images=len(np.unique(content.box_images)),
        sides=(int(shorter.min()), int(np.median(shorter)), int(shorter.max())),
        grey=False,
    )


def _coco_side(folder: Path, annotations: Path) -> FolderSide:
    """The folder in which the first image that a file lists is found; raises RunError KD861."""
    names = read_coco(annotations).file_names
    for place in dict.fromkeys(_image_folders(folder, annotations)):
        if names and exists(place / names[0]):
            return FolderSide(root=place, annotations=annotations)
    raise RunError.of(
        "KD861",
        f"`{annotations}` lists `{names[0] if names else 'no image'}`, which is in no folder of `{folder}`",
        f"put the images into `{annotations.with_suffix('')}`",
    )


def _image_folders(folder: Path, annotations: Path) -> Iterator[Path]:
    """Where the images of a file may lie, likeliest first."""
    yield annotations.with_suffix("")
    yield annotations.parent
    places = _subfolders(folder)
    own = [one for one in places if one.name in annotations.stem]
    yield from own
    yield from places
    for one in places:
        yield from _subfolders(one)
    yield folder
