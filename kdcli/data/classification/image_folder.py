"""The `image_folder` dataset: one folder a class, or images without labels anywhere below it; the rest is counted."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from kdcli.data.classes import one_form
from kdcli.data.classification.images import FileImages
from kdcli.data.facts import Labelling
from kdcli.data.image_readers import SUFFIXES, ColorMode, PillowReader
from kdcli.data.pixel_values import Background, ValueRange
from kdcli.disk import asking, entries, is_folder
from kdcli.errors import Findings, SpecError, SpecPath
from kdcli.spec.places import HERE, Places
from kdcli.spec.ranges import Range, Width

Split = Literal["train", "test"]
TestShare = Annotated[float, Range(more_than=0, less_than=1)]
TEST_SHARE = 0.2
"""Of the images of a class, what `split` holds back for the test side where `test_share` doesn't say."""


def image_folder(
    path: SpecPath,
    places: Places,
    train: bool = True,
    *,
    root: str,
    color_mode: ColorMode = "RGB",
    value_range: ValueRange | None = None,
    background: Background | None = None,
    scaled_decode: bool = False,
    num_classes: Width | None = None,
    labels: Labelling = "classes",
    split: Split | None = None,
    test_share: TestShare | None = None,
) -> FileImages:
    """The classes are the folders in `root` in alphabetical order, numbered from 0; `labels: none`: images alone.

    Without labels every image in `root` and in its folders is taken, at any depth, in the order of the paths.

    Test data is numbered by the training data's folders afterwards (kdcli.data.classes), and may lack images of
    a class. num_classes: how many folders the training data must have. value_range: [low, high], the numbers
    that become black and white in images of more than 8 bits; background: white, black, a number or [r, g, b],
    what transparent pixels lie on; scaled_decode: large JPEGs are decoded smaller (all as fs_pillow has them). split:
    one of two parts of one folder, divided by the names of the files (`part_of`); test_share: how much of each class
    the test part has, 0.2. Raises SpecError KD506 (no such folder, no class, no image; of every class at once), KD515
    (another number of classes), KD860 (too few images to divide).
    """
    if test_share is not None and split is None:
        raise ValueError(
            "`test_share` divides the folder, and `split: train` or `split: test` says which part this is"
        )
    share = TEST_SHARE if test_share is None else test_share
    at_root = (*path, "kwargs", "root")
    folder = places.find(root, at_root)
    if not is_folder(folder):
        raise SpecError.at(
            at_root,
            "KD506",
            f"there is no folder `{root}`",
            (
                "`root` is a folder of images; "
                if labels == "none"
                else "`root` is a folder with one subfolder a class; "
            )
            + places.missing(root, at_root),
        )
    reader = PillowReader(
        path,
        HERE,
        image_dir=str(folder),
        color_mode=color_mode,
        value_range=value_range,
        background=background,
        scaled_decode=scaled_decode,
    )
    if labels == "none":
        if num_classes is not None:
            raise ValueError("`num_classes` counts classes, and `labels: none` says that there are none")
        files, left = _images(folder, at_root, needed=True)
        if split is not None:
            files = unlabelled_part(files, folder, split, share)
            if not files:
                raise _undivided(folder, path)
        return FileImages(reader, files, None, 0, left_out=_left_out(folder, left))
    folders = (entry.name for entry in entries(folder) if is_folder(entry))
    classes = sorted(name for name in folders if not is_left_out(name))
    if not classes:
        help = "one for each class; for images without labels say `labels: none` beside `root`"
        raise SpecError.at(at_root, "KD506", f"`{folder}` has no subfolders", help)
    if train and num_classes is not None and num_classes != len(classes):
        raise SpecError.at(
            (*path, "kwargs", "num_classes"),
            "KD515",
            f"`num_classes` is {num_classes} and `{folder}` has {len(classes)} class folders",
        )
    files = []
    numbers: list[int] = []
    left = beside_classes(folder)
    findings = Findings()
    for label, name in enumerate(classes):
        with findings.part():
            found, others = _images(folder / name, at_root, needed=train)
            if split is not None and found:
                found = _part(found, folder / name, split, share, path)
            files += found
            numbers += [label] * len(found)
            left += others
    findings.raise_errors()
    if not files:
        raise SpecError.at(at_root, "KD506", f"`{folder}` has no images in its {len(classes)} class folders")
    return FileImages(
        reader,
        files,
        np.array(numbers, dtype=np.int64),
        len(classes),
        tuple(classes),
        left_out=_left_out(folder, left),
    )


def part_of(files: Sequence[str], folder: Path, split: Split, share: float) -> list[str]:
    """One part of the files in a folder, in their order: by the SHA-256 of their names, the same on every machine.

    share: of the test part, rounded to whole files; each part has at least one where there are two files; one
    alone is trained on.
    """
    alike = {file: one_form(os.path.relpath(file, folder).replace(os.sep, "/")) for file in files}
    if len(files) < 2:
        return list(files) if split == "train" else []
    ranked = sorted(
        files, key=lambda file: hashlib.sha256(alike[file].encode("utf-8", "surrogatepass")).digest()
    )
    count = min(max(1, round(share * len(files))), len(files) - 1)
    held = set(ranked[:count])
    return [file for file in files if (file in held) == (split == "test")]


