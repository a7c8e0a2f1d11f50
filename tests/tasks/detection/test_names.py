"""Classes have names: a test file with other ids, in another order, is measured as the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcli.data.detection.coco import coco
from kdcli.data.image_readers import PillowReader
from kdcli.models.detection.whole import build_detector
from kdcli.spec.places import HERE
from kdcli.tasks.detection.metrics import save_coco
from kdcli.tasks.detection.task import Detection

LEARNT = {1: "cat", 2: "dog", 5: "owl"}
BOXES = {
    3: [("owl", [2, 2, 40, 40]), ("cat", [50, 9, 20, 30])],
    8: [("dog", [0, 0, 60, 20])],
    9: [("owl", [5, 5, 9, 9])],
}
ORDERS: dict[str, dict[Any, str]] = {
    "alike": LEARNT,
    "permuted": {1: "owl", 2: "cat", 5: "dog"},
    "other ids": {7: "owl", 70: "cat", 700: "dog"},
    "text": {"x": "dog", "y": "owl", "z": "cat"},
}


def write(file: Path, names: dict[Any, str], image_ids: dict[int, Any] | None = None) -> Path:
    ids = {name: category for category, name in names.items()}
    own = image_ids or {image: image for image in BOXES}
    rows = [
        {"image_id": own[image], "category_id": ids[name], "bbox": box}
        for image, found in BOXES.items()
        for name, box in found
        if name in ids
    ]
    images = [{"id": own[i], "file_name": f"{i}.png", "height": 80, "width": 90} for i in BOXES]
    categories = [{"id": category, "name": name} for category, name in names.items()]
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return file


def data_of(file: Path, classes: dict[int, str] | None = LEARNT) -> Any:
    reader = PillowReader((), HERE, image_dir=str(file.parent))
    return coco((), HERE, False, reader, [], 1, classes=classes, meta_file=str(file))


def perfect(data: Any) -> Any:
    """The boxes of BOXES with the labels that training gave them; the rarer the image, the surer."""
    label = {name: number for number, name in enumerate(LEARNT.values(), start=1)}
    rows, infos, ids = [], [], []
    for place, (image, found) in enumerate(zip(data.images, BOXES.values(), strict=True)):
        rows += [[place, x, y, x + w, y + h, 0.5 + place / 9, label[n]] for n, (x, y, w, h) in found]
        infos.append((80.0, 90.0, 1.0, 1.0, 80.0, 90.0))
        ids.append(image.id)
    batch = {
        "image_info": infos,
        "image_ids": ids,
        "indices": torch.arange(len(ids)),
        "annotations": data.annotations,
    }
    return {"dt_bboxes": torch.tensor(rows)}, batch


@pytest.mark.parametrize("truth_order", sorted(ORDERS))
@pytest.mark.parametrize("order", sorted(ORDERS))
def test_a_perfect_detector_scores_a_hundred(tmp_path: Path, order: str, truth_order: str) -> None:
    data = data_of(write(tmp_path / "test.json", ORDERS[order]))
    assert data.facts.class_names == ("cat", "dog", "owl") and data.annotations["categories"] == (1, 2, 5)
    # What the data says of the boxes is what training would have said.
    assert [image.boxes[:, 4].tolist() for image in data.images] == [[3, 1], [2], [3]]
    truth = write(tmp_path / "truth.json", ORDERS[truth_order])
    for gt_file in (None, str(truth)):
        meter = Detection(gt_file=gt_file).meter(data.facts)
        meter.update(*perfect(data))
        assert meter.result(meter.sums())["AP"] == pytest.approx(100)
    ids = {name: category for category, name in ORDERS[truth_order].items()}
    rows = meter.predictions(meter.sums())
    assert [row["category_id"] for row in rows] == [
        ids[name] for found in BOXES.values() for name, _ in found
    ]


def test_one_class_taken_for_another_is_seen(tmp_path: Path) -> None:
    """The check of the check: with the ids of the file as labels, the same boxes are wrong."""
    data = data_of(write(tmp_path / "test.json", ORDERS["permuted"]), classes=None)
    assert data.facts.class_names == ("owl", "cat", "dog")
    meter = Detection().meter(data.facts)
    meter.update(*perfect(data))
    assert meter.result(meter.sums())["AP"] == 0


def test_what_the_test_file_lacks_does_not_count(tmp_path: Path) -> None:
    data = data_of(write(tmp_path / "test.json", {4: "owl", 9: "cat"}))
    assert data.facts.num_classes == 3
    meter = Detection().meter(data.facts)
    meter.update(*perfect(data))
    assert {row["category_id"] for row in meter.predictions(meter.sums())} == {4, 9}
    assert meter.result(meter.sums())["AP"] == pytest.approx(100)


@pytest.mark.parametrize("order", ["alike", "permuted", "other ids"])
def test_labels_that_are_category_ids_stay_those_of_training(tmp_path: Path, order: str) -> None:
    net = build_detector("ssdlite320_mobilenet_v3_large", {"num_classes": 6}, None)
    data = data_of(write(tmp_path / "test.json", ORDERS[order]))
    assert net.ids_of(data.annotations["categories"]) == (1, 2, 5)


IMAGE_IDS = {
    "words": {3: "img_003", 8: "img_001", 9: "img_002"},
    "digits": {3: "0003", 8: "8", 9: "9"},
    "mixed": {3: "first", 8: 1, 9: "2"},
}


@pytest.mark.parametrize("kind", sorted(IMAGE_IDS))
def test_predictions_have_the_image_ids_of_the_file(tmp_path: Path, kind: str) -> None:
    ids = IMAGE_IDS[kind]
    data = data_of(write(tmp_path / "test.json", LEARNT, ids))
    truth = json.loads((tmp_path / "test.json").read_text())
    truth["images"].reverse()  # another order of appearance
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    meter = Detection(gt_file=str(tmp_path / "truth.json")).meter(data.facts)
    order = [data.images[place].file_name for place in range(3)]
    found, batch = perfect(data)
    places = [list(BOXES).index(int(name.removesuffix(".png"))) for name in order]
    found["dt_bboxes"][:, 0] = torch.tensor([float(places.index(int(p))) for p in found["dt_bboxes"][:, 0]])
    meter.update(found, batch)
    assert meter.result(meter.sums())["AP"] == pytest.approx(100)
    save_coco(tmp_path / "found.json", meter.predictions(meter.sums()))
    rows = json.loads((tmp_path / "found.json").read_text())
    expected = {(json.dumps(ids[image]), *box) for image, own in BOXES.items() for _, box in own}
    assert {(json.dumps(row["image_id"]), *map(int, row["bbox"])) for row in rows} == expected


def test_batches_do_not_carry_the_ids_of_all_images(tmp_path: Path) -> None:
    data = data_of(write(tmp_path / "test.json", LEARNT, IMAGE_IDS["words"]))
    assert len(data.facts.annotations["written_ids"]) == 3 and "written_ids" not in data.annotations
