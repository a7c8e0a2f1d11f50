"""One folder a class, the images anywhere below it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdcli.data.classification.folder_images import Left, beside_classes, images_below, is_left_out, told
from kdcli.data.classification.images import FileImages
from kdcli.data.image_readers import ColorMode, PillowReader
from kdcli.data.pixel_values import Background, ValueRange
from kdcli.errors import Findings, SpecError, SpecPath
from kdcli.spec.places import HERE, Places


def image_folder(
    path: SpecPath,
    places: Places,
    train: bool = True,
    *,
    root: str,
    color_mode: ColorMode = "RGB",
    value_range: ValueRange | None = None,
    background: Background | None = None,
    num_classes: int | None = None,
) -> FileImages:
    """The classes are the folders in `root` in alphabetical order, numbered from 0.

    Test data is numbered by the training data's folders afterwards (kdcli.data.classes), and may lack images of
    a class. num_classes: how many folders the training data must have. value_range: [low, high], the numbers
    that become black and white in images of more than 8 bits; background: white, black, a number or [r, g, b],
    what transparent pixels lie on (both as fs_pillow has them). Raises SpecError KD506 (no such folder, no
    class, no image; of every class at once), KD515 (another number of classes).
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
    classes = sorted(name for name in folders if not is_left_out(name))
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
    left = beside_classes(folder)
    findings = Findings()
    for label, name in enumerate(classes):
        with findings.part():
            found, others = _images(folder / name, at_root, needed=train)
            files += found
            labels += [label] * len(found)
            left += others
    findings.raise_errors()
    if not files:
        raise SpecError.at(at_root, "KD506", f"`{folder}` has no images in its {len(classes)} class folders")
    reader = PillowReader(
        path,
        HERE,
        image_dir=str(folder),
        color_mode=color_mode,
        value_range=value_range,
        background=background,
    )
    numbers = np.array(labels, dtype=np.int64)
    left_out = f"left out of `{folder}`: {told(left)}" if left else None
    return FileImages(reader, files, numbers, len(classes), tuple(classes), left_out=left_out)


def _images(folder: Path, path: SpecPath, *, needed: bool) -> tuple[list[str], Left]:
    """The images of a class and what is left out; needed: there must be one."""
    try:
        found, left = images_below(folder)
    except OSError as reason:
        raise SpecError.at(
            path, "KD506", f"`{reason.filename or folder}` can't be listed: {reason.strerror}"
        ) from reason
    if needed and not found:
        others = f", only {told(left)}" if left else ""
        raise SpecError.at(path, "KD506", f"`{folder}` has no images{others}")
    return found, left
