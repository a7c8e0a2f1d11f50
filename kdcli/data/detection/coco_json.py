"""A COCO annotation file: images, categories and boxes, read once and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from kdcli.data.detection.coco_rows import Ids, Key, Notes, key_of, read_boxes, read_categories, read_images
from kdcli.errors import Diagnostic, RunError

MOST_HELD = 4
"""How many parsed files are kept in memory: training, test and `gt_file`, and one more."""

ROUNDING = 0.02
"""Boxes that exceed the border by fewer pixels are inside: COCO rounds x and width to a hundredth each."""

ENOUGH_BOXES = 10
"""Of fewer boxes, all may by chance be wider than their x and higher than their y."""


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CocoFile:
    """The content of a COCO file, as training and evaluation share it.

    ids: int64 [N], of the images, ascending. file_names. sizes: int64 [N, 2], height and width. names: of the
    categories, by ascending id. Ids that are texts and no whole numbers have become numbers, by order of
    appearance; written_images, written_categories: what stands in the file for each id that is a text.

    The boxes, in the file's order: box_images, box_categories: int64 [M], places in ids and in names. boxes:
    float64 [M, 4], x, y, width, height as written. edges: float64 [M, 4], cut to the image. inside: bool [M],
    whether anything of it is. areas: float64 [M], as written, NaN where they are not. crowd: bool [M].

    derived: what was derived, counted, in words; None where nothing was. unlisted: how many annotations
    were left out because their image is not listed.
    """

    path: Path
    ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    names: Mapping[int, str]
    written_images: Mapping[int, str]
    written_categories: Mapping[int, str]
    box_images: NDArray[np.int64]
    box_categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    edges: NDArray[np.float64]
    inside: NDArray[np.bool_]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    derived: str | None
    unlisted: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the classes."""
        return tuple(self.names.values())

    @property
    def dropped(self) -> int:
        """How many boxes are left out because nothing of them lies in their image."""
        return int((~self.inside).sum())

    @property
    def misfits(self) -> str | None:
        """How many boxes do not lie in their image, in words; None where all do."""
        cut_to = int((self.inside & beyond(self.boxes, self.sizes[self.box_images])).sum())
        told = {
            "empty or outside the image (left out)": self.dropped,
            "partly outside (cut to the image)": cut_to,
        }
        counts = [f"{n} {'box is' if n == 1 else 'boxes are'} {what}" for what, n in told.items() if n]
        return ", ".join(counts) or None

    @property
    def crowds(self) -> int:
        """How many regions of crowds there are."""
        return int((self.inside & self.crowd).sum())

    @property
    def notice(self) -> str | None:
        """The values that were derived because the file lacks them, in words; None where it lacks none."""
        return None if self.derived is None else f"`{self.path}`: {self.derived}"

    @property
    def image_keys(self) -> dict[Key, int]:
        """The place of each image by the id that files are compared by (key_of)."""
        ids = enumerate(self.ids.tolist())
        return {_key(self.written_images.get(image, image)): place for place, image in ids}

    @property
    def category_keys(self) -> dict[Key, int]:
        """The place of each category by the id that files are compared by (key_of)."""
        return {_key(self.written_categories.get(c, c)): place for place, c in enumerate(self.names)}


def _key(written: Key) -> Key:
    found = key_of(written)
    assert found is not None, written
    return found


