"""What Ultralytics' `distill_model` gains over its own detector on composed scenes.

    kdcli make-data stamp-scenes SCENES --task detection --size 128 --num-train 1500 --num-test 300
    python -m tests.benchmarks.peers.ultralytics_detect ENVIRONMENT SCENES OUT [--epochs 30] [--seed 1]

ENVIRONMENT: a virtual environment with ultralytics; SCENES: COCO's format; OUT: for what it makes. Prints one line of
JSON. Ultralytics is AGPL-3.0: its command line is a process of its own, no line imports it.

A teacher, a student alone and the same student with the teacher, each from its YAML, without pretrained weights (none
can be fetched). Student alone and distilled have the same epochs and seed; all other settings are the tool's own (its
`auto` optimizer, mosaic, `dis` 6). AP is that of the last epoch on the test scenes, on which nothing is chosen:
the only validation is the one behind the last epoch. Speed and CPU time are of whole commands, that one included. What
lies in OUT by the same command is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.peers.process import run, versions


def yolo_lines(coco: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of each file name the lines of its label file: class from 0 in the order of ids, centre, size, of the image's.

    coco: `bbox` is [x, y, width, height] in pixels. Crowds are left out.
    """
    classes = {one["id"]: number for number, one in enumerate(by_id(coco["categories"]))}
    boxes: dict[int, list[str]] = defaultdict(list)
    images = {one["id"]: one for one in coco["images"]}
    for one in coco["annotations"]:
        if one.get("iscrowd"):
            continue
        x, y, width, height = one["bbox"]
        image = images[one["image_id"]]
        across, down = image["width"], image["height"]
        shares = ((x + width / 2) / across, (y + height / 2) / down, width / across, height / down)
        line = " ".join([str(classes[one["category_id"]]), *(f"{share:.6f}" for share in shares)])
        boxes[one["image_id"]].append(line)
    return {image["file_name"]: boxes[number] for number, image in images.items()}


def by_id(categories: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """COCO's classes in the order of their ids."""
    return sorted(categories, key=lambda one: one["id"])


def write_data(scenes: Path, folder: Path) -> tuple[Path, int]:
    """The scenes as the tool reads them: its data file, and how many images there are to train on."""
    shutil.rmtree(folder, ignore_errors=True)
    for side in ("train", "test"):
        coco = json.loads((scenes / f"{side}.json").read_text())
        images, labels = folder / "images" / side, folder / "labels" / side
        for one in (images, labels):
            one.mkdir(parents=True)
        for name, lines in yolo_lines(coco).items():
            # Each file, not the folder: the tool looks for labels beside the folder that a link leads to.
            (images / name).symlink_to((scenes / side / name).absolute())
            (labels / name).with_suffix(".txt").write_text("".join(f"{line}\n" for line in lines))
    names = {number: one["name"] for number, one in enumerate(by_id(coco["categories"]))}
    file = folder / "scenes.yaml"
    sides = {"path": str(folder.absolute()), "train": "images/train", "val": "images/test"}
    file.write_text(yaml.safe_dump({**sides, "names": names}))
    return file, len(list((folder / "labels" / "train").iterdir()))


def last_ap(table: str) -> dict[str, float]:
    """AP and AP50 in percent, of the last row of the tool's results.csv that has them."""
    rows = [
        {name.strip(): value for name, value in row.items()} for row in csv.DictReader(table.splitlines())
    ]
    return {
        ours: 100.0 * float(rows[-1][f"metrics/{theirs}(B)"])
        for ours, theirs in (("ap", "mAP50-95"), ("ap50", "mAP50"))
    }


def trained(name: str, words: Sequence[str], out: Path, yolo: Path) -> dict[str, float]:
    """Train, unless it lies there by the same words: AP, seconds, CPU seconds, peak memory."""
    record = out / f"{name}.json"
    command = [str(yolo), "detect", "train", *words, f"project={out}", f"name={name}", "exist_ok=True"]
    if record.exists():
        known: dict[str, Any] = json.loads(record.read_text())
        if known["command"] == command:
            found: dict[str, float] = known["found"]
            return found
    shutil.rmtree(out / name, ignore_errors=True)
    environment = {"YOLO_CONFIG_DIR": str(out / "settings"), "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0"}
    used = run(command, out / f"{name}.log", environment)
    found = {**last_ap((out / name / "results.csv").read_text()), **asdict(used)}
    record.write_text(json.dumps({"command": command, "found": found}))
    return found


def main() -> None:
    """Train all three, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("environment", type=Path)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--teacher-epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--student", default="yolo26n.yaml")
    parser.add_argument("--teacher", default="yolo26s.yaml")
    parser.add_argument("--dis", type=float, help="weight of the distillation; else the tool's own")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    data, images = write_data(given.scenes, out / "data")
    yolo = given.environment / "bin" / "yolo"
    words = [f"data={data}", f"imgsz={given.size}", f"batch={given.batch}", "device=cpu", "workers=0"]
    words += ["pretrained=False", "amp=False", "plots=False", "val=False", "patience=0"]
    student = [*words, f"model={given.student}", f"epochs={given.epochs}", f"seed={given.seed}"]
    teacher = out / "teacher" / "weights" / "last.pt"
    dis = [] if given.dis is None else [f"dis={given.dis}"]
    runs = {
        "teacher": [*words, f"model={given.teacher}", f"epochs={given.teacher_epochs}", "seed=1"],
        f"alone_{given.seed}": student,
        f"distilled_{given.seed}": [*student, f"distill_model={teacher}", *dis],
    }
    line: dict[str, Any] = {"versions": versions(given.environment, "ultralytics", "torch")}
    for name, what in runs.items():
        found = trained(name, what, out, yolo)
        seen = images * (given.teacher_epochs if name == "teacher" else given.epochs)
        line[name.partition("_")[0]] = {
            "ap": found["ap"],
            "ap50": found["ap50"],
            "images_per_second": seen / found["seconds"],
            "images_per_cpu_second": seen / found["cpu_seconds"],
            "peak_mb": found["peak_mb"],
        }
    line["gain"] = line["distilled"]["ap"] - line["alone"]["ap"]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
