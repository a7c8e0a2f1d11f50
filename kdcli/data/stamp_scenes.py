"""Photographs composed of cut-out ones: a data set for classification, detection or segmentation.

Every image is a function of (seed, split, number) and of the stamps and backgrounds of its split alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from kdcli.data.detection.fashion_scenes import Box, overlap
from kdcli.data.draws import CONTENT, generator
from kdcli.data.stamps import OPAQUE, Sources, Split, background, licences, stamp
from kdcli.disk import make_folder, writing

Task = Literal["classification", "detection", "segmentation"]

Part = Literal["train", "val", "test", "unlabelled"]
"""A split, or images of training stamps whose labels are not written."""

UNLABELLED: Literal["unlabelled"] = "unlabelled"
NUMBERS: dict[Part, int] = {"train": 0, "test": 1, "val": 2, UNLABELLED: 3}
"""What the random numbers of a part are drawn by."""

MANIFEST = "stamp-scenes.json"
"""The file that says what a folder of composed photographs was made of, and that kdcli made it."""

MADE = (*NUMBERS, "train.json", "val.json", "test.json", MANIFEST)
"""All that can be in such a folder."""

MOST_STAMPS = 4
MOST_OVERLAP = 0.15
"""Of the smaller of two boxes."""
TRIES = 40
TURN = 20.0
"""Degrees."""
LIGHT = (0.7, 1.3)
QUALITY = 95


@dataclass(frozen=True, slots=True)
class Scene:
    """An image, and the objects on it. instances: uint8 [size, size], which object is seen there, from 1; 0: none."""

    image: Image.Image
    labels: tuple[int, ...]
    instances: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is to be made. counts: images of each split; unlabelled: images of training stamps without labels."""

    task: Task
    size: int
    seed: int
    counts: Mapping[Split, int]
    unlabelled: int = 0