class CocoImages(Sequence[CocoImage]):
    """Images of a file with their boxes, made when they are asked for.

    classes: the class, from 1, of each of the file's categories; by default in their order. Pickles without
    the file's other arrays, for workers.
    """

    def __init__(self, file: CocoFile, classes: Sequence[int] | None = None) -> None:
        numbers = np.arange(1, len(file.names) + 1) if classes is None else np.array(classes, dtype=np.int64)
        self._ids, self._names, self._sizes = file.ids, file.file_names, file.sizes
        labels = numbers[file.box_categories][:, None]
        boxes = np.concatenate([file.edges, labels], axis=1).astype(np.float32)
        own, crowds = file.inside & ~file.crowd, file.inside & file.crowd
        self._boxes, self._first = _by_image(boxes, file, own)
        self._crowds, self._first_crowd = _by_image(boxes[:, :4], file, crowds)
        self._chosen = np.arange(len(file.ids))

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CocoImage]: ...
    def __getitem__(self, index: int | slice) -> CocoImage | Sequence[CocoImage]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = int(self._chosen[index])
        height, width = self._sizes[place].tolist()
        return CocoImage(
            int(self._ids[place]),
            self._names[place],
            height,
            width,
            self._boxes[self._first[place] : self._first[place + 1]],
            self._crowds[self._first_crowd[place] : self._first_crowd[place + 1]],
        )

    def with_boxes(self) -> CocoImages:
        """Those that have a box which is no crowd."""
        fewer = object.__new__(CocoImages)
        fewer.__dict__ |= self.__dict__
        fewer._chosen = self._chosen[np.diff(self._first)[self._chosen] > 0]
        return fewer

    def subset(self, indices: NDArray[np.int64]) -> CocoImages:
        """Those at some places."""
        fewer = object.__new__(CocoImages)
        fewer.__dict__ |= self.__dict__
        fewer._chosen = self._chosen[indices]
        return fewer

    def aspect_ratios(self) -> NDArray[np.float64]:
        """Height/width of each."""
        sizes = self._sizes[self._chosen].astype(np.float64)
        ratios: NDArray[np.float64] = sizes[:, 0] / sizes[:, 1]
        return ratios


def _by_image(
    rows: NDArray[np.float32], file: CocoFile, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The chosen rows, image after image, and where each image's begin (and the last one's end)."""
    images = file.box_images[chosen]
    order = np.argsort(images, kind="stable")
    first = np.searchsorted(images[order], np.arange(len(file.ids) + 1)).astype(np.int64)
    return np.ascontiguousarray(rows[chosen][order]), first


_held: dict[tuple[str, int, int], CocoFile | tuple[Diagnostic, ...]] = {}
"""By resolved path, size and time of the last change: what a command asks several times is read once."""


def read_coco(path: Path) -> CocoFile:
    """Read and check; raises RunError KD560 (no such file form), KD561 (an annotation), KD562 (an image)."""
    try:
        state = path.stat()
        key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    except (OSError, ValueError, RuntimeError) as reason:
        raise _unreadable(path, reason) from reason
    if key not in _held:
        while len(_held) >= MOST_HELD:
            del _held[next(iter(_held))]
        try:
            _held[key] = _read(path)
        except RunError as error:
            _held[key] = error.diagnostics
    found = _held[key] = _held.pop(key)  # the last one asked for is the last one to go
    if isinstance(found, tuple):
        raise RunError(found)
    return found if found.path == path else replace(found, path=path)


def _read(path: Path) -> CocoFile:
    data = _parsed(path)
    notes = Notes(str(path))
    category_ids, names = read_categories(data["categories"], notes)
    images = read_images(data["images"], notes)
    rows = read_boxes(data["annotations"], images.ids.numbers, category_ids.numbers, notes)
    ids, image_places = _ascending(images.ids)
    categories, category_places = _ascending(category_ids)
    sizes = np.array(images.sizes, dtype=np.int64).reshape(-1, 2)
    _refuse_other_boxes(path, rows.boxes, sizes[rows.images])
    edges, inside = cut(rows.boxes, sizes[rows.images])
    own_names = dict(zip(category_ids.numbers.values(), names, strict=True))
    order = np.argsort(image_places)
    return CocoFile(
        path=path,
        ids=ids,
        file_names=tuple(images.file_names[place] for place in order.tolist()),
        sizes=sizes[order],
        names={category: own_names[category] for category in categories.tolist()},
        written_images=images.ids.written,
        written_categories=category_ids.written,
        box_images=image_places[rows.images],
        box_categories=category_places[rows.categories],
        boxes=rows.boxes,
        edges=edges,
        inside=inside,
        areas=rows.areas,
        crowd=rows.crowds,
        derived=notes.text(),
        unlisted=notes.counts["unlisted"],
    )


def _ascending(ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids sorted, and where among these each of the file's rows is."""
    numbers = np.array(list(ids.numbers.values()), dtype=np.int64)
    found = np.sort(numbers)
    return found, np.searchsorted(found, numbers).astype(np.int64)


