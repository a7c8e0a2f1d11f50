"""One folder a class, the images anywhere below it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdcli.data.files import FileImages
from kdcli.data.image_readers import SUFFIXES, ColorMode, PillowReader
from kdcli.errors import SpecError, SpecPath
from kdcli.spec.places import HERE, Places


def image_folder(
    path: SpecPath,
    places: Places,
    train: bool = True,
    *,
    root: str,
    color_mode: ColorMode = "RGB",
    num_classes: int | None = None,
) -> FileImages:
    """The classes are the folders in `root` in alphabetical order, numbered from 0.

    Test data is numbered by the training data's folders afterwards (kdcli.data.classes), and may lack images of
    a class. num_classes: how many folders the training data must have. Raises SpecError KD506 (no such folder,
    no class, no image), KD515 (another number of classes).
    """
    at_root = (*path, "kwargs", "root")
    folder = places.find(root, at_root)
    if not folder.is_dir():
        raise SpecError.at(
            at_root,
            "KD506",
            f"there is no folder `{root}`",
            f"`root` is a folder with one subfolder a class; {places.missing(root, at_root)}",
        )
    folders = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    classes = sorted(name for name in folders if not name.startswith("."))
    if not classes:
        raise SpecError.at(at_root, "KD506", f"`{folder}` has no subfolders", "one for each class")
    if train and num_classes is not None and num_classes != len(classes):
        raise SpecError.at(
            (*path, "kwargs", "num_classes"),
            "KD515",
            f"`num_classes` is {num_classes} and `{folder}` has {len(classes)} class folders",
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(folder / name)
        if train and not found:
            raise SpecError.at(at_root, "KD506", f"`{folder / name}` has no images")
        files += found
        labels += [label] * len(found)
    if not files:
        raise SpecError.at(at_root, "KD506", f"`{folder}` has no images in its {len(classes)} class folders")
    reader = PillowReader(path, HERE, image_dir=str(folder), color_mode=color_mode)
    return FileImages(reader, files, np.array(labels, dtype=np.int64), len(classes), tuple(classes))


def _images(folder: Path) -> list[str]:
    """Every image file below the folder, sorted; linked folders are followed, each once."""
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [os.path.join(place, name) for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(found)