def make_stamp_scenes(folder: Path, recipe: Recipe, sources: Sources, root: Path) -> dict[str, int]:
    """Write all images with their labels and the manifest; returns the counts by what they are below the folder.

    classification: `train/<class>/00000.jpg` ...; detection: `train/00000.jpg`, `train.json`; segmentation:
    `train/images/00000.jpg`, `train/masks/00000.png` of class numbers, 0 behind. root: where the packages lie.
    The same seed, sources and Pillow give the same bytes. Raises RunError KD740.
    """
    written: dict[str, int] = {}
    for split, count in recipe.counts.items():
        LAYOUTS[recipe.task].write(folder, recipe, sources, split)
        written[split] = count
    if recipe.unlabelled:
        make_folder(folder / UNLABELLED)
        for index in range(recipe.unlabelled):
            scene = compose(recipe, sources, UNLABELLED, index)
            _save(scene.image, folder / UNLABELLED / f"{index:05d}.jpg")
        written[UNLABELLED] = recipe.unlabelled
    with writing(folder):
        text = json.dumps(_manifest(recipe, sources, root), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    return written


def compose(recipe: Recipe, sources: Sources, part: Part, index: int) -> Scene:
    """One image and its objects, by the number of the image in its part."""
    rng = generator(recipe.seed, NUMBERS[part], index, stream=CONTENT)
    split: Split = "train" if part == "unlabelled" else part
    stamps = sources.stamps[split]
    canvas = _cropped(sources.backgrounds[split], recipe.size, rng)
    instances = Image.new("L", canvas.size)
    labels: list[int] = []
    boxes: list[Box] = []
    several = LAYOUTS[recipe.task].several
    if part == "unlabelled" and sources.others:
        # Every second image shows things of no class, from their folders by turns.
        index, other = divmod(index, 2)
        stamps = (sources.others[index % len(sources.others)],) if other else stamps
    for _ in range(int(rng.integers(1, MOST_STAMPS + 1)) if several else 1):
        label = int(rng.integers(len(stamps))) if several else index % len(stamps)
        piece = _varied(stamps[label], recipe, rng)
        place = _free_place(piece, boxes, recipe.size, rng)
        if place is None:
            continue
        canvas.paste(piece, place, piece)
        labels.append(label)
        seen = piece.getchannel("A").point(lambda value: 255 if value >= OPAQUE else 0)
        instances.paste(len(labels), (*place, place[0] + piece.width, place[1] + piece.height), seen)
        boxes.append((*place, place[0] + piece.width, place[1] + piece.height))
    return Scene(canvas, tuple(labels), instances)


def _cropped(files: Sequence[Path], size: int, rng: np.random.Generator) -> Image.Image:
    """A square of a background, mirrored or not."""
    image = background(files[int(rng.integers(len(files)))], max(size, min(4 * size, 1024)))
    assert image is not None, "find_sources leaves out what is no background"
    side = max(min(image.size) * rng.uniform(0.3, 1.0), min(size, *image.size))
    left, top = (rng.uniform(0, whole - side) for whole in image.size)
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def _varied(files: Sequence[Path], recipe: Recipe, rng: np.random.Generator) -> Image.Image:
    """A stamp, turned a little, mirrored or not, brighter or darker, with its longer side as the layout says."""
    low, high = LAYOUTS[recipe.task].longer
    piece = stamp(files[int(rng.integers(len(files)))], max(256, recipe.size))
    assert piece is not None, "find_sources leaves out what is no stamp"
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle, light, share = rng.uniform(-TURN, TURN), rng.uniform(*LIGHT), rng.uniform(low, high)
    factor = recipe.size * share / max(piece.size)
    width, height = (max(2, round(side * factor)) for side in piece.size)
    piece = piece.resize((width, height), Image.Resampling.BILINEAR)
    piece = piece.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    piece = piece.crop(piece.getchannel("A").getbbox())
    brighter = [min(255, round(value * light)) for value in range(256)]
    piece = piece.point(brighter * 3 + list(range(256)))
    if max(piece.size) > recipe.size:
        piece.thumbnail((recipe.size, recipe.size), Image.Resampling.BILINEAR, reducing_gap=None)
    return piece


def _free_place(
    piece: Image.Image, others: Sequence[Box], size: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a piece that hides little of the others; None where none was found."""
    for _ in range(TRIES):
        x, y = int(rng.integers(size - piece.width + 1)), int(rng.integers(size - piece.height + 1))
        box = (x, y, x + piece.width, y + piece.height)
        if all(overlap(box, other) <= MOST_OVERLAP for other in others):
            return x, y
    return None


def _scenes(recipe: Recipe, sources: Sources, split: Split) -> Iterator[tuple[int, Scene]]:
    for index in range(recipe.counts[split]):
        yield index, compose(recipe, sources, split, index)


def _write_class_folders(folder: Path, recipe: Recipe, sources: Sources, split: Split) -> None:
    """Images as `train/<class>/00000.jpg`, equally many of each class."""
    for name in sources.classes:
        make_folder(folder / split / name)
    for index, scene in _scenes(recipe, sources, split):
        number, label = divmod(index, len(sources.classes))
        _save(scene.image, folder / split / sources.classes[label] / f"{number:05d}.jpg")


def _write_coco(folder: Path, recipe: Recipe, sources: Sources, split: Split) -> None:
    """Images as `train/00000.jpg`, and `train.json` in COCO's format with the boxes of what is seen."""
    make_folder(folder / split)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for index, scene in _scenes(recipe, sources, split):
        name = f"{index:05d}.jpg"
        _save(scene.image, folder / split / name)
        images.append({"id": index + 1, "file_name": name, "height": recipe.size, "width": recipe.size})
        rows += _annotations(scene, index + 1, len(rows) + 1)
    categories = [{"id": place, "name": name} for place, name in enumerate(sources.classes, start=1)]
    content = {"images": images, "annotations": rows, "categories": categories}
    with writing(folder / f"{split}.json"):
        (folder / f"{split}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def _annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    """COCO's rows of an image, one for each object of which something is seen. first: the id of the first row."""
    instances = np.asarray(scene.instances)
    found: list[dict[str, Any]] = []
    for place, label in enumerate(scene.labels, start=1):
        rows, columns = np.nonzero(instances == place)
        if not len(rows):
            continue
        left, top = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) + 1 - left, int(rows.max()) + 1 - top
        found.append(
            {
                "id": first + len(found),
                "image_id": image,
                "category_id": label + 1,
                "bbox": [left, top, width, height],
                "area": len(rows),
                "iscrowd": 0,
            }
        )
    return found


def _write_masks(folder: Path, recipe: Recipe, sources: Sources, split: Split) -> None:
    """Images as `train/images/00000.jpg`, `train/masks/00000.png` of class numbers from 1, 0 for what is behind."""
    for name in ("images", "masks"):
        make_folder(folder / split / name)
    for index, scene in _scenes(recipe, sources, split):
        _save(scene.image, folder / split / "images" / f"{index:05d}.jpg")
        numbers = [0, *(label + 1 for label in scene.labels)]
        mask = scene.instances.point(numbers + [0] * (256 - len(numbers)))
        _save(mask, folder / split / "masks" / f"{index:05d}.png")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the images of a task show, and how they are written. longer: an object's longer side, of the image's."""

    several: bool
    longer: tuple[float, float]
    write: Callable[[Path, Recipe, Sources, Split], None]


LAYOUTS: dict[Task, Layout] = {
    "classification": Layout(False, (0.3, 0.65), _write_class_folders),
    "detection": Layout(True, (0.2, 0.5), _write_coco),
    "segmentation": Layout(True, (0.2, 0.5), _write_masks),
}


def _save(image: Image.Image, path: Path) -> None:
    """Write a JPEG or PNG file, always with the same settings; RunError KD740."""
    with writing(path):
        if path.suffix == ".png":
            image.save(path, compress_level=6)
        else:
            image.save(path, quality=QUALITY, subsampling=0)


def _manifest(recipe: Recipe, sources: Sources, root: Path) -> dict[str, Any]:
    """What the folder was made of: to make it again, and to know whose photographs these are."""
    import PIL

    from kdcli import __version__

    return {
        "kind": "stamp-scenes",
        "task": recipe.task,
        "size": recipe.size,
        "seed": recipe.seed,
        "counts": {**recipe.counts, UNLABELLED: recipe.unlabelled},
        "classes": list(sources.classes),
        "made_by": {"kdcli": __version__, "Pillow": PIL.__version__},
        "packages": {package: {"licences": licences(root, package)} for package in sources.packages},
        "stamps": {
            split: {
                name: [str(file) for file in files]
                for name, files in zip(sources.classes, by_class, strict=True)
            }
            for split, by_class in sources.stamps.items()
        },
        "backgrounds": {split: [str(file) for file in files] for split, files in sources.backgrounds.items()},
        "unlabelled_stamps": [str(file) for files in sources.others for file in files],
        "left_out": [str(file) for file in sources.left_out],
    }
