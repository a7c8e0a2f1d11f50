"""What a detector is measured by is looked at before it runs: categories, boxes, images, places to write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Kdcli
from tests.scenes import SAMPLES, changed, on_scenes

STUDENT = str(SAMPLES / "scenes_student.yaml")
TESTED = "dataset.test.dataset.kwargs.meta_file"
TRUTH = "dataset.test.dataset.kwargs.evaluator.kwargs.gt_file"


def rename(content: dict[str, Any]) -> None:
    content["categories"][3]["name"] = "cat"


def reorder(content: dict[str, Any]) -> None:
    content["categories"].reverse()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (rename, "KD569", "category 4 is `Dress` in"),
        (lambda c: c["categories"].pop(0) and c.update(annotations=[]), "KD569", "bad.json` has none"),
        (lambda c: c.update(images=5), "KD560", "list `images`"),
        (lambda c: c["images"][0].pop("id"), "KD562", "images[0]"),
        (lambda c: c["images"][1].update(id="2"), "KD562", "images[1]"),
        (lambda c: c["annotations"][0].pop("image_id"), "KD561", "annotations[0]"),
        (lambda c: c["annotations"][1].update(bbox=[float("nan"), 1, 2, 3]), "KD561", "annotations[1]"),
        (lambda c: c["annotations"][0].update(area=None), "KD561", "annotations[0] has no such area: None"),
        (lambda c: c["annotations"][0].update(area="450"), "KD561", "annotations[0] has no such area: '450'"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), "KD561", "annotations[0] has `iscrowd` 'no'"),
        (lambda c: c.update(annotations=[]), "KD568", "no box to measure by"),
        (lambda c: [row.update(iscrowd=True) for row in c["annotations"]], "KD568", "no box to measure by"),
    ],
    ids="renamed fewer images id text-id image_id nan null-area text-area crowd none crowds".split(),
)
def test_a_truth_that_nothing_can_be_measured_by(
    kdcli: Kdcli, scenes: Path, change: Callable[[dict[str, Any]], object], code: str, said: str
) -> None:
    truth = f"{TRUTH}={changed(scenes / 'test.json', change, 'bad.json')}"
    for command in (["train"], ["validate", "--files"], ["eval", "--weights", weights(kdcli, scenes)]):
        result, out, err = kdcli(*command, STUDENT, *on_scenes(scenes), truth)
        told = out + err
        assert result == 1 and told.count(f"error {code}: ") == 1 and said in told, told
        assert f"error {code}: " in next(line for line in told.splitlines() if line.startswith("argument")), (
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
        assert "category 4 is `Dress` in" in out + err and "`cat` in `other.json`" in out + err
        assert "train.json" in out + err


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


def test_an_unwritable_target_is_told_before_anything_runs(
    kdcli: Kdcli, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["eval", STUDENT, *on_scenes(scenes), "--weights", weights(kdcli, scenes)]
    Path("file").touch()
    monkeypatch.setattr("kdcli.engine.compare.build_data", None)
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

    changes = [*on_scenes(scenes), f"{TESTED}={changed(scenes / 'test.json', lose, 'lost.json')}"]
    code, out, err = kdcli("validate", "--files", STUDENT, *changes)
    assert code == 1 and out.count("KD511") == 2, out + err
    assert "2 images are missing of 3 in" in out and "`no1.png`, `no2.png`" in out
    assert "it is 128x128, and the annotations say 128x129" in out
    skip = "dataset.dataloader.kwargs.on_bad_sample=skip"
    code, out, err = kdcli("validate", "--files", STUDENT, *changes, skip)
    assert code == 0 and out.count("warning KD511") == 2, out + err
