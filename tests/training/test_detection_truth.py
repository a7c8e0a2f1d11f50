"""What a detector is measured by is looked at before it runs: categories, boxes, images, places to write to."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.scenes import SAMPLES, changed, on_scenes
from tests.training.conftest import Kdcli

STUDENT = str(SAMPLES / "scenes_student.yaml")
TESTED = "dataset.test.dataset.kwargs.meta_file"
TRUTH = "dataset.test.dataset.kwargs.evaluator.kwargs.gt_file"


def rename(content: dict[str, Any]) -> None:
    content["categories"][3]["name"] = "dress"


def reorder(content: dict[str, Any]) -> None:
    content["categories"].reverse()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (rename, "KD569", "bad.json` has the category `dress`, and"),
        (lambda c: c["categories"].pop(0) and c.update(annotations=[]), "KD568", "no box to measure by"),
        (lambda c: c.update(images=5), "KD560", "list `images`"),
        (lambda c: c["images"][0].pop("id"), "KD562", "images[0]: `id` is missing"),
        (lambda c: c["images"][1].update(width="wide"), "KD562", 'image 2: `width` is `"wide"`'),
        (lambda c: c["annotations"][0].pop("image_id"), "KD561", "annotation 1: `image_id` is missing"),
        (lambda c: c["annotations"][1].update(bbox=[float("nan"), 1, 2, 3]), "KD561", "`[NaN, 1, 2, 3]`"),
        (lambda c: c["annotations"][0].update(area=-1), "KD561", "annotation 1: `area` is `-1`, not"),
        (lambda c: c["annotations"][0].update(area="450"), "KD561", 'annotation 1: `area` is `"450"`, not'),
        (lambda c: c["annotations"][0].update(iscrowd="no"), "KD561", '`iscrowd` is `"no"`, not 0 or 1'),
        (lambda c: c.update(annotations=[]), "KD568", "no box to measure by"),
        (lambda c: [row.update(iscrowd=True) for row in c["annotations"]], "KD568", "no box to measure by"),
    ],
    ids="renamed fewer images id width image_id nan area text-area crowd none crowds".split(),
)
def test_a_truth_that_nothing_can_be_measured_by(
    kdcli: Kdcli, scenes: Path, change: Callable[[dict[str, Any]], object], code: str, said: str
) -> None:
    truth = f"{TRUTH}={changed(scenes / 'test.json', change, 'bad.json')}"
    for command in (["train"], ["validate", "--files"], ["eval", "--weights", weights(kdcli, scenes)]):
        result, out, err = kdcli(*command, STUDENT, *on_scenes(scenes), truth)
        told = out + err
        assert result == 1 and told.count(f"error {code}: ") == 1 and said in told, told
        assert any(line.startswith("argument") and f"error {code}: " in line for line in told.splitlines()), (
            told
        )
        assert "Traceback" not in told and not Path("runs/scenes_student/metrics.jsonl").exists()


def weights(kdcli: Kdcli, scenes: Path) -> str:
    """A file of the student's weights, trained once for all tests."""
    file = scenes / "student.safetensors"
    if not file.exists():
        assert kdcli("train", STUDENT, *on_scenes(scenes), f"saver.save_dir={scenes}/run")[0] == 0
        file.write_bytes((scenes / "run/student.safetensors").read_bytes())
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("change", [rename, reorder])
def test_test_annotations_have_the_training_categories(
    kdcli: Kdcli, scenes: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    file = changed(scenes / "test.json", change, "other.json")
    changes = [*on_scenes(scenes), f"{TESTED}={file}", f"{TRUTH}={file}"]
    for command in (["train"], ["validate", "--files"], ["eval", "--weights", weights(kdcli, scenes)]):
        code, out, err = kdcli(*command, STUDENT, *changes)
        if change is reorder:
            assert code == 0, err
            continue
        assert code == 1 and (out + err).count("KD569") == 1, out + err
        assert "`other.json` has the category `dress`, and" in out + err and "train.json" in out + err
        assert "did you mean `Dress`?" in out + err


@pytest.mark.slow
def test_eval_needs_no_training_annotations(kdcli: Kdcli, scenes: Path) -> None:
    gone = "dataset.train.dataset.kwargs.meta_file=gone.json"
    code, _, err = kdcli("eval", STUDENT, *on_scenes(scenes), gone, "--weights", weights(kdcli, scenes))
    assert code == 0, err


def test_a_truth_without_a_test_image(kdcli: Kdcli, scenes: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        content["images"] = content["images"][:2]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] < 3]

    truth = f"{TRUTH}={changed(scenes / 'test.json', drop, 'fewer.json')}"
    code, _, err = kdcli("train", STUDENT, *on_scenes(scenes), truth)
    assert code == 1 and "KD566: `fewer.json` lacks image 3 of" in err, err


