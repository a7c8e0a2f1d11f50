"""COCO's figures from boxes of resized images, the same for any number of processes."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcli.data.facts import DataFacts
from kdcli.errors import RunError
from kdcli.tasks.detection.metrics import (
    METRICS,
    DetectionMeter,
    _evaluator,
    average_precision,
    coco_rows,
    original_boxes,
    precision_details,
    read_truth,
    save_coco,
)
from kdcli.tasks.detection.task import Detection
from kdcli.training.evaluate import summed

TRUTH = {11: [[10.0, 10.0, 40.0, 40.0]], 12: [[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 40.0]]}
CATEGORIES = (4, 8)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = [
        {"id": 10 * image + n, "image_id": image, "category_id": CATEGORIES[n], "bbox": box}
        for image, boxes in TRUTH.items()
        for n, box in enumerate(boxes)
    ]
    file = tmp_path / "truth.json"
    images = [{"id": image, "file_name": "x", "height": 100, "width": 100} for image in TRUTH]
    categories = [{"id": c, "name": str(c)} for c in CATEGORIES]
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return file


def batch(file: Path, image_ids: list[int], scale: tuple[float, float] = (2.0, 0.5), offset: int = 0) -> Any:
    info = (100 * scale[0], 100 * scale[1], *scale, 100.0, 100.0)
    return {
        "image_info": [info] * len(image_ids),
        "image_ids": image_ids,
        "indices": torch.tensor([image - 11 for image in image_ids]),
        "annotations": {"file": str(file), "samples": 2, "categories": CATEGORIES, "box_offset": offset},
    }


def perfect(image_ids: list[int], scale: tuple[float, float] = (2.0, 0.5), offset: int = 0) -> Any:
    rows = []
    for place, image in enumerate(image_ids):
        for n, (x, y, w, h) in enumerate(TRUTH[image]):
            edges = [x * scale[1], y * scale[0], (x + w - offset) * scale[1], (y + h - offset) * scale[0]]
            rows.append([place, *edges, 0.9, n + 1])
    return {"dt_bboxes": torch.tensor(rows)}


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("offset", [0, 1])
def test_perfect_boxes_score_a_hundred(truth: Path, offset: int, scale: tuple[float, float]) -> None:
    meter = Detection(gt_file=str(truth)).meter()
    meter.update(perfect([11, 12], scale, offset), batch(truth, [11, 12], scale, offset))
    found = meter.result(meter.sums())
    assert found["AP"] == pytest.approx(100)
    # The 20 x 20 box is small, the others medium; there is no large one.
    assert set(found) == {"AP", "AP50", "AP75", "APs", "APm"}


def test_a_class_that_the_annotations_lack_counts_for_nothing(truth: Path) -> None:
    found = perfect([11])
    beyond = found["dt_bboxes"][:1].clone()
    beyond[0, 6] = len(CATEGORIES) + 1
    meter, other = DetectionMeter(), DetectionMeter()
    meter.update(found, batch(truth, [11]))
    other.update({"dt_bboxes": torch.cat([found["dt_bboxes"], beyond])}, batch(truth, [11]))
    assert other.predictions(other.sums()) == meter.predictions(meter.sums())


def test_processes_add_up(truth: Path) -> None:
    one, other, both = DetectionMeter(), DetectionMeter(), DetectionMeter()
    one.update(perfect([11]), batch(truth, [11]))
    other.update(perfect([12]), batch(truth, [12]))
    both.update(perfect([11, 12]), batch(truth, [11, 12]))
    total = one.sums() + other.sums()
    assert one.predictions(total) == both.predictions(both.sums())
    assert one.result(total) == both.result(both.sums())
    assert one.result(one.sums())["AP"] == pytest.approx(100)  # of what it has seen itself


def test_half_the_objects_found_is_half_the_precision(truth: Path) -> None:
    rows = coco_rows(11, [[10, 10, 40, 40, 0.9, 1]], CATEGORIES)
    rows += coco_rows(12, [[30, 30, 50, 40, 0.9, 2]], CATEGORIES)
    # Class 1: one of two found, precision 1 at recalls 0..0.5, that is 51 of 101 points; class 2: all.
    assert average_precision(truth, rows)["AP"] == pytest.approx(100 * (51 / 101 + 1) / 2)
    details = precision_details(truth, rows)
    assert details.ap == pytest.approx((100 * 51 / 101, 100)) and details.ap50 == details.ap
    assert details.boxes == (2, 1) and details.sizes == (1, 2, 0)
    # At recalls up to a half both classes have a precision of 1, beyond it the second alone.
    assert details.curves["0.5"] == pytest.approx([100] * 11 + [50] * 10)


def test_details_are_what_the_figures_are_means_of(truth: Path) -> None:
    rows = coco_rows(11, [[12, 11, 40, 40, 0.9, 1], [60, 70, 20, 22, 0.8, 2]], CATEGORIES)
    rows += coco_rows(12, [[33, 30, 50, 40, 0.9, 2]], CATEGORIES)
    figures, details = average_precision(truth, rows), precision_details(truth, rows)
    for name, by_class in (("AP", details.ap), ("AP50", details.ap50)):
        known = [value for value in by_class if value is not None]
        assert sum(known) / len(known) == pytest.approx(figures[name])
    nothing = precision_details(truth, [])
    assert nothing.boxes == details.boxes and nothing.ap == (0.0, 0.0)
    first = precision_details(truth, [], [11])
    assert first.boxes == (1, 0) and first.ap == (0.0, None)


def test_a_report_has_precision_by_class(truth: Path) -> None:
    task = Detection(gt_file=str(truth))
    assert task.report is not None
    seen = {**batch(truth, [11, 12]), "image": torch.rand(2, 3, 100, 100), "boxes": [torch.zeros(0, 5)] * 2}
    facts = DataFacts(class_names=("cat", "dog"), num_samples=2)
    networks = {"student": lambda _: perfect([11, 12]), "proposer": lambda _: {"other": torch.rand(1)}}
    shown = task.report.answered(networks, iter([seen]), facts)
    assert shown is not None and shown.whole and shown.metrics["student"]["AP"] == pytest.approx(100)
    assert shown.sections["measured"] == {"images": 2, "of": 2}
    found = shown.sections["precision"]
    assert list(found["networks"]) == ["student"] and found["networks"]["student"]["ap"] == [100.0, 100.0]
    assert len(found["recalls"]) == len(found["networks"]["student"]["curves"]["0.75"]) == 21
    assert json.loads(json.dumps(shown.sections, allow_nan=False)) == shown.sections


def test_no_boxes_score_nothing(truth: Path) -> None:
    meter = DetectionMeter()
    meter.update({"dt_bboxes": torch.zeros(0, 7)}, batch(truth, [11, 12]))
    assert meter.result(meter.sums())["AP"] == 0
    assert Detection().near_chance({"AP": 0.4}, 2, 100)
    assert not Detection().near_chance({"AP": 1.4}, 2, 100)


def many(count: int, classes: int) -> torch.Tensor:
    """Boxes of image 0 [count, 7], scores rising, classes in turn."""
    return torch.tensor([[0, 0, 0, 5 + i, 5, i / 900, 1 + i % classes] for i in range(count)])


@pytest.mark.parametrize(
    ("count", "classes", "kept"), [(150, 1, 100), (150, 2, 150), (420, 2, 200), (420, 4, 400)]
)
def test_the_best_hundred_of_each_class_are_kept(truth: Path, count: int, classes: int, kept: int) -> None:
    said = batch(truth, [11])
    said["annotations"] = {**said["annotations"], "categories": (4, 8, 9, 10)[:classes]}
    meter = DetectionMeter()
    meter.update({"dt_bboxes": many(count, classes)}, said)
    rows = meter.predictions(meter.sums())
    assert len(rows) == kept
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    best = [i for i in range(count) if i % classes == 0][-100:]
    of_first = [row["score"] for row in rows if row["category_id"] == 4]
    assert of_first == pytest.approx([i / 900 for i in reversed(best)], abs=1e-6)


class Several:
    """Two processes in one: what `summed` asks of them."""

    world_size = 2

    def __init__(self, *meters: DetectionMeter) -> None:
        self.meters = meters

    def gather(self, _own: int) -> list[int]:
        return [meter.most for meter in self.meters]


def test_processes_with_many_and_few_boxes_add_up(truth: Path) -> None:
    one, other = DetectionMeter(), DetectionMeter()
    said = batch(truth, [11, 12])
    apart = [batch(truth, [image]) for image in (11, 12)]
    one.update({"dt_bboxes": many(250, 3)[:, :]}, apart[0])
    other.update(perfect([12]), apart[1])
    both = DetectionMeter()
    later = perfect([11, 12])["dt_bboxes"]
    both.update({"dt_bboxes": torch.cat([many(250, 3).to(later), later[later[:, 0] == 1]])}, said)
    processes: Any = Several(one, other)
    lengths = []
    for meter in (one, other):
        processes.sum = lambda value: value
        lengths.append(summed(meter, processes))
    total = lengths[0] + lengths[1]
    assert one.predictions(total) == other.predictions(total) == both.predictions(both.sums())
    assert one.result(total) == both.result(both.sums())


def test_many_boxes_of_many_classes_are_measured_as_the_package_does(tmp_path: Path) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    draws = np.random.default_rng(0)
    classes, images, each = 6, 3, 40
    truths, rows, boxes = [], [], []
    for image in range(images):
        for place in range(classes * each):
            x, y = draws.uniform(0, 360, 2)
            w, h = draws.uniform(15, 38, 2)
            category = 3 * (1 + place % classes)
            own = {"image_id": image + 1, "category_id": category, "bbox": [x, y, w, h]}
            truths.append({**own, "id": len(truths) + 1, "area": w * h, "iscrowd": 0})
            dx, dy, score = draws.normal(0, 1), draws.normal(0, 1), draws.uniform()
            left, top = max(x + dx, 0), max(y + dy, 0)
            right, bottom = min(left + w, 400), min(top + h, 400)
            boxes.append([image, left, top, right, bottom, score, 1 + place % classes])
            rows.append({**own, "bbox": [left, top, right - left, bottom - top], "score": score})
    file = tmp_path / "truth.json"
    pictures = [{"id": i + 1, "file_name": f"{i}.png", "height": 400, "width": 400} for i in range(images)]
    named = [{"id": 3 * (c + 1), "name": f"c{c}"} for c in range(classes)]
    file.write_text(json.dumps({"images": pictures, "annotations": truths, "categories": named}))
    ids = tuple(one["id"] for one in named)
    meter = DetectionMeter(None, {"file": str(file), "samples": images, "categories": ids, "box_offset": 0})
    info = [(400.0, 400.0, 1.0, 1.0, 400.0, 400.0)] * images
    said = {"indices": torch.arange(images), "image_ids": [1, 2, 3], "image_info": info}
    said["annotations"] = {"box_offset": 0, "categories": ids}
    meter.update({"dt_bboxes": torch.tensor(boxes, dtype=torch.float64)}, said)
    with redirect_stdout(StringIO()):
        known = COCO(str(file))
        evaluator = COCOeval_faster(known, known.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    found = meter.result(meter.sums())
    assert [found[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(
        100 * evaluator.stats[:3], abs=0.02
    )
    assert found["AP50"] > 99


def test_boxes_go_back_to_the_original_pixels(truth: Path) -> None:
    found = original_boxes(perfect([12]), batch(truth, [12]))
    assert found[0][:, :4].tolist() == TRUTH[12]


def test_other_images_than_the_truth_has(truth: Path) -> None:
    with pytest.raises(RunError, match="KD566"):
        average_precision(truth, coco_rows(77, [[0, 0, 1, 1, 0.5, 1]], CATEGORIES))
    with pytest.raises(RunError, match="KD560"):
        average_precision(truth.parent, [])


def rewritten(truth: Path, **changes: Any) -> list[Any]:
    """Changes the first annotation; rows that find all the others and, where one is given, `found`."""
    content = json.loads(truth.read_text())
    found = changes.pop("found", None)
    content["annotations"][0].update(changes)
    truth.write_text(json.dumps(content))
    rows = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.9}
        for row in content["annotations"]
    ]
    return rows[1:] if found is None else [{**rows[0], "bbox": found}, *rows[1:]]


@pytest.mark.parametrize("box", [[100, 100, 9, 9], [-9, 0, 9, 9], [5, 5, 0, 4], [50, 50, -8, -8]])
@pytest.mark.parametrize("crowd", [0, 1])
def test_what_the_data_leaves_out_is_not_missed(truth: Path, box: list[float], crowd: int) -> None:
    assert average_precision(truth, rewritten(truth, bbox=box, iscrowd=crowd))["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("box", "inside"),
    [([-40, -40, 80, 80], [0, 0, 40, 40]), ([90, 20, 30, 50], [90, 20, 10, 50])],
)
def test_the_truth_is_cut_as_in_training(truth: Path, box: list[float], inside: list[float]) -> None:
    rows = rewritten(truth, bbox=box, found=inside)
    assert average_precision(truth, rows)["AP"] == pytest.approx(100)
    found = read_truth(truth)
    assert found.bboxes[0].tolist() == inside and found.areas[0] == inside[2] * inside[3]


def test_other_boxes_are_as_written(truth: Path) -> None:
    rewritten(truth, bbox=[0.1, 0.7, 99.91, 50.3], area=12.5)  # reaches over by rounding alone
    found = read_truth(truth)
    assert found.bboxes[0].tolist() == [0.1, 0.7, 99.91, 50.3] and found.areas[0] == 12.5
    assert found.bboxes[1].tolist() == list(TRUTH[12][0]) and found.areas[1] == 400


def test_the_figures_of_a_clean_file_are_the_packages_own(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = [{"id": 7 * n + 3, "file_name": "x", "height": 480, "width": 640} for n in range(30)]
    truths, rows = [], []
    for image in images:
        for _ in range(draw.integers(0, 9)):
            x, y, w, h = (round(float(v), 2) for v in draw.uniform([0, 0, 4, 4], [400, 300, 240, 180]))
            category = int(draw.choice([4, 8, 90]))
            own = {"id": len(truths) + 1, "image_id": image["id"], "category_id": category}
            crowd, area = int(draw.random() < 0.1), round(w * h * 0.7, 3)
            truths.append({**own, "bbox": [x, y, w, h], "area": area, "iscrowd": crowd})
            for _ in range(draw.integers(0, 3)):
                near = [round(v + float(draw.normal(0, 5)), 3) for v in (x, y, w, h)]
                score = round(float(draw.random()), 2)
                rows.append({"image_id": image["id"], "category_id": category, "bbox": near, "score": score})
    categories = [{"id": n, "name": str(n)} for n in (90, 4, 8)]
    content = {"images": images, "annotations": truths, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    dataset, evaluator = _evaluator()
    known = dataset()
    known.dataset = content
    with redirect_stdout(StringIO()):
        known.createIndex()
        scored = evaluator(known, known.loadRes([dict(row) for row in rows]), iouType="bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    expected = {name: 100.0 * float(v) for name, v in zip(METRICS, scored.stats[:6], strict=True) if v >= 0}
    assert 1 < expected["AP"] < 99 and len(expected) == 6
    assert average_precision(tmp_path / "truth.json", rows) == expected


@pytest.mark.parametrize("change", [{"area": -1}, {"bbox": ["1", 2, 3, 4]}, {"iscrowd": "no"}])
def test_the_truth_is_checked(truth: Path, change: dict[str, Any]) -> None:
    rows = rewritten(truth, **change)
    with pytest.raises(RunError, match="KD561"):
        average_precision(truth, rows)


def test_boxes_that_count(truth: Path) -> None:
    assert read_truth(truth).counting({11, 12}) == 3 and read_truth(truth).counting({11}) == 1
    rewritten(truth, iscrowd=1)
    assert read_truth(truth).counting({11}) == 0


@pytest.mark.parametrize("first", [-5, 2**53, 2**63 - 2])
def test_ids_stay_exact_over_processes(truth: Path, first: int) -> None:
    content = json.loads(truth.read_text())
    ids = {11: first, 12: first + 1}
    for row in content["images"]:
        row["id"] = ids[row["id"]]
    for row in content["annotations"]:
        row["image_id"] = ids[row["image_id"]]
    truth.write_text(json.dumps(content))
    meters = []
    for image in (11, 12):
        meters.append(DetectionMeter())
        meters[-1].update(perfect([image]), {**batch(truth, [image]), "image_ids": [ids[image]]})
    total = meters[0].sums() + meters[1].sums()
    assert [row["image_id"] for row in meters[0].predictions(total)] == [first, first + 1, first + 1]
    assert meters[0].result(total)["AP"] == pytest.approx(100)
    with pytest.raises(RunError, match=f"image {first} was evaluated twice"):
        meters[0].predictions(3 * meters[0].sums())


def test_predictions_are_written_as_coco_reads_them(truth: Path, tmp_path: Path) -> None:
    save_coco(tmp_path / "found.json", coco_rows(11, [[1, 2, 3, 4, 0.5, 2]], CATEGORIES))
    rows = json.loads((tmp_path / "found.json").read_text())
    assert rows == [{"image_id": 11, "category_id": 8, "bbox": [1, 2, 3, 4], "score": 0.5}]


def test_only_boxes_are_evaluated() -> None:
    with pytest.raises(ValueError, match="iou_types"):
        Detection(iou_types=["segm"])
