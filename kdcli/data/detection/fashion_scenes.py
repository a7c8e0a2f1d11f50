"""Scenes of garments: a small detection set in COCO's format, composed from Fashion-MNIST.

Every scene is a function of (seed, side, number) alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.data.classification.arrays import fashion_mnist
from kdcli.data.draws import CONTENT, generator
from kdcli.data.facts import FASHION
from kdcli.spec.places import HERE

CANVAS = 128
SIDES: dict[Literal["train", "test"], int] = {"train": 1500, "test": 300}
"""Scenes of each side; its garments come from Fashion-MNIST's split of the same name, so none is in both."""

SMALLEST, LARGEST = 24, 56
MOST_GARMENTS = 4
MOST_OVERLAP = 0.15
"""Of the smaller of two boxes."""

TRIES = 40
VISIBLE = 0.12
"""Opacity from which a pixel belongs to its garment's box."""

Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 as edges."""


@dataclass(frozen=True, slots=True)
class Garments:
    """Fashion-MNIST's images, uint8 [N, 28, 28], and labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def make_scenes(
    out_dir: Path,
    seed: int = 0,
    *,
    root: str | None = None,
    num_train: int = SIDES["train"],
    num_test: int = SIDES["test"],
) -> dict[str, Path]:
    """Write `train/`, `test/`, `train.json`, `test.json`; returns the two annotation files by side.

    root: the folder of Fashion-MNIST's idx files. The same seed gives the same bytes. Raises SpecError KD506
    where Fashion-MNIST is missing.
    """
    written: dict[str, Path] = {}
    for number, (side, count) in enumerate((("train", num_train), ("test", num_test))):
        garments = _garments("train" if side == "train" else "test", root)
        folder = out_dir / side
        folder.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for index in range(count):
            rng = generator(seed, number, index, stream=CONTENT)
            canvas, found = compose(garments, rng)
            name = f"{index:05d}.png"
            Image.fromarray(canvas).save(folder / name, compress_level=1)
            images.append({"id": index + 1, "file_name": name, "height": CANVAS, "width": CANVAS})
            for box, label in found:
                rows.append(_annotation(len(rows) + 1, index + 1, box, label))
        categories = [{"id": place, "name": name} for place, name in enumerate(FASHION, start=1)]
        file = out_dir / f"{side}.json"
        content = {"images": images, "annotations": rows, "categories": categories}
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")
        written[side] = file
    return written


def compose(garments: Garments, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[Box, int]]]:
    """One scene, uint8 [128, 128, 3], and its (box, class from 0)."""
    canvas = _background(rng)
    for _ in range(int(rng.integers(3, 9))):
        _paste_fragment(canvas, garments, rng)
    found: list[tuple[Box, int]] = []
    for _ in range(int(rng.integers(1, MOST_GARMENTS + 1))):
        which = int(rng.integers(len(garments.labels)))
        piece = _resized(_tight(garments.images[which]), int(rng.integers(SMALLEST, LARGEST + 1)))
        if rng.random() < 0.5:
            piece = piece[:, ::-1]
        place = _free_place(piece, [box for box, _ in found], rng)
        if place is None:
            continue
        x, y, box = place
        _paste(canvas, piece, x, y, _tint(rng))
        found.append((box, int(garments.labels[which])))
    return np.rint(canvas * 255).astype(np.uint8), found


def overlap(a: Box, b: Box) -> float:
    """The shared area over the smaller of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def _garments(split: Literal["train", "test"], root: str | None) -> Garments:
    data = fashion_mnist((), HERE, split == "train", root=root, split=split)
    assert data.labels is not None
    return Garments(data.images[:, 0].numpy(), data.labels)


def _annotation(number: int, image: int, box: Box, label: int) -> dict[str, Any]:
    width, height = box[2] - box[0], box[3] - box[1]
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [box[0], box[1], width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _background(rng: np.random.Generator) -> Floats:
    """A smooth dim gradient with some grain."""
    corners = rng.uniform(0.05, 0.45, (2, 2, 3)).astype(np.float32)
    ramp = np.linspace(0, 1, CANVAS, dtype=np.float32)
    top = corners[0, 0] + ramp[:, None] * (corners[0, 1] - corners[0, 0])
    bottom = corners[1, 0] + ramp[:, None] * (corners[1, 1] - corners[1, 0])
    smooth = top[None] + ramp[:, None, None] * (bottom - top)[None]
    grain = rng.standard_normal((CANVAS, CANVAS, 1), dtype=np.float32) * np.float32(0.03)
    background: Floats = np.clip(smooth + grain, 0, 1).astype(np.float32)
    return background


def _tint(rng: np.random.Generator) -> Floats:
    return rng.uniform(0.35, 1.0, 3).astype(np.float32)


def _tight(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The garment without the empty rows and columns around it."""
    inside = image > 255 * VISIBLE
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else image


def _resized(image: NDArray[np.uint8], longer: int) -> Floats:
    """The image in 0..1 with its longer side at so many pixels."""
    height, width = image.shape
    factor = longer / max(height, width)
    size = (max(4, round(width * factor)), max(4, round(height * factor)))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return resized.astype(np.float32) / np.float32(255)


def _opacity(piece: Floats) -> Floats:
    opacity: Floats = np.clip(piece * np.float32(3), 0, 1)
    return opacity


def _extent(piece: Floats, x: int, y: int) -> Box:
    """The box of what is visible of a piece at a place."""
    inside = _opacity(piece) > VISIBLE
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)


def _free_place(piece: Floats, others: list[Box], rng: np.random.Generator) -> tuple[int, int, Box] | None:
    height, width = piece.shape
    for _ in range(TRIES):
        x, y = int(rng.integers(CANVAS - width + 1)), int(rng.integers(CANVAS - height + 1))
        box = _extent(piece, x, y)
        if all(overlap(box, other) <= MOST_OVERLAP for other in others):
            return x, y, box
    return None


def _paste(canvas: Floats, piece: Floats, x: int, y: int, tint: Floats) -> None:
    height, width = piece.shape
    alpha = _opacity(piece)[:, :, None]
    window = canvas[y : y + height, x : x + width]
    window *= 1 - alpha
    window += alpha * (piece[:, :, None] * tint)


def _paste_fragment(canvas: Floats, garments: Garments, rng: np.random.Generator) -> None:
    """A small cut-out of some garment, which nobody is to find."""
    image = garments.images[int(rng.integers(len(garments.labels)))]
    side = int(rng.integers(6, 11))
    y, x = (int(rng.integers(4, 24 - side + 1)) for _ in range(2))
    piece = _resized(image[y : y + side, x : x + side], int(rng.integers(8, 19)))
    height, width = piece.shape
    place = int(rng.integers(CANVAS - width + 1)), int(rng.integers(CANVAS - height + 1))
    _paste(canvas, piece, *place, _tint(rng))