def larger(content: dict[str, Any]) -> None:
    content["images"][1].update(height=200, width=300)


def elsewhere(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = "val/other.png"


@pytest.mark.parametrize(
    ("change", "said"),
    [(larger, "` of 300x200 in `bad.json`"), (elsewhere, "`other.png` of 128x128 in `bad.json`")],
)
def test_a_truth_of_other_images_under_the_same_ids(
    kdcli: Kdcli, scenes: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    truth = f"{TRUTH}={changed(scenes / 'test.json', change, 'bad.json')}"
    for command in (["train"], ["validate", "--files"]):
        code, out, err = kdcli(*command, STUDENT, *on_scenes(scenes), truth)
        assert code == 1 and (out + err).count("error KD566: image 2 is `") == 1 and said in out + err, (
            out + err
        )


def test_a_truth_with_the_same_images_in_another_folder(kdcli: Kdcli, scenes: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"val/{image['file_name']}"

    truth = f"{TRUTH}={changed(scenes / 'test.json', move, 'moved.json')}"
    code, out, err = kdcli("validate", "--files", STUDENT, *on_scenes(scenes), truth)
    assert code == 0, out + err


def stick_out(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [100, 100, 60, 20]
    content["annotations"][1]["bbox"] = [500, 500, 9, 9]


@pytest.mark.slow
@pytest.mark.parametrize("where", [TESTED, "dataset.train.dataset.kwargs.meta_file"])
def test_boxes_that_do_not_lie_in_their_image_are_told(kdcli: Kdcli, scenes: Path, where: str) -> None:
    name = "test" if where == TESTED else "train"
    file = f"{where}={changed(scenes / f'{name}.json', stick_out, 'out.json')}"
    said = "out.json`: 1 box is empty or outside the image (left out), 1 box is partly outside (cut to the image)"
    for command in (["train"], ["validate", "--files"]):
        code, out, err = kdcli(*command, STUDENT, *on_scenes(scenes), file)
        assert code == 0 and (out + err).count(said) == 1, out + err


@pytest.mark.slow
def test_an_unwritable_target_is_told_before_anything_runs(
    kdcli: Kdcli, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["eval", STUDENT, *on_scenes(scenes), "--weights", weights(kdcli, scenes)]
    Path("file").touch()
    monkeypatch.setattr("kdcli.analysis.comparison.build_data", None)
    for target in (["--save-predictions", "file/x.json"], ["--save-predictions", "."], ["--show", "file"]):
        code, _, err = kdcli(*given, *target)
        assert code == 1 and "KD567" in err and "--save-predictions" in err, err
    kdcli(*given, "--save-predictions", "new/x.json")
    assert list(Path("new").iterdir()) == []


def test_validate_looks_for_every_image(kdcli: Kdcli, scenes: Path) -> None:
    def lose(content: dict[str, Any]) -> None:
        for image in content["images"][:2]:
            image["file_name"] = f"no{image['id']}.png"
        content["images"][2]["width"] += 1

    lost = changed(scenes / "test.json", lose, "lost.json")
    changes = [*on_scenes(scenes), f"{TESTED}={lost}", f"{TRUTH}={lost}"]
    code, out, err = kdcli("validate", "--files", STUDENT, *changes)
    assert code == 1 and out.count("KD511") == 2, out + err
    assert "2 images are missing of 3 in" in out and "`no1.png`, `no2.png`" in out
    assert "it is 128x128, and the annotations say 128x129" in out
    skip = "dataset.dataloader.kwargs.on_bad_sample=skip"
    code, out, err = kdcli("validate", "--files", STUDENT, *changes, skip)
    assert code == 0 and out.count("warning KD511") == 2, out + err


def permute(content: dict[str, Any]) -> None:
    """The same names under other ids, in another order."""
    ids = {row["id"]: 3 + 7 * (11 - row["id"]) for row in content["categories"]}
    for row in content["categories"]:
        row["id"] = ids[row["id"]]
    for row in content["annotations"]:
        row["category_id"] = ids[row["category_id"]]
    content["categories"].sort(key=lambda row: row["name"])


def as_exported(content: dict[str, Any]) -> None:
    """Ids as words, and what can be derived left out."""
    for row in content["images"]:
        row["id"], row["width"] = f"img_{row['id']}", float(row["width"])
    for row in content["annotations"]:
        row["image_id"], row["id"] = f"img_{row['image_id']}", str(row["id"])
        del row["iscrowd"], row["area"]
    content["annotations"].append({"id": "x", "image_id": "img_99", "category_id": 1, "bbox": [1, 1, 1, 1]})


LOOSE = "net.bbox_head_post_process.kwargs.cfg.bbox_predictor.kwargs.bbox_score_thresh=0.0"


@pytest.mark.slow
@pytest.mark.parametrize("change", [permute, as_exported])
def test_the_figures_are_those_of_the_same_file(
    kdcli: Kdcli, scenes: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    file = changed(scenes / "test.json", change, "other.json")
    other = [f"{TESTED}={file}", f"{TRUTH}={file}"]
    rows, metrics, told = [], [], []
    for name, changes in (("plain", []), ("other", other)):
        code, out, err = kdcli(
            "eval", STUDENT, *on_scenes(scenes), *changes, LOOSE, "--weights", weights(kdcli, scenes),
            "--save-predictions", f"found_{name}.json", "--format", "json",
        )  # fmt: skip
        assert code == 0, err
        metrics.append(json.loads(out)["networks"][0]["metrics"])
        told.append(err)
        rows.append(json.loads(Path(f"found_{name}.json").read_text()))
    plain, found = (json.loads(Path(f).read_text()) for f in (scenes / "test.json", file))
    assert len(rows[0]) > 10 and metrics[0] == metrics[1]
    assert [named(row, plain) for row in rows[0]] == [named(row, found) for row in rows[1]]
    if change is as_exported:
        assert "1 annotation of an image that is not listed (left out)" in told[1]


def named(row: dict[str, Any], content: dict[str, Any]) -> tuple[Any, ...]:
    """A prediction with the names that a file has for its ids."""
    image = next(one["file_name"] for one in content["images"] if one["id"] == row["image_id"])
    category = next(one["name"] for one in content["categories"] if one["id"] == row["category_id"])
    return image, category, row["bbox"], row["score"]


@pytest.mark.slow
def test_exported_files_train_alike_and_are_told_once(kdcli: Kdcli, scenes: Path) -> None:
    losses = []
    for side in ("plain", "exported"):
        changes = [*on_scenes(scenes), f"saver.save_dir={side}"]
        if side == "exported":
            for key, file in (("train", "train"), ("test", "test")):
                name = changed(scenes / f"{file}.json", as_exported, f"{key}.json")
                changes.append(f"dataset.{key}.dataset.kwargs.meta_file={name}")
            changes.append(f"{TRUTH}=test.json")
            code, out, _ = kdcli("validate", "--files", STUDENT, *changes)
            assert code == 0 and out.count("warning KD525") == 2, out
        code, _, err = kdcli("train", STUDENT, *changes)
        assert code == 0, err
        rows = [json.loads(line) for line in Path(f"{side}/metrics.jsonl").read_text().splitlines()]
        losses.append([row["losses"] for row in rows if row["kind"] == "step"])
    assert losses[0] == losses[1]
    for side in ("train", "test"):
        assert err.count(f"`{side}.json`: ") == 1 and "boxes without `iscrowd` (0 is taken)" in err, err


@pytest.mark.slow
def test_a_test_file_with_fewer_categories_is_told(kdcli: Kdcli, scenes: Path) -> None:
    def drop(content: dict[str, Any]) -> None:
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 4]
        content["categories"].pop(3)

    file = changed(scenes / "test.json", drop, "fewer.json")
    for command in (["train"], ["validate", "--files"], ["eval", "--weights", weights(kdcli, scenes)]):
        code, out, err = kdcli(*command, STUDENT, *on_scenes(scenes), f"{TESTED}={file}", f"{TRUTH}={file}")
        assert code == 0 and (out + err).count("lacks the category `Dress` of") == 1, out + err


def test_a_name_that_stands_twice_is_told_apart_by_ids(kdcli: Kdcli, scenes: Path) -> None:
    def twice(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = content["categories"][1]["name"]

    train = f"dataset.train.dataset.kwargs.meta_file={changed(scenes / 'train.json', twice, 'train.json')}"
    file = changed(scenes / "test.json", twice, "test.json")
    changes = [*on_scenes(scenes), train, f"{TESTED}={file}", f"{TRUTH}={file}"]
    assert kdcli("validate", "--files", STUDENT, *changes)[0] == 0
    file = changed(Path("test.json"), permute, "permuted.json")
    changes += [f"{TESTED}={file}", f"{TRUTH}={file}"]
    code, out, _ = kdcli("validate", "--files", STUDENT, *changes)
    assert code == 1 and "`train.json` has category 1 as `Trouser`, and `permuted.json` has none" in out
    assert "a name stands for two categories" in out


OPENED: list[str] = []
sys.addaudithook(lambda event, given: OPENED.append(str(given[0])) if event == "open" else None)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "train", "eval"])
def test_annotation_files_are_read_once(kdcli: Kdcli, scenes: Path, command: str) -> None:
    given = {"validate": ["--files"], "train": [], "eval": ["--weights", weights(kdcli, scenes)]}[command]
    for side in ("train", "test", "truth"):
        source = scenes / ("test.json" if side == "truth" else f"{side}.json")
        changed(source, lambda content: None, f"own_{side}.json")
    changes = [*on_scenes(scenes), "dataset.train.dataset.kwargs.meta_file=own_train.json"]
    OPENED.clear()
    code, out, err = kdcli(
        command, STUDENT, *changes, f"{TESTED}=own_test.json", f"{TRUTH}=own_truth.json", *given
    )
    assert code == 0, out + err
    for side in ("train", "test", "truth"):
        assert len([name for name in OPENED if name.endswith(f"own_{side}.json")]) == 1, side


@pytest.mark.slow
def test_a_damaged_training_file_is_told_by_eval_too(kdcli: Kdcli, scenes: Path) -> None:
    """Without the names that were trained on, labels could mean other classes."""

    def damage(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [1, 2]

    train = f"dataset.train.dataset.kwargs.meta_file={changed(scenes / 'train.json', damage, 'bad.json')}"
    code, _, err = kdcli("eval", STUDENT, *on_scenes(scenes), train, "--weights", weights(kdcli, scenes))
    assert code == 1 and "error KD561: `bad.json`: annotation 1: `bbox` is `[1, 2]`" in err, err
    assert err.startswith("argument") and "Traceback" not in err


@pytest.mark.parametrize("drop", ["false", "true"])
def test_validate_counts_the_batches_of_images_grouped_by_their_shape(
    kdcli: Kdcli, scenes: Path, drop: str
) -> None:
    """One upright image and the square ones: each group fills up its last batch, or drops it."""

    def grow(content: dict[str, Any]) -> None:
        content["images"][0]["height"] *= 2

    file = changed(scenes / "train.json", grow, "grown.json")
    first, *others = json.loads(Path(file).read_text())["images"]
    Path("grown").mkdir()
    for image in (first, *others):
        shutil.copy(scenes / "train" / image["file_name"], Path("grown") / Path(image["file_name"]).name)
    upright = Path("grown") / Path(first["file_name"]).name
    with Image.open(upright) as image:
        image.resize((first["width"], first["height"])).save(upright)
    train = "dataset.train.dataset.kwargs"
    sampler = (
        f"{{type: aspect_ratio_group, kwargs: {{batch_size: 2, aspect_grouping: [1.5], drop_last: {drop}}}}}"
    )
    changes = [
        *on_scenes(scenes),
        f"{train}.meta_file={file}",
        f"{train}.image_reader.kwargs.image_dir=grown",
        f"dataset.batch_sampler={sampler}",
    ]
    code, out, err = kdcli("validate", "--files", STUDENT, *changes)
    assert code == 0, out + err
    steps = len(others) // 2 if drop == "true" else 1 + -(-len(others) // 2)
    assert f" x {steps}\n" in out, out
