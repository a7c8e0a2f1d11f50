"""The rows of a COCO file as exporters write them: what can be derived is derived and counted."""

from __future__ import annotations

import json
import math
import re
import reprlib
from array import array
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcli.errors import RunError, cut_off, did_you_mean

LONGEST_SIDE = 2**31
"""No side of an image is as long; no id has more than 64 bits: what other tools can hold."""

DIGITS = re.compile(r"-?[0-9]{1,19}")
NOTED = {
    "text": ("id written as text", "ids written as text"),
    "point": ("whole number written with a point", "whole numbers written with a point"),
    "name": ("category without `name` (its id is taken)", "categories without `name` (their ids are taken)"),
    "polygon": (
        "box without `bbox` (the extent of its polygons is taken)",
        "boxes without `bbox` (the extent of their polygons is taken)",
    ),
    "area": (
        "box without `area` (width x height is taken)",
        "boxes without `area` (width x height is taken)",
    ),
    "crowd": ("box without `iscrowd` (0 is taken)", "boxes without `iscrowd` (0 is taken)"),
    "unlisted": (
        "annotation of an image that is not listed (left out)",
        "annotations of images that are not listed (left out)",
    ),
}
"""What is counted, by kind: the words for one, and for several."""

IMAGE_HELP = (
    "every image has a whole number (at most 64 bits) or a text as id, a file name, and its size in pixels"
)

ID = "not a whole number (at most 64 bits) or a text"

Key = int | str
"""An id as files are compared by: 17 for 17, 17.0 and "17"; a text that is no whole number as it is."""


@dataclass(slots=True)
class Notes:
    """Counts of values that were derived or converted while reading; file: its name in messages."""

    file: str
    counts: Counter[str] = field(default_factory=Counter)

    def text(self) -> str | None:
        """The counts in words; None where the file is as COCO's are."""
        parts = [f"{self.counts[kind]} {words[self.counts[kind] != 1]}" for kind, words in NOTED.items()]
        kept = [part for part, kind in zip(parts, NOTED, strict=True) if self.counts[kind]]
        return ", ".join(kept) or None


class Ids(NamedTuple):
    """numbers: the id of each row, in the file's order. written: those that stand there as text."""

    numbers: dict[Key, int]
    written: dict[int, str]


class ImageRows(NamedTuple):
    """ids, file names, and (height, width) of each image, in the file's order."""

    ids: Ids
    file_names: list[str]
    sizes: list[tuple[int, int]]


class BoxRows(NamedTuple):
    """Annotations of listed images, in the file's order.

    images, categories: int64 [M], places in the file's lists. boxes: float64 [M, 4], x, y, width, height.
    areas: float64 [M], NaN where there is none. crowds: bool [M].
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]


def read_categories(rows: list[Any], notes: Notes) -> tuple[Ids, list[str]]:
    """Ids and names in the file's order; raises RunError KD560."""
    names: dict[Key, str] = {}
    written: dict[Key, str] = {}
    for place, row in enumerate(rows):
        where = f"`{notes.file}`: categories[{place}]"
        if not isinstance(row, Mapping):
            raise RunError.of("KD560", f"{where} is `{shown(row)}`, not a mapping")
        key = key_of(row.get("id"), notes)
        if key is None:
            raise RunError.of("KD560", f"{where}: {stands(row, 'id', ID)}")
        if key in names:
            raise RunError.of("KD560", f"`{notes.file}`: two categories have the id {shown(key)}")
        name = row.get("name")
        if name is None:
            notes.counts["name"] += 1
            name = str(key)
        elif isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise RunError.of("KD560", f"{where}: {stands(row, 'name', 'not a text')}")
        names[key] = str(name)
        if not _can_be_written(names[key]):
            raise RunError.of("KD560", f"{where}: {stands(row, 'name', 'half of a character')}")
        if isinstance(row["id"], str):
            written[key] = row["id"]
    if not names:
        raise RunError.of("KD560", f"`{notes.file}` has no categories")
    return _numbered(names, written), list(names.values())


def read_images(rows: list[Any], notes: Notes) -> ImageRows:
    """Ids, names and sizes; raises RunError KD562."""
    keys: dict[Key, None] = {}
    written: dict[Key, str] = {}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for place, row in enumerate(rows):
        where = f"`{notes.file}`: images[{place}]"
        if not isinstance(row, Mapping):
            raise RunError.of("KD562", f"{where} is `{shown(row)}`, not a mapping", IMAGE_HELP)
        key = key_of(row.get("id"), notes)
        if key is None:
            raise RunError.of("KD562", f"{where}: {stands(row, 'id', ID)}", IMAGE_HELP)
        where = f"`{notes.file}`: image {shown(row['id'])}"
        if key in keys:
            raise RunError.of("KD562", f"`{notes.file}`: two images have the id {shown(key)}")
        name = row.get("file_name")
        if not isinstance(name, str) or "\0" in name or not _can_be_written(name):
            wrong = stands(row, "file_name", "not a file's name")
            raise RunError.of("KD562", f"{where}: {wrong}", IMAGE_HELP)
        height, width = (_side(row, side, where, notes) for side in ("height", "width"))
        keys[key] = None
        names.append(name)
        sizes.append((height, width))
        if isinstance(row["id"], str):
            written[key] = row["id"]
    return ImageRows(_numbered(keys, written), names, sizes)


