"""What a folder of images is: its labels, its two sides, its sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcli.data.folders import ImageData, look
from kdcli.errors import RunError, UsageError


def images(folder: Path, *names: str, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(folder / name)


def numbered(place: str, count: int) -> list[str]:
    return [f"{place}/{number}.png" for number in range(count)]


def refused(folder: Path, code: str) -> str:
    with pytest.raises(RunError) as caught:
        look(folder)
    (found,) = caught.value.diagnostics
    assert found.code == code
    return f"{found.message}; {found.help}"


def sides(data: ImageData, folder: Path) -> tuple[str, str]:
    return tuple(str(side.root.relative_to(folder)) for side in (data.train, data.test))  # type: ignore[return-value]


@pytest.mark.parametrize("held", ["val", "Valid", "validation", "test"])
def test_sides_with_class_folders(held: str, tmp_path: Path) -> None:
    images(tmp_path, *numbered("train/cat", 3), *numbered("train/dog", 2), *numbered(f"{held}/cat", 1))
    data = look(tmp_path)
    assert data.labels == "classes" and data.classes == ("cat", "dog") and data.images == 5
    assert sides(data, tmp_path) == ("train", held) and not data.train.split and data.sides == (6, 6, 6)


def test_validation_images_are_measured_on_and_test_images_are_spared(tmp_path: Path) -> None:
    images(tmp_path, *(f"{side}/{name}/1.png" for side in ("train", "val", "test") for name in ("a", "b")))
    data = look(tmp_path)
    assert sides(data, tmp_path) == ("train", "val") and data.spare == tmp_path / "test"


def test_class_folders_alone_are_divided(tmp_path: Path) -> None:
    images(tmp_path, *numbered("cat", 10), *numbered("dog", 5))
    data = look(tmp_path)
    assert data.train.split and data.test.split and sides(data, tmp_path) == (".", ".")
    assert data.images == 8 + 4  # a fifth of each class is held back
    assert "80 %" in data.notes[0]


def test_a_training_folder_alone_is_divided(tmp_path: Path) -> None:
    images(tmp_path, *numbered("train/cat", 5), *numbered("train/dog", 5))
    data = look(tmp_path)
    assert sides(data, tmp_path) == ("train", "train") and data.train.split


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    images(tmp_path, *numbered(".", 10), mode="L")
    data = look(tmp_path)
    assert data.labels == "none" and data.classes == () and data.images == 8 and data.grey
    assert "no labels, 8 grey training images, shorter side 6 px" in data.text


def test_class_folders_may_be_read_without_labels(tmp_path: Path) -> None:
    images(tmp_path, *numbered("cat", 5), *numbered("dog", 5))
    assert look(tmp_path, labels=False).labels == "none"


def test_sizes_and_colours_are_looked_at(tmp_path: Path) -> None:
    images(tmp_path, *numbered("cat", 2), *numbered("dog", 2), mode="L")
    images(tmp_path, "cat/9.png", size=(30, 20))
    data = look(tmp_path)
    assert data.sides == (6, 6, 20) and not data.grey and "6 to 20 px" in data.text


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no images" in refused(tmp_path / "empty", "KD861")
    images(tmp_path / "one", *numbered("cat", 4))
    assert "one class folder, `cat`" in refused(tmp_path / "one", "KD862")
    assert "--no-labels" in refused(tmp_path / "one", "KD862")
    images(tmp_path / "held", *numbered("val/cat", 4), *numbered("val/dog", 4))
    assert "no folder of training images" in refused(tmp_path / "held", "KD863")
    images(tmp_path / "few", "cat/1.png", "dog/1.png", "owl/1.png", "owl/2.png")
    assert "2 class folders" in refused(tmp_path / "few", "KD860")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/1.png").write_bytes(b"no image")
    assert "none of the images can be read" in refused(tmp_path / "torn", "KD861")


def test_a_folder_that_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="there is no folder"):
        look(tmp_path / "imags")


def coco(file: Path, names: Sequence[str], categories: Sequence[str] = ("cup", "pen")) -> None:
    listed = [{"id": n, "file_name": name, "height": 6, "width": 8} for n, name in enumerate(names)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
        for n in range(len(names))
    ]
    named = [{"id": n, "name": name} for n, name in enumerate(categories, 1)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": listed, "annotations": boxes, "categories": named}))


@pytest.mark.parametrize(
    ("annotations", "place"),
    [
        ("{side}.json", "{side}"),
        ("annotations/instances_{side}2017.json", "{side}2017"),
        ("annotations/instances_{side}2017.json", "images/{side}2017"),
        ("{side}/_annotations.coco.json", "{side}"),
    ],
)
def test_coco_in_its_usual_places(annotations: str, place: str, tmp_path: Path) -> None:
    for side, count in (("train", 3), ("val", 2)):
        names = [f"{side}_{number}.png" for number in range(count)]
        images(tmp_path / place.format(side=side), *names)
        coco(tmp_path / annotations.format(side=side), names)
    coco(tmp_path / "annotations/captions_train2017.json", [])
    data = look(tmp_path)
    assert data.labels == "boxes" and data.classes == ("cup", "pen") and data.images == 3
    assert sides(data, tmp_path) == (place.format(side="train"), place.format(side="val"))
    assert data.train.annotations == tmp_path / annotations.format(side="train")


def test_coco_that_lacks_a_side_or_its_images(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", ["1.png"])
    assert "no annotations of images to measure on" in refused(tmp_path, "KD863")
    coco(tmp_path / "val.json", ["2.png"])
    assert "lists `1.png`" in refused(tmp_path, "KD861")
    coco(tmp_path / "train_2.json", ["1.png"])
    assert "several annotation files" in refused(tmp_path, "KD863")


def test_a_damaged_image_among_others_is_left_to_validate(tmp_path: Path) -> None:
    images(tmp_path, *numbered("a", 2), *numbered("b", 2))
    (tmp_path / "a/torn.png").write_bytes(np.zeros(9, np.uint8).tobytes())
    assert look(tmp_path).sides == (6, 6, 6)
