"""What predicted boxes are measured by: the boxes of an annotation file, as training sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcli.data.detection.coco_json import CocoFile, read_coco

ROUNDING = 0.02
"""So many pixels over the border are no reason to cut: COCO rounds x and width to a hundredth each."""


@dataclass(frozen=True, slots=True)
class TrueBox:
    """One box to be found, or a crowd's region. image, category: ids. bbox: x, y, width, height in pixels."""

    image: int
    category: int
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The boxes of a file that count, in its order.

    box_images, box_categories: int64 [M], places in file.ids and in file.names. bboxes: float64 [M, 4], x, y,
    width, height. areas: float64 [M]. crowds: bool [M].
    """

    file: CocoFile
    box_images: NDArray[np.int64]
    box_categories: NDArray[np.int64]
    bboxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]

    @property
    def path(self) -> Path:
        """The file's."""
        return self.file.path

    @property
    def images(self) -> tuple[int, ...]:
        """Ids, ascending."""
        return tuple(self.file.ids.tolist())

    @property
    def names(self) -> Mapping[int, str]:
        """Of the categories, by ascending id."""
        return self.file.names

    @property
    def boxes(self) -> tuple[TrueBox, ...]:
        """Each box by itself."""
        ids, categories = self.images, tuple(self.names)
        rows = zip(
            self.box_images.tolist(),
            self.box_categories.tolist(),
            self.bboxes.tolist(),
            self.areas.tolist(),
            self.crowds.tolist(),
            strict=True,
        )
        return tuple(
            TrueBox(ids[image], categories[category], tuple(bbox), area, crowd)
            for image, category, bbox, area, crowd in rows
        )

    def counting(self, images: Collection[int]) -> int:
        """How many boxes of these images a detector has to find: all but crowds."""
        chosen = np.isin(self.file.ids, np.array(sorted(images), dtype=np.int64))
        return int((chosen[self.box_images] & ~self.crowds).sum())


def read_truth(path: Path) -> Truth:
    """Read and check a COCO file; raises RunError KD560 to KD562.

    What the data leaves out as empty or outside its image is not there either, since nobody can find it;
    boxes that reach over the border are cut to the image, as in training. All others are as written, so that
    the figures are COCO's. Without an `area`, a box has its width times its height.
    """
    found = read_coco(path)
    kept = found.inside
    images, boxes, edges = found.box_images[kept], found.boxes[kept], found.edges[kept]
    height, width = found.sizes[images].T.astype(np.float64)
    x, y, w, h = boxes.T
    with np.errstate(over="ignore"):
        over = np.min([x, y, width - (x + w), height - (y + h)], axis=0) < -ROUNDING
    inner = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)
    bboxes = np.where(over[:, None], inner, boxes)
    areas = found.areas[kept]
    areas = np.where(np.isnan(areas), bboxes[:, 2] * bboxes[:, 3], areas)
    return Truth(found, images, found.box_categories[kept], bboxes, areas, found.crowd[kept])
