"""Detectors through the commands: made data, trained, distilled, measured, and every mistake said once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kdcli.spec.schema import ModuleSpec
from tests.models.detection.nets import RETINA_MATCHER, improved
from tests.scenes import SAMPLES, changed, on_scenes, random_teacher, write_garments
from tests.training.conftest import Kdcli

STUDENT = str(SAMPLES / "scenes_student.yaml")
TESTED = "dataset.test.dataset.kwargs.meta_file"
TRUTH = "dataset.test.dataset.kwargs.evaluator.kwargs.gt_file"
PKD = str(SAMPLES / "scenes_pkd.yaml")


def test_make_data(kdcli: Kdcli, tmp_path: Path) -> None:
    root = str(write_garments(tmp_path / "idx"))
    few = ("--root", root, "--num-train", "2", "--num-test", "1")
    code, out, _ = kdcli("make-data", "fashion-scenes", "made", *few)
    assert code == 0 and "2 scenes in made/train" in out
    assert sorted(p.name for p in Path("made").iterdir()) == ["test", "test.json", "train", "train.json"]
    before = Path("made/train.json").read_bytes()
    code, _, err = kdcli("make-data", "fashion-scenes", "made", *few)
    assert code == 2 and "made holds scenes already" in err and "--force" in err
    assert kdcli("make-data", "fashion-scenes", "made", *few, "--force")[0] == 0
    assert Path("made/train.json").read_bytes() == before
    code, _, err = kdcli("make-data", "fashion-scenes", "other", "--root", "nowhere")
    assert code == 1 and "KD506" in err and "--root" in err
    Path("file").touch()
    code, _, err = kdcli("make-data", "fashion-scenes", "file/x", *few)
    assert code == 2 and "cannot write into file/x" in err
    assert kdcli("make-data", "nothing", "made")[0] == 2


@pytest.mark.slow
def test_train_then_eval_with_predictions_and_pictures(kdcli: Kdcli, scenes: Path) -> None:
    changes = on_scenes(scenes)
    assert kdcli("train", STUDENT, *changes)[0] == 0
    Path("teacher.safetensors").write_bytes(Path("runs/scenes_student/student.safetensors").read_bytes())
    teacher = [
        "mimic.teacher.teacher_weight=teacher.safetensors",
        "mimic.teacher.allow_weak_teacher=true",
        "mimic.student.mimic_name=[neck.p2_conv]",
        "mimic.teacher.mimic_name=[neck.p2_conv]",
        *(change.replace("net.", "teacher.", 1) for change in changes if change.startswith("net.")),
    ]
    loose = [
        f"{net}.bbox_head_post_process.kwargs.cfg.bbox_predictor.kwargs.bbox_score_thresh=0.0"
        for net in ("net", "teacher")
    ]
    code, out, err = kdcli(
        "eval", PKD, *changes, *teacher, *loose, "--weights", "teacher.safetensors",
        "--save-predictions", "out/found.json", "--show", "pictures", "--format", "json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["primary"] == "AP"
    rows = {row["network"]: row for row in document["networks"]}
    assert set(rows) == {"student", "teacher"}
    for row in rows.values():
        assert {"AP", "AP50", "AP75"} <= set(row["metrics"]) and row["flops"] > 1e6
        assert row["parameters"] > 1000 and row["latency_ms_batch_1"] > 0 and row["file_bytes"] > 1000
    found = json.loads(Path("out/found.json").read_text())
    assert found and set(found[0]) == {"image_id", "category_id", "bbox", "score"}
    assert json.loads(Path("out/found.teacher.json").read_text()) == found  # the same weights
    assert {row["image_id"] for row in found} <= {1, 2, 3}
    pictures = sorted(Path("pictures").glob("*.png"))
    assert [p.name for p in pictures] == ["1.png", "2.png", "3.png"]
    with Image.open(pictures[0]) as sheet:
        assert sheet.width == 3 * 256  # student, teacher, truth, each twice as large


def test_predictions_and_pictures_are_of_detectors(kdcli: Kdcli) -> None:
    code, _, err = kdcli("eval", str(SAMPLES / "digits_kd.yaml"), "--show", "pictures")
    assert code == 2 and "`--show` is for detectors" in err


TAPS = "[neck.p3_conv, neck.p4_conv]"


@pytest.mark.parametrize(
    "method",
    [
        ["mimic.mimic_ins_type=FGD", "mimic.cfgs.loss={type: fgd}"],
        *(
            pytest.param([f"mimic.cfgs.loss={{type: {name}}}"], marks=pytest.mark.slow)
            for name in ("mgd", "pkd", "cwd")
        ),
    ],
    ids=["FGD", "MGD", "PKD", "CWD"],
)
def test_methods_on_the_neck(kdcli: Kdcli, scenes: Path, method: list[str]) -> None:
    taps = [f"mimic.student.mimic_name={TAPS}", f"mimic.teacher.mimic_name={TAPS}", "mimic.adapter=auto"]
    code, _, err = kdcli("train", PKD, *on_scenes(scenes), *random_teacher(), *taps, *method)
    assert code == 0, err
    (step,) = steps()
    assert any(name.startswith("mimic_job0.teacher") and value > 0 for name, value in step.items()), step


def steps() -> list[dict[str, float]]:
    """The losses of every step."""
    lines = Path("runs/scenes_pkd/metrics.jsonl").read_text().splitlines()
    return [row["losses"] for row in map(json.loads, lines) if row["kind"] == "step"]


@pytest.mark.slow
def test_a_retinanet_learns_from_a_faster_rcnn(kdcli: Kdcli, scenes: Path) -> None:
    raw = yaml.safe_load(Path(PKD).read_text())
    raw["net"] = [module for module in raw["net"] if module["name"] in ("backbone", "neck")]
    anchors = {"type": "hand_craft", "kwargs": {"anchor_ratios": [1], "anchor_scales": [4]}}
    nms = {"type": "naive", "nms_iou_thresh": 0.5}
    predictor = {
        "type": "base",
        "kwargs": {
            "pre_nms_score_thresh": 0.05,
            "pre_nms_top_n": 100,
            "post_nms_top_n": 100,
            "roi_min_size": 0,
            "merger": {"type": "retina", "kwargs": {"top_n": 30, "nms": nms}},
        },
    }
    cfg = {
        "cls_loss": {"type": "sigmoid_focal_loss", "kwargs": {"num_classes": 11}},
        "loc_loss": {"type": "l1_loss"},
        "anchor_generator": anchors,
        "roi_supervisor": {
            "type": "retina",
            "kwargs": {"allowed_border": -1, "matcher": RETINA_MATCHER, "sampler": {"type": "keep_all"}},
        },
        "train": {"roi_predictor": predictor},
        "test": {"roi_predictor": predictor},
    }
    head = {"num_classes": 11, "feat_planes": 8, "num_anchors": 1, "num_level": 5, "num_conv": 1}
    raw["net"] += [
        {"name": "roi_head", "prev": "neck", "type": "RetinaSubNet", "kwargs": head},
        {"name": "post_process", "type": "retina_post", "kwargs": {"num_classes": 11, "cfg": cfg}},
    ]
    raw["mimic"]["student"]["mimic_name"] = raw["mimic"]["teacher"]["mimic_name"] = ["neck.p3_conv"]
    raw["mimic"]["adapter"] = "auto"
    Path("scenes_pkd.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    changes = [change for change in on_scenes(scenes) if "net.bbox_head" not in change]
    code, _, err = kdcli("train", "scenes_pkd.yaml", *changes, *random_teacher())
    assert code == 0, err
    (step,) = steps()
    assert step["mimic_job0.teacher.loss"] > 0 and "task.retina_cls_loss" in step, step


def as_blocks(modules: list[ModuleSpec]) -> list[dict[str, Any]]:
    """A net list as a spec has it."""
    return [
        module.model_dump(include={"name", "type", "prev", "kwargs"}, exclude_none=True) for module in modules
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["PKD", "FRS"])
def test_an_improved_retinanet_learns_from_another(kdcli: Kdcli, scenes: Path, method: str) -> None:
    keys = {"runtime", "net", "teacher", "mimic", "dataset", "trainer", "saver"}
    raw = {key: value for key, value in yaml.safe_load(Path(PKD).read_text()).items() if key in keys}
    raw["net"], raw["teacher"] = as_blocks(improved(11, 8, iou=True)), as_blocks(improved(11, 8))
    taps = ["neck.p3_conv.conv", "neck.p4_conv.conv"]
    raw["mimic"]["student"]["mimic_name"] = raw["mimic"]["teacher"]["mimic_name"] = taps
    if method == "FRS":
        raw["mimic"]["mimic_ins_type"] = "FRS"
        raw["mimic"]["cfgs"] = {"neck_loss": {"type": "l2_loss"}, "pred_loss": {"type": "bce_loss"}}
    Path("scenes_pkd.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    changes = [change for change in on_scenes(scenes) if not change.startswith("net.")]
    few = [change for change in random_teacher() if not change.startswith("teacher.")]
    code, out, err = kdcli("validate", "scenes_pkd.yaml", *changes, *few)
    assert code == 0, out + err
    code, _, err = kdcli("train", "scenes_pkd.yaml", *changes, *few, "trainer.max_iter=3")
    assert code == 0, err
    for step in steps():
        task = {name: value for name, value in step.items() if name.startswith("task.retina")}
        assert len(task) == 3 and all(0 <= value < 100 for value in task.values()), step
        assert all(value > 0 for name, value in step.items() if name.startswith("mimic_job0.teacher")), step
    code, out, err = kdcli("eval", "runs/scenes_pkd", "--format", "json")
    assert code == 0 and "AP" in json.loads(out)["networks"][0]["metrics"], err
    code, _, err = kdcli("export", "runs/scenes_pkd", "--format", "torch-export")
    assert code == 0, err


def test_num_classes_against_the_annotations(kdcli: Kdcli, scenes: Path) -> None:
    changes = on_scenes(scenes)
    few = "net.bbox_head.kwargs.num_classes=10"
    code, _, err = kdcli("train", STUDENT, *changes, few)
    assert code == 1 and "KD563" in err and "num_classes: 11" in err
    code, out, err = kdcli("validate", "--files", STUDENT, *changes, few)
    assert code == 1 and "KD563" in out + err
    code, out, err = kdcli("validate", "--files", STUDENT, *changes, "net.bbox_head.kwargs.num_classes=12")
    assert code == 0 and "KD563" in out + err
    code, out, err = kdcli("validate", "--files", STUDENT, *changes)
    assert code == 0 and "KD563" not in out + err


@pytest.mark.slow
def test_a_teacher_with_other_classes_is_told_and_counted(kdcli: Kdcli, scenes: Path) -> None:
    more = "teacher.bbox_head.kwargs.num_classes=13"
    changes = [*on_scenes(scenes), *random_teacher(), more]
    code, out, err = kdcli("validate", "--files", PKD, *changes)
    assert code == 0 and "`bbox_head` of teacher has 13 classes" in out + err
    code, out, err = kdcli("train", PKD, *changes)
    assert code == 0 and "`bbox_head` of teacher has 13 classes" in err, err


@pytest.mark.slow
def test_files_are_looked_up_beside_the_spec(kdcli: Kdcli, scenes: Path) -> None:
    text = Path(STUDENT).read_text().replace("data/fashion-scenes", ".")
    (scenes / "own.yaml").write_text(text)
    changes = [change for change in on_scenes(scenes) if not change.startswith("dataset.t")]
    code, _, err = kdcli("train", str(scenes / "own.yaml"), *changes)
    assert code == 0 and "AP" in err, err


def change_file(scenes: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """The override that reads the training annotations with a change."""
    return f"dataset.train.dataset.kwargs.meta_file={changed(scenes / 'train.json', change, 'bad.json')}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["images"][0].update(file_name="gone.png"), ["KD511", "gone.png"]),
        (lambda c: c["annotations"][0].update(category_id=77), ["KD561", "77"]),
        (
            lambda c: c["annotations"][0].update(image_id=[99]),
            ["KD561", "annotation 1: `image_id` is `[99]`"],
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), ["KD561", "bbox"]),
        (lambda c: c["images"][0].pop("height"), ["KD562", "image 1: `height` is missing"]),
        (lambda c: c.pop("categories"), ["KD560", "categories"]),
        (lambda c: c.update(annotations=[]), ["KD509", "no samples"]),
        (
            lambda c: [row.update(iscrowd=1) for row in c["annotations"]],
            ["KD509", "no samples", "4 images, none with a usable box", "crowds"],
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[10**400, 1, 2, 3]),
            ["KD561", "annotation 1: `bbox` is `[10"],
        ),
    ],
    ids=[
        "missing image",
        "category",
        "image",
        "box",
        "size",
        "categories",
        "no boxes at all",
        "crowds",
        "huge",
    ],
)
def test_bad_annotations_are_one_clear_error(
    kdcli: Kdcli, scenes: Path, change: Callable[[dict[str, Any]], object], said: list[str]
) -> None:
    code, _, err = kdcli("train", STUDENT, *on_scenes(scenes), change_file(scenes, change))
    assert code == 1 and "Traceback" not in err
    assert all(word in err for word in said), err
    assert err.count(": error ") == 1, err


def odd_but_usable(content: dict[str, Any]) -> None:
    """Boxes outside, empty, inverted, crowds, an image without boxes, ids with gaps."""
    first, *others = content["annotations"]
    content["annotations"] = [row for row in others if row["image_id"] != 2]
    boxes = [[500, 500, 9, 9], [4, 4, 0, 9], [40, 40, -8, -8], [-9, -9, 40, 40], [1, 1, 60, 60]]
    for number, (box, crowd) in enumerate(zip(boxes, (0, 0, 0, 0, 1), strict=True)):
        content["annotations"].append({**first, "id": 900 + number, "bbox": box, "iscrowd": crowd})
    ids_with_gaps(content)


def ids_with_gaps(content: dict[str, Any]) -> None:
    """Categories with seven times their ids."""
    for row in [*content["annotations"], *content["categories"]]:
        key = "category_id" if "category_id" in row else "id"
        row[key] = 7 * row[key]


@pytest.mark.slow
def test_odd_annotations_are_handled_and_told(kdcli: Kdcli, scenes: Path) -> None:
    code, _, err = kdcli(
        "train", STUDENT, *on_scenes(scenes), change_file(scenes, odd_but_usable),
        *(f"{key}={changed(scenes / 'test.json', ids_with_gaps, 'odd_test.json')}" for key in (TESTED, TRUTH)),
        "dataset.train.dataset.kwargs.use_ignore=true",
    )  # fmt: skip
    assert code == 0, err
    assert (
        "3 boxes are empty or outside the image (left out), 1 box is partly outside" in err
        and "1 images have no box" in err
    )


def test_a_truth_that_is_not_there_stops_the_run_before_it_starts(kdcli: Kdcli, scenes: Path) -> None:
    where = "dataset.test.dataset.kwargs.evaluator.kwargs.gt_file"
    changes = [*(c for c in on_scenes(scenes) if not c.startswith(where)), f"{where}=gone.json"]
    for command in (["train"], ["validate", "--files"]):
        code, out, err = kdcli(*command, STUDENT, *changes)
        assert code == 1 and "KD560" in out + err and "no file `gone.json`" in out + err