def unlabelled_part(files: Sequence[str], folder: Path, split: Split, share: float) -> list[str]:
    """The same of images without labels: each folder in `folder` is divided as if it were a class.

    So an image is in the same part with and without labels. Images beside the folders, or alone in one, are one more
    group.
    """
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(Path(file).relative_to(folder).parts[0], []).append(file)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    held = {
        file
        for name, group in groups.items()
        if len(group) > 1
        for file in part_of(group, folder / name, "test", share)
    }
    held |= set(part_of(alone, folder, "test", share))
    return [file for file in files if (file in held) == (split == "test")]


def _part(files: list[str], folder: Path, split: Split, share: float, path: SpecPath) -> list[str]:
    if len(files) < 2:
        raise _undivided(folder, path)
    return part_of(files, folder, split, share)


def _undivided(folder: Path, path: SpecPath) -> SpecError:
    return SpecError.at(
        (*path, "kwargs", "split"),
        "KD860",
        f"`{folder}` has one image where two are needed: it can't be divided into a training and a test part",
        "add images, or take the folder out",
    )


def _left_out(folder: Path, left: Left) -> str | None:
    return f"left out of `{folder}`: {kinds_text(left)}" if left else None


def _images(folder: Path, path: SpecPath, *, needed: bool) -> tuple[list[str], Left]:
    """The images below a folder and what is left out; needed: there must be one."""
    try:
        found, left = images_below(folder)
    except OSError as reason:
        raise SpecError.at(
            path, "KD506", f"`{reason.filename or folder}` can't be listed: {reason.strerror}"
        ) from reason
    if needed and not found:
        others = f", only {kinds_text(left)}" if left else ""
        raise SpecError.at(path, "KD506", f"`{folder}` has no images{others}")
    return found, left


NOT_DECODED = (
    *(".avif", ".bil", ".cr2", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jp2", ".jxl", ".nef"),
    *(".npy", ".psd", ".svg"),
)
"""Suffixes of image formats that are not read."""
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
FRAMES = (
    "frames are read, not videos: extract them, one folder a video, for example by "
    "`ffmpeg -i clip.mp4 -vf fps=1 clip/%06d.jpg`"
)
LISTED = 10
"""How many kinds of what is left out are named."""

Left = Counter[tuple[str, str]]
"""How many of each kind: ("file", "`.txt`")."""


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden, or one that macOS or Windows put there for itself."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def images_below(folder: Path) -> tuple[list[str], Left]:
    """Every image file below the folder, sorted, and what is left out; linked folders are followed, each once.

    Raises OSError where a folder can't be listed.
    """
    found: list[str] = []
    left: Left = Counter()
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        left.update(("folder", f"`{name}`") for name in folders if is_left_out(name))
        folders[:] = [name for name in folders if not is_left_out(name)]
        for name in names:
            if not is_left_out(name) and name.lower().endswith(SUFFIXES):
                found.append(os.path.join(place, name))
            else:
                left[_kind_of(name)] += 1
    return sorted(found), left


def beside_classes(root: Path) -> Left:
    """What a root folder holds beside its class folders: images, and hidden folders."""
    left: Left = Counter()
    with asking(root), os.scandir(root) as listed:
        for entry in listed:
            if entry.is_dir():
                left.update([("folder", f"`{entry.name}`")] if is_left_out(entry.name) else [])
            elif not is_left_out(entry.name) and entry.name.lower().endswith(SUFFIXES):
                left["image", "beside the class folders"] += 1
    return left


def kinds_text(left: Mapping[tuple[str, str], int]) -> str:
    """The kinds of what is left out in words, most frequent first: `3 files `._*` (macOS's), 1 folder `.x``."""
    ranked = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join([*_phrases(ranked[:LISTED]), *_rest(ranked[LISTED:])])


def _raise(error: OSError) -> None:
    raise error


def _phrases(ranked: list[tuple[tuple[str, str], int]]) -> Iterator[str]:
    for (what, which), count in ranked:
        yield f"{count:,} {what}{'' if count == 1 else 's'} {which}"


def _rest(ranked: list[tuple[tuple[str, str], int]]) -> list[str]:
    return [f"{sum(count for _, count in ranked):,} of other kinds"] if ranked else []


def _kind_of(name: str) -> tuple[str, str]:
    if name.startswith("._"):
        return "file", "`._*` (macOS's)"
    if is_left_out(name):
        return "file", f"`{name}`" if name in ("Thumbs.db", "desktop.ini", ".DS_Store") else "`.*` (hidden)"
    suffix = os.path.splitext(name)[1].lower()
    if not suffix:
        return "file", "without a suffix"
    if suffix in VIDEOS:
        return "file", f"`{suffix}` (a video: {FRAMES})"
    return "file", f"`{suffix}`" + (" (not read: save as PNG or JPEG)" if suffix in NOT_DECODED else "")
