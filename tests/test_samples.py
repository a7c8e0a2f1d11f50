"""Every sample config is right, and runs."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kdcli.data.detection.fashion_scenes import make_scenes
from kdcli.parallel.distributed import Processes
from kdcli.records import Finished, Step
from kdcli.spec.parse import ParsedSpec, read
from kdcli.training.build import built
from kdcli.training.run import RunOptions
from kdcli.training.train import train
from tests.training.runs import saved_student

FOLDER = Path(__file__).parent.parent / "sample_configs"
SAMPLES = sorted(path.name for path in FOLDER.glob("*.yaml"))
STEPS = 2
NOT_HERE = {"torchvision.CIFAR100": 100, "image_folder": 10}
"""Data that a test has not, and its classes."""


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Idx files like Fashion-MNIST's, with 300 and 40 images."""
    folder = tmp_path_factory.mktemp("idx")
    draw = np.random.default_rng(0)
    for prefix, count in (("train", 300), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 2049, count) + labels.tobytes())
    return folder


@pytest.fixture(scope="module")
def scenes(garments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few scenes of those images."""
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, root=str(garments), num_train=8, num_test=3)
    return folder


def shortened(name: str, garments: Path, scenes: Path, more: Sequence[str] = ()) -> ParsedSpec:
    """The sample with a few steps, small data, and random teachers where their weights are not there."""
    raw = yaml.safe_load((FOLDER / name).read_text())
    changes = [f"saver.save_dir={name}.run", "dataset.batch_sampler.kwargs.batch_size=8"]
    stages = (raw.get("mimic") or {}).get("stages")
    if stages:
        for index in range(len(stages)):
            changes += [f"mimic.stages.{index}.max_iter={STEPS}", f"mimic.stages.{index}.max_epoch=null"]
    else:
        changes.append(f"trainer.max_iter={STEPS}")
    for side in ("train", "test"):
        if raw["dataset"][side]["dataset"]["type"] == "fashion_mnist":
            changes.append(f"dataset.{side}.dataset.kwargs.root={garments}")
        classes = raw.get("x-classes", NOT_HERE.get(raw["dataset"][side]["dataset"]["type"]))
        if classes is not None:
            where = f"dataset.{side}.dataset"
            changes += [
                "dataset.batch_sampler.kwargs.batch_size=2",
                f"{where}.type=fake",
                f"{where}.kwargs.root=null",
            ]
            changes += [f"{where}.kwargs.num_samples=4", f"{where}.kwargs.num_classes={classes}"]
        if raw["dataset"][side]["dataset"]["type"] == "coco" and name.startswith(("scenes_", "own_boxes")):
            where = f"dataset.{side}.dataset.kwargs"
            changes += [
                "dataset.batch_sampler.kwargs.batch_size=4",
                f"{where}.meta_file={scenes}/{side}.json",
                f"{where}.image_reader.kwargs.image_dir={scenes}/{side}",
            ]
            if side == "test":
                changes.append(f"{where}.evaluator.kwargs.gt_file={scenes}/{side}.json")
    start = raw.get("saver", {}).get("pretrain_model")
    if start is not None and not (FOLDER / start).exists():
        changes += ["saver.pretrain_model=null", "saver.weight_order=null"]
    for job, content in _jobs(raw):
        for teacher in [key for key in content if key.startswith("teacher")]:
            weight = content[teacher].get("teacher_weight")
            if weight is not None and not (FOLDER / weight).exists():
                changes += [f"{job}.{teacher}.teacher_weight=null", f"{job}.{teacher}.allow_random=true"]
            changes.append(f"{job}.{teacher}.allow_weak_teacher=true")
    return read(FOLDER / name, [*changes, *more])


def _jobs(
    raw: dict[str, dict[str, dict[str, dict[str, str]]]],
) -> list[tuple[str, dict[str, dict[str, str]]]]:
    mimic = raw.get("mimic") or {}
    if mimic.get("mimic_as_jobs"):
        return [(f"mimic.{name}", job) for name, job in mimic.items() if name.startswith("mimic_job")]
    return [("mimic", mimic)] if mimic else []


def test_there_are_samples() -> None:
    assert {"digits_kd.yaml", "digits_feature.yaml", "digits_two_teachers.yaml", "fashion_kd.yaml"} <= set(
        SAMPLES
    )


SLOW = re.compile(
    r"own_(boxes|photos)|scenes_(base|pkd|defeat|frs|teacher|sample_feature|retina_\w+)|cifar100_\w+|foundation\w*|finetune"
    r"|probe_teacher|up_(single_job|teacher)|unlabelled_images"
)
"""Others show the same kinds of network and data."""
LONG = pytest.mark.long
"""`kdcli distill` trains a detector by this sample in a test of its own."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=LONG if name == "own_boxes.yaml" else pytest.mark.slow)
        if SLOW.match(name)
        else name
        for name in SAMPLES
    ],
)
def test_a_sample_runs(
    name: str, garments: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parsed = shortened(name, garments, scenes)
    with built(parsed, RunOptions(places=parsed.places), Processes(device=torch.device("cpu"))) as run:
        records = list(train(run))
    steps = [record for record in records if isinstance(record, Step)]
    assert len(steps) == STEPS * max(1, len(parsed.spec.mimic.stages if parsed.spec.mimic else ()))
    finished = records[-1]
    assert (
        isinstance(finished, Finished)
        and finished.student_path is not None
        and finished.student_path.exists()
    )


@pytest.mark.slow
def test_a_student_without_labels_is_the_start_of_fine_tuning(
    garments: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """foundation.yaml's student starts finetune.yaml: every tensor but the new head's is the one that was written."""
    monkeypatch.chdir(tmp_path)
    cpu = Processes(device=torch.device("cpu"))
    parsed = shortened("foundation.yaml", garments, scenes)
    with built(parsed, RunOptions(places=parsed.places), cpu) as run:
        finished = list(train(run))[-1]
    assert isinstance(finished, Finished) and finished.student_path is not None
    parsed = shortened("finetune.yaml", garments, scenes, [f"saver.pretrain_model={finished.student_path}"])
    with built(parsed, RunOptions(places=parsed.places), cpu) as run:
        started = run.student.state_dict()
        written = saved_student(finished.student_path, run.student)
        assert {name for name in started if name not in written} == {
            "model.classifier.weight",
            "model.classifier.bias",
        }
        for name, tensor in written.items():
            assert torch.equal(started[name], tensor), name


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_starts_with_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (FOLDER / name).read_text().splitlines()
    comments = [line for line in lines[:8] if line.startswith("#")]
    assert len(comments) >= 2
    assert any(f"kdcli train sample_configs/{name}" in line for line in comments)
