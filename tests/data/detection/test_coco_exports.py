"""COCO's json as labelling tools write it: the same boxes, told what was derived, and read once."""

from __future__ import annotations

import json
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.data.classes import match
from kdcli.data.detection import coco_json
from kdcli.data.detection.coco_json import CocoFile, CocoImages, read_coco
from kdcli.errors import KdError, RunError
from kdcli.tasks.detection.metrics import read_truth

CLEAN: dict[str, Any] = {
    "images": [
        {"id": 3, "file_name": "3.png", "height": 20, "width": 30},
        {"id": 17, "file_name": "17.png", "height": 40, "width": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 5, "bbox": [2, 4, 10, 8], "area": 80, "iscrowd": 0},
        {"id": 2, "image_id": 17, "category_id": 90, "bbox": [1, 1, 8, 4], "area": 32, "iscrowd": 0},
        {"id": 3, "image_id": 17, "category_id": 5, "bbox": [0, 9, 5, 5], "area": 25, "iscrowd": 1},
    ],
    "categories": [{"id": 5, "name": "airplane"}, {"id": 90, "name": "toothbrush"}],
}
POLYGON = [[2, 4, 12, 4, 12, 9.5], [3, 12, 5, 12, 5, 5]]
"""Its extent is the first box."""


def write(folder: Path, content: Any, name: str = "a.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def changed(**changes: Any) -> dict[str, Any]:
    """The clean file with other keys in the first annotation; one given as `...` is taken out."""
    content = deepcopy(CLEAN)
    row = content["annotations"][0]
    for key, value in changes.items():
        if value is ...:
            del row[key]
        else:
            row[key] = value
    return content


def texts(content: dict[str, Any]) -> None:
    """Ids as text, as VGG's annotator writes them."""
    for part in content.values():
        for row in part:
            row.update({key: str(row[key]) for key in ("id", "image_id", "category_id") if key in row})


def points(content: dict[str, Any]) -> None:
    """Whole numbers as floats, as a pandas frame writes them."""
    for part in content.values():
        for row in part:
            row.update({key: float(value) for key, value in row.items() if isinstance(value, int)})


def words(content: dict[str, Any]) -> None:
    """Ids that are no numbers."""
    for part in content.values():
        for row in part:
            for key in ("id", "image_id"):
                if key in row:
                    row[key] = f"n_{row[key]:03}"
            if "category_id" in row:
                row["category_id"] = f"n_{row['category_id']:03}"


def boxes_of(found: CocoFile) -> list[Any]:
    """What training sees of each image."""
    return [(i.file_name, i.height, i.width, i.boxes.tolist(), i.crowds.tolist()) for i in CocoImages(found)]


def measured(file: Path) -> list[Any]:
    """What evaluation sees of each box, images by their place."""
    truth = read_truth(file)
    names = list(truth.names.values())
    categories = [names[place] for place in truth.box_categories]
    columns = (truth.box_images, truth.bboxes, truth.areas, truth.crowds)
    return list(zip(categories, *(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (texts, "`{}`: 13 ids written as text"),
        (points, "`{}`: 17 whole numbers written with a point"),
        (words, "`{}`: 13 ids written as text"),
    ],
)
def test_ids_in_other_forms_are_the_same_file(tmp_path: Path, form: Any, told: str) -> None:
    # Ids: 2 of images, 3 x 3 of annotations, 2 of categories; and 2 x 2 sides of images.
    content = deepcopy(CLEAN)
    form(content)
    clean, file = write(tmp_path, CLEAN, "clean.json"), write(tmp_path, content)
    found = read_coco(file)
    assert read_coco(clean).notice is None
    assert boxes_of(found) == boxes_of(read_coco(clean)) and measured(file) == measured(clean)
    assert found.notice == told.format(file)
    if form is words:
        assert found.ids.tolist() == [1, 2] and found.written_images == {1: "n_003", 2: "n_017"}
        assert tuple(found.names) == (1, 2) and found.class_names == ("airplane", "toothbrush")
    else:
        assert found.ids.tolist() == [3, 17] and tuple(found.names) == (5, 90)


def test_words_among_numbers_take_free_numbers_by_order_of_appearance(tmp_path: Path) -> None:
    content = deepcopy(CLEAN)
    images = [{"file_name": "x", "height": 9, "width": 9, "id": image} for image in ("b", 1, "3", "a")]
    content.update(images=images, annotations=[])
    found = read_coco(write(tmp_path, content))
    assert found.ids.tolist() == [1, 2, 3, 4] and found.written_images == {2: "b", 3: "3", 4: "a"}
    assert found.image_keys == {1: 0, "b": 1, 3: 2, "a": 3}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"area": None}, "1 box without `area` (width x height is taken)"),
        ({"area": ...}, "1 box without `area` (width x height is taken)"),
        ({"iscrowd": None}, "1 box without `iscrowd` (0 is taken)"),
        ({"iscrowd": ...}, "1 box without `iscrowd` (0 is taken)"),
        ({"iscrowd": 0.0}, None),
        ({"iscrowd": False}, None),
        (
            {"bbox": None, "segmentation": POLYGON},
            "1 box without `bbox` (the extent of its polygons is taken)",
        ),
        (
            {"bbox": ..., "segmentation": POLYGON},
            "1 box without `bbox` (the extent of its polygons is taken)",
        ),
        (
            {"bbox": None, "segmentation": [2, 4, 12, 4, 2, 12]},
            "1 box without `bbox` (the extent of its polygons",
        ),
        ({"segmentation": {"counts": "abc", "size": [20, 30]}}, None),
        ({"segmentation": "nothing of ours", "score": float("nan")}, None),
        ({"id": ...}, None),
    ],
)
def test_what_is_left_out_is_derived_and_told(
    tmp_path: Path, changes: dict[str, Any], told: str | None
) -> None:
    clean, file = write(tmp_path, CLEAN, "clean.json"), write(tmp_path, changed(**changes))
    assert boxes_of(read_coco(file)) == boxes_of(read_coco(clean)) and measured(file) == measured(clean)
    notice = read_coco(file).notice
    assert notice is None if told is None else notice is not None and told in notice