def read_boxes(
    rows: list[Any], images: Collection[Key], categories: Collection[Key], notes: Notes
) -> BoxRows:
    """The annotations; images, categories: the listed ids, in the file's order. Raises RunError KD561."""
    image_places = {key: place for place, key in enumerate(images)}
    category_places = {key: place for place, key in enumerate(categories)}
    seen: set[Key] = set()
    own_images, own_categories = array("q"), array("q")
    boxes, areas, crowds = array("d"), array("d"), array("b")
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RunError.of(
                "KD561", f"`{notes.file}`: annotations[{place}] is `{shown(row)}`, not a mapping"
            )
        if row.get("id") is not None:
            own = key_of(row["id"], notes)
            if own is None:
                raise _wrong(row, place, "id", ID, notes)
            if own in seen:
                raise RunError.of("KD561", f"`{notes.file}`: two annotations have the id {shown(own)}")
            seen.add(own)
        image = key_of(row.get("image_id"), notes)
        if image is None:
            raise _wrong(row, place, "image_id", "not the id of an image", notes)
        if image not in image_places:
            notes.counts["unlisted"] += 1
            continue
        category = key_of(row.get("category_id"), notes)
        if category is None or category not in category_places:
            hint = None if category is None else did_you_mean(str(category), [str(k) for k in categories])
            raise _wrong(row, place, "category_id", "which the file does not list", notes, hint)
        boxes.extend(_box(row, place, notes))
        areas.append(_area(row, place, notes))
        crowds.append(_crowd(row, place, notes))
        own_images.append(image_places[image])
        own_categories.append(category_places[category])
    return BoxRows(
        np.array(own_images, dtype=np.int64),
        np.array(own_categories, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(areas, dtype=np.float64),
        np.array(crowds, dtype=np.bool_),
    )


def key_of(value: Any, notes: Notes | None = None) -> Key | None:
    """The key by which an id is compared; None where the value is no id. notes: counts other ids than whole numbers."""
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**63:
        if notes is not None:
            notes.counts["point"] += 1
        return int(value)
    if isinstance(value, str) and value and _can_be_written(value):
        if notes is not None:
            notes.counts["text"] += 1
        number = int(value) if DIGITS.fullmatch(value) else None
        return value if number is None or not -(2**63) <= number < 2**63 else number
    return None


def shown(value: Any) -> str:
    """A value as json text, cut off for a message."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = reprlib.repr(value)
    return cut_off(text)


def stands(row: Mapping[str, Any], key: str, problem: str) -> str:
    """What is wrong with one key: `is missing`, or its value and the problem with it."""
    return f"`{key}` is `{shown(row[key])}`, {problem}" if key in row else f"`{key}` is missing"


def _wrong(
    row: Mapping[str, Any], place: int, key: str, problem: str, notes: Notes, help: str | None = None
) -> RunError:
    """KD561 for the value of one key of an annotation, which is named by its id, or else by its place."""
    has_id = "id" in row and key != "id" and key_of(row["id"]) is not None
    which = f"annotation {shown(row['id'])}" if has_id else f"annotations[{place}]"
    return RunError.of("KD561", f"`{notes.file}`: {which}: {stands(row, key, problem)}", help)


def _numbered(keys: Collection[Key], written: Mapping[Key, str]) -> Ids:
    """Whole numbers as they are; every other text the next free number from 1, by order of appearance."""
    taken = {key for key in keys if isinstance(key, int)}
    numbers: dict[Key, int] = {}
    free = 1
    for key in keys:
        if isinstance(key, str):
            while free in taken:
                free += 1
            taken.add(free)
            numbers[key] = free
        else:
            numbers[key] = key
    return Ids(numbers, {numbers[key]: text for key, text in written.items()})


def _side(row: Mapping[str, Any], key: str, where: str, notes: Notes) -> int:
    value = row.get(key)
    if type(value) is not int:
        whole = isinstance(value, float) and value.is_integer()
        notes.counts["point"] += whole
        value = int(value) if whole else None  # type: ignore[arg-type]
    if value is None or not 0 < value < LONGEST_SIDE:
        raise RunError.of("KD562", f"{where}: {stands(row, key, 'not a number of pixels')}", IMAGE_HELP)
    return value


def _box(row: Mapping[str, Any], place: int, notes: Notes) -> list[float]:
    box = row.get("bbox")
    if box is None:
        extent = _extent(row.get("segmentation"))
        if extent is None:
            help = "`bbox` is [x, y, width, height] in pixels; without it `segmentation` has to be polygons"
            raise _wrong(row, place, "bbox", "not four numbers", notes, help)
        notes.counts["polygon"] += 1
        return extent
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        help = "`bbox` is [x, y, width, height] in pixels"
        raise _wrong(row, place, "bbox", "not four numbers", notes, help)
    return [float(value) for value in box]


def _extent(segmentation: Any) -> list[float] | None:
    """x, y, width, height around all polygons; None where they are none."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    # Some tools write the one polygon without a list around it.
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_number, polygon)):
            return None
    x, y = ([float(v) for polygon in polygons for v in polygon[axis::2]] for axis in (0, 1))
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)] if len(x) > 2 else None


def _area(row: Mapping[str, Any], place: int, notes: Notes) -> float:
    area = row.get("area")
    if area is None:
        notes.counts["area"] += 1
        return math.nan
    if not _number(area) or area < 0:
        help = "`area` is in square pixels; without it the box's width x height is taken"
        raise _wrong(row, place, "area", "not a number from 0", notes, help)
    return float(area)


def _crowd(row: Mapping[str, Any], place: int, notes: Notes) -> int:
    crowd = row.get("iscrowd")
    if crowd is None:
        notes.counts["crowd"] += 1
        return 0
    if not isinstance(crowd, (int, float)) or crowd not in (0, 1):
        raise _wrong(row, place, "iscrowd", "not 0 or 1", notes)
    return int(crowd)


def _number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _can_be_written(text: str) -> bool:
    """Whether text can be encoded as UTF-8: json may hold half of a character (a lone surrogate)."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
