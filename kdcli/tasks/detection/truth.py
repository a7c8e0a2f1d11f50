"""What predicted boxes are measured by: the boxes of an annotation file, as training sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdcli.data.coco_json import Annotation, read_content

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


@dataclass(frozen=True, slots=True)
class Truth:
    """images: ids, ascending. names: of the categories, by ascending id."""

    path: Path
    images: tuple[int, ...]
    names: Mapping[int, str]
    boxes: tuple[TrueBox, ...]

    def counting(self, images: Collection[int]) -> int:
        """How many boxes of these images a detector has to find: all but crowds."""
        return sum(not box.crowd and box.image in images for box in self.boxes)


def read_truth(path: Path) -> Truth:
    """Read and check a COCO file; raises RunError KD560 to KD562.

    What the data leaves out as empty or outside its image is not there either, since nobody can find it;
    boxes that reach over the border are cut to the image, as in training. All others are as written, so that
    the figures are COCO's. Without an `area`, a box has its width times its height.
    """
    content = read_content(path)
    sizes = {image: (row["height"], row["width"]) for image, row in content.images.items()}
    boxes = tuple(_box(row, *sizes[row.image]) for row in content.annotations if row.edges is not None)
    return Truth(path, tuple(sorted(sizes)), content.names, boxes)


def _box(row: Annotation, height: int, width: int) -> TrueBox:
    assert row.edges is not None
    x, y, w, h = row.bbox
    if min(x, y, width - (x + w), height - (y + h)) < -ROUNDING:
        left, top, right, bottom = row.edges
        x, y, w, h = left, top, right - left, bottom - top
    area = w * h if row.area is None else row.area
    return TrueBox(row.image, row.category, (x, y, w, h), area, row.crowd)