def test_everything_at_once_is_one_notice(tmp_path: Path) -> None:
    content = changed(area=None, image_id="3")
    del content["annotations"][1]["iscrowd"], content["annotations"][1]["area"]
    del content["categories"][0]["name"]
    for number in (7, 8):
        content["annotations"].append({"id": number, "image_id": 4, "bbox": "not even looked at"})
    file = write(tmp_path, content)
    assert read_coco(file).notice == (
        f"`{file}`: 1 id written as text, 1 category without `name` (its id is taken), 2 boxes without `area` "
        "(width x height is taken), 1 box without `iscrowd` (0 is taken), 2 annotations of images that are not "
        "listed (left out)"
    )
    assert read_coco(file).class_names == ("5", "toothbrush") and len(read_coco(file).boxes) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bbox": [1, 2, 3]}, "annotation 1: `bbox` is `[1, 2, 3]`, not four numbers"),
        ({"bbox": None}, "annotation 1: `bbox` is `null`, not four numbers"),
        ({"bbox": ..., "segmentation": {"counts": [1]}}, "annotation 1: `bbox` is missing"),
        ({"bbox": None, "segmentation": [[1, 2, 3, True]]}, "annotation 1: `bbox` is `null`"),
        ({"bbox": [1, 2, 3, "4"]}, 'annotation 1: `bbox` is `[1, 2, 3, "4"]`, not four numbers'),
        ({"bbox": [float("nan"), 2, 3, 4]}, "annotation 1: `bbox` is `[NaN, 2, 3, 4]`, not four numbers"),
        ({"area": float("inf")}, "annotation 1: `area` is `Infinity`, not a number from 0"),
        ({"category_id": 6}, "annotation 1: `category_id` is `6`, which the file does not list"),
        ({"image_id": 3.5}, "annotation 1: `image_id` is `3.5`, not the id of an image"),
        ({"id": ..., "iscrowd": 2}, "annotations[0]: `iscrowd` is `2`, not 0 or 1"),
        ({"id": 2}, "two annotations have the id 2"),
        ({"id": "2"}, "two annotations have the id 2"),
    ],
)
def test_what_cannot_be_derived_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write(tmp_path, changed(**changes))
    with pytest.raises(RunError) as caught:
        read_coco(file)
    assert f"`{file}`: {said}" in caught.value.diagnostics[0].message
    assert caught.value.diagnostics[0].code == "KD561"


PLACES = [
    *((part,) for part in CLEAN),
    *((part, 1) for part in CLEAN),
    *((part, 1, key) for part in CLEAN for key in CLEAN[part][1]),
    *(("annotations", 1, "bbox", place) for place in range(4)),
]
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, "", "17", "0x1", "\ud800", "a\0b", [], {}, [[]], -1, 0, 2**63, 10**400]
    ),
    st.floats(),
    st.integers(),
    st.text(max_size=4),
    st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=6),
)


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=st.one_of(st.just(...), VALUES), bare=st.booleans())
def test_one_wrong_place_is_read_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any, bare: bool
) -> None:
    content = deepcopy(CLEAN)
    if bare:
        content["annotations"][1].update(bbox=None, segmentation=[[1, 1, 9, 1, 9, 5]])
    at: Any = content
    for key in place[:-1]:
        at = at[key]
    if bare and place[2:3] == ("bbox",) and len(place) == 4:
        return
    if value is ...:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    file = tmp_path_factory.getbasetemp() / "mutated.json"
    file.write_text(json.dumps(content))
    coco_json._held.clear()
    try:
        read_truth(file)
        images = list(CocoImages(read_coco(file)))
    except KdError as error:
        assert len(error.diagnostics) == 1 and len(error.diagnostics[0].message) < 400
        str(error).encode()
    else:
        assert all(np.isfinite(image.boxes).all() for image in images)
        (read_coco(file).notice or "").encode()


