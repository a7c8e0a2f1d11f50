"""A COCO annotation file: images, categories and boxes, checked."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcli.errors import RunError, did_you_mean

LONGEST_SIDE = 2**31
"""No side of an image is as long; no id has more than 64 bits: what other tools can hold."""


class Annotation(NamedTuple):
    """One box. bbox: x, y, width, height as written. edges: inside its image, None where nothing of it is.

    image, category: ids. area: as written, None where it is not.
    """

    image: int
    category: int
    bbox: list[float]
    edges: list[float] | None
    area: float | None
    crowd: bool


@dataclass(frozen=True, slots=True)
class CocoContent:
    """A file with images and categories checked: rows and names by id, the names by ascending id.

    annotations: each is checked when it is reached, once; raises RunError KD561.
    """

    images: Mapping[int, Any]
    names: Mapping[int, str]
    annotations: Iterator[Annotation]


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its id, file, size in pixels.

    boxes: float32 [n, 5], edges and class from 1, cut to the image. crowds: float32 [m, 4].
    """

    id: int
    file_name: str
    height: int
    width: int
    boxes: NDArray[np.float32]
    crowds: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CocoFile:
    """What a file holds. images: by ascending id. categories: ids, ascending; class i is the i-th, from 1.

    dropped: how many boxes were left out because nothing of them lies in their image; crowds: how many
    regions there are.
    """

    path: Path
    images: tuple[CocoImage, ...]
    categories: tuple[int, ...]
    class_names: tuple[str, ...]
    dropped: int
    crowds: int


def read_coco(path: Path) -> CocoFile:
    """Read and check; raises RunError KD560 (no such file form), KD561 (an annotation), KD562 (an image)."""
    content = read_content(path)
    images, names = content.images, content.names
    classes = {category: number for number, category in enumerate(names, start=1)}
    boxes: dict[int, list[list[float]]] = {image: [] for image in images}
    crowds: dict[int, list[list[float]]] = {image: [] for image in images}
    dropped = 0
    for annotation in content.annotations:
        if annotation.edges is None:
            dropped += 1
        elif annotation.crowd:
            crowds[annotation.image].append(annotation.edges)
        else:
            boxes[annotation.image].append([*annotation.edges, float(classes[annotation.category])])
    found = tuple(
        CocoImage(
            image,
            row["file_name"],
            row["height"],
            row["width"],
            np.array(boxes[image], dtype=np.float32).reshape(-1, 5),
            np.array(crowds[image], dtype=np.float32).reshape(-1, 4),
        )
        for image, row in sorted(images.items())
    )
    regions = sum(len(own) for own in crowds.values())
    return CocoFile(path, found, tuple(names), tuple(names.values()), dropped, regions)


def read_content(path: Path) -> CocoContent:
    """Read a file and check its images and categories; raises RunError KD560, KD562."""
    data = _parsed(path)
    names = _categories(data["categories"], path)
    images = _images(data["images"], path)
    found = (_annotation(row, place, path, images, names) for place, row in enumerate(data["annotations"]))
    return CocoContent(images, names, found)


def read_names(path: Path) -> dict[int, str]:
    """The categories alone, names by ascending id; raises RunError KD560."""
    return _categories(_parsed(path)["categories"], path)


def cut(box: list[float], height: int, width: int) -> list[float] | None:
    """Edges of an (x, y, width, height) box inside the image; None where nothing is left."""
    x, y, w, h = box
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(width), x + w), min(float(height), y + h)
    if w <= 0 or h <= 0 or right <= left or bottom <= top:
        return None
    return [left, top, right, bottom]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        # A byte order mark is what some editors begin a file with.
        with path.open(encoding="utf-8-sig") as file:
            data = json.load(file)
    except FileNotFoundError as reason:
        raise RunError.of(
            "KD560", f"there is no file `{path}`", "`meta_file` names a COCO annotation file (json)"
        ) from reason
    except (OSError, ValueError, RecursionError) as reason:
        raise RunError.of("KD560", f"`{path}` can't be read as json: {reason}") from reason
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise RunError.of(
                "KD560",
                f"`{path}` has no list `{key}`",
                "a COCO file is a mapping with the lists images, annotations and categories",
            )
    return dict(data)


def _categories(rows: list[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping) or not _whole(row.get("id")):
            raise RunError.of("KD560", f"`{path}`: categories[{place}] has no whole number as `id`")
        if row["id"] in names:
            raise RunError.of("KD560", f"`{path}`: two categories have the id {row['id']}")
        names[row["id"]] = str(row.get("name", row["id"]))
    if not names:
        raise RunError.of("KD560", f"`{path}` has no categories")
    return dict(sorted(names.items()))


def _images(rows: list[Any], path: Path) -> dict[int, Any]:
    images: dict[int, Any] = {}
    for place, row in enumerate(rows):
        good = isinstance(row, Mapping) and _whole(row.get("id")) and isinstance(row.get("file_name"), str)
        sized = good and all(
            _whole(row.get(side)) and 0 < row[side] < LONGEST_SIDE for side in ("height", "width")
        )
        if not sized:
            raise RunError.of(
                "KD562",
                f"`{path}`: images[{place}] lacks `id`, `file_name`, `height` or `width`",
                "every image has a whole number (at most 64 bits) as id, a file name, and its size in pixels",
            )
        if row["id"] in images:
            raise RunError.of("KD562", f"`{path}`: two images have the id {row['id']}")
        images[row["id"]] = row
    return images


def _annotation(
    row: Any, place: int, path: Path, images: Mapping[int, Any], names: Mapping[int, str]
) -> Annotation:
    where = f"`{path}`: annotations[{place}]"
    if not isinstance(row, Mapping):
        raise RunError.of("KD561", f"{where} is no mapping")
    box: Any = row.get("bbox")
    image: Any = row.get("image_id")
    category: Any = row.get("category_id")
    if not _whole(image) or image not in images:
        raise RunError.of(
            "KD561", f"{where} belongs to image {reprlib.repr(image)}, which the file does not list"
        )
    if not _whole(category) or category not in names:
        raise RunError.of(
            "KD561",
            f"{where} has category {reprlib.repr(category)}, which the file does not list",
            did_you_mean(str(category), [str(known) for known in names]),
        )
    numbers = isinstance(box, list) and len(box) == 4 and all(_number(value) for value in box)
    if not numbers:
        raise RunError.of(
            "KD561", f"{where} has no box: {reprlib.repr(box)}", "`bbox` is [x, y, width, height] in pixels"
        )
    area: Any = row.get("area")
    if "area" in row and not (_number(area) and area >= 0):
        raise RunError.of(
            "KD561",
            f"{where} has no such area: {reprlib.repr(area)}",
            "`area` is in square pixels; without it the box's",
        )
    crowd: Any = row.get("iscrowd", 0)
    if not isinstance(crowd, int) or crowd not in (0, 1):
        raise RunError.of("KD561", f"{where} has `iscrowd` {reprlib.repr(crowd)}", "`iscrowd` is 0 or 1")
    bbox = [float(value) for value in box]
    edges = cut(bbox, images[image]["height"], images[image]["width"])
    return Annotation(image, category, bbox, edges, None if area is None else float(area), bool(crowd))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