def cut(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Edges [n, 4] of (x, y, width, height) boxes inside images of (height, width), and which have any.

    What is empty in the float32 that networks see is empty.
    """
    x, y, w, h = boxes.reshape(-1, 4).T
    height, width = sizes.reshape(-1, 2).T.astype(np.float64)
    with np.errstate(over="ignore"):
        right, bottom = np.minimum(width, x + w), np.minimum(height, y + h)
    left, top = np.maximum(0.0, x), np.maximum(0.0, y)
    inside = (w > 0) & (h > 0) & (right > left) & (bottom > top)
    edges = np.where(inside[:, None], np.stack([left, top, right, bottom], axis=1), 0.0)
    small = edges.astype(np.float32)
    return edges, inside & (small[:, 2] > small[:, 0]) & (small[:, 3] > small[:, 1])


def beyond(boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which (x, y, width, height) boxes [n, 4] reach over a border of their image of (height, width)."""
    x, y, w, h = boxes.reshape(-1, 4).T
    height, width = sizes.reshape(-1, 2).T.astype(np.float64)
    with np.errstate(over="ignore"):
        room = np.min([x, y, width - (x + w), height - (y + h)], axis=0)
    over: NDArray[np.bool_] = room < -ROUNDING
    return over


def _refuse_other_boxes(path: Path, boxes: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
    """Raise RunError KD561 where the boxes of a file can't be meant as (x, y, width, height) in pixels.

    Shares of the image's sides: none is larger than 1, and they are no whole numbers. Corners: read as
    (x1, y1, x2, y2) every box is one inside its image, and read as they should be some reach beyond it.
    """
    if not len(boxes):
        return
    if 0 <= boxes.min() and boxes.max() <= 1 and (boxes % 1).any():
        raise RunError.of(
            "KD561",
            f"`{path}`: no `bbox` has a number above 1: they are shares of the image's width and height",
            "`bbox` is [x, y, width, height] in pixels: multiply by the image's width and height",
        )
    height, width = sizes.T.astype(np.float64)
    left, top, right, bottom = boxes.T
    corners = (left >= 0) & (top >= 0) & (right > left) & (bottom > top)
    corners &= (right <= width + ROUNDING) & (bottom <= height + ROUNDING)
    if len(boxes) < ENOUGH_BOXES or not corners.all() or not (over := beyond(boxes, sizes)).any():
        return
    raise RunError.of(
        "KD561",
        f"`{path}`: the boxes are corners, [x1, y1, x2, y2]: so read all {len(boxes)} lie in their images, and read"
        f" as [x, y, width, height] {int(over.sum())} reach beyond",
        "write x2 - x1 and y2 - y1 as width and height; where they are widths and heights already, cut the boxes"
        " to their images",
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        # A byte order mark is what some editors begin a file with.
        with path.open(encoding="utf-8-sig") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as reason:
        raise _unreadable(path, reason) from reason
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise RunError.of(
                "KD560",
                f"`{path}` has no list `{key}`",
                "a COCO file is a mapping with the lists images, annotations and categories",
            )
    return dict(data)


def _unreadable(path: Path, reason: Exception) -> RunError:
    if isinstance(reason, FileNotFoundError):
        help = "`meta_file` names a COCO annotation file (json)"
        return RunError.of("KD560", f"there is no file `{path}`", help)
    return RunError.of("KD560", f"`{path}` can't be read as json: {reason}")