OPENED: list[str] = []
sys.addaudithook(lambda event, given: OPENED.append(str(given[0])) if event == "open" else None)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, CLEAN)
    monkeypatch.chdir(tmp_path)
    OPENED.clear()
    first, second = read_coco(file), read_coco(Path("a.json"))
    read_truth(file)
    assert second.path == Path("a.json") and second.boxes is first.boxes
    assert len([name for name in OPENED if name.endswith("a.json")]) == 1
    write(tmp_path, changed(bbox=[0, 0, 3, 3]))
    os.utime(file, ns=(1, 1))
    assert read_coco(file).boxes[0].tolist() == [0, 0, 3, 3]
    for number in range(9):
        read_coco(write(tmp_path, CLEAN, f"{number}.json"))
    assert len(coco_json._held) == coco_json.MOST_HELD


def test_an_error_is_found_once_and_told_each_time(tmp_path: Path) -> None:
    file = write(tmp_path, changed(bbox=[1]))
    OPENED.clear()
    for _ in range(2):
        with pytest.raises(RunError, match="not four numbers"):
            read_coco(file)
    assert len([name for name in OPENED if name == str(file)]) == 1


def test_names_are_matched_however_letters_are_composed() -> None:
    found = match({1: "caf\u00e9", 2: "cat", 3: "dog"}, {9: "cat", 5: "cafe\u0301", 7: "Dog"})
    assert found.by_name and found.ids == {9: 2, 5: 1}
    assert found.strange == (7,) and found.lacking == (3,) and not found.fits
    fewer = match({1: "a", 2: "b"}, {2: "a"})
    assert fewer.fits and fewer.ids == {2: 1} and fewer.lacking == (2,)


def test_a_name_that_stands_twice_leaves_the_ids_to_decide() -> None:
    twice = {1: "a", 2: "a"}
    assert match(twice, twice).fits and match(twice, twice).ids == {1: 1, 2: 2}
    assert not match(twice, {1: "a", 3: "a"}).fits and not match(twice, {1: "a"}).fits
    assert match({1: "a", 2: "b"}, {1: "b", 2: "b"}).strange == (1,)


def of_boxes(boxes: list[list[float]]) -> dict[str, Any]:
    """A file of these boxes in one image of 100x80 pixels."""
    rows = [{"id": n, "image_id": 3, "category_id": 5, "bbox": box} for n, box in enumerate(boxes)]
    return {
        **CLEAN,
        "images": [{"id": 3, "file_name": "3.png", "height": 80, "width": 100}],
        "annotations": rows,
    }


def boxes_inside() -> st.SearchStrategy[list[float]]:
    """x, y, width, height in an image of 100x80 pixels."""

    def box(x: int, y: int, width: int, height: int) -> list[float]:
        return [x, y, min(width, 100 - x), min(height, 80 - y)]

    return st.builds(box, st.integers(0, 99), st.integers(0, 79), st.integers(1, 100), st.integers(1, 80))


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes_inside(), min_size=1, max_size=30))
def test_boxes_inside_their_image_are_taken_as_they_are_and_their_corners_are_refused(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[list[float]]
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    found = read_coco(write(folder, of_boxes(boxes)))
    assert found.misfits is None and found.boxes.tolist() == boxes
    corners = write(folder, of_boxes([[x, y, x + w, y + h] for x, y, w, h in boxes]), "corners.json")
    reach_out = any(2 * x + w > 100 or 2 * y + h > 80 for x, y, w, h in boxes)
    if len(boxes) >= 10 and reach_out:
        with pytest.raises(RunError, match=r"KD561: .*the boxes are corners") as told:
            read_coco(corners)
        over = sum(2 * x + w > 100 or 2 * y + h > 80 for x, y, w, h in boxes)
        assert f"all {len(boxes)} lie in their images" in str(told.value) and f" {over} reach beyond" in str(
            told.value
        )
    else:
        assert (read_coco(corners).misfits is None) == (not reach_out)
    shares = write(
        folder, of_boxes([[x / 100, y / 80, w / 100, h / 80] for x, y, w, h in boxes]), "shares.json"
    )
    if any(side % 1 for x, y, w, h in boxes for side in (x / 100, y / 80, w / 100, h / 80)):
        with pytest.raises(RunError, match=r"KD561: .*shares of the image's width and height"):
            read_coco(shares)


def test_a_box_over_the_border_by_a_rounding_is_inside(tmp_path: Path) -> None:
    assert read_coco(write(tmp_path, of_boxes([[90.01, 0, 10.0, 80.02]]))).misfits is None
    assert read_coco(write(tmp_path, of_boxes([[90.03, 0, 10.0, 80]]), "b.json")).misfits == (
        "1 box is partly outside (cut to the image)"
    )


def test_one_box_that_is_no_corner_makes_widths_of_all(tmp_path: Path) -> None:
    boxes = [[10, 10, 95, 75]] * 12
    with pytest.raises(RunError, match="KD561"):
        read_coco(write(tmp_path, of_boxes(boxes)))
    assert read_coco(write(tmp_path, of_boxes([*boxes, [40, 10, 20, 20]]), "b.json")).misfits == (
        "12 boxes are partly outside (cut to the image)"
    )
