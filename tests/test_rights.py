"""A path without permission is one message about it, wherever a command or a spec may name one; also for root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kdcli.commands import guarded
from kdcli.commands.options import TrainOptions
from kdcli.commands.train import train
from tests.rights import without_rights
from tests.training.conftest import Kdcli, folder, kdcli
from tests.training.runs import SPEC

__all__ = ["folder", "kdcli"]

pytestmark = pytest.mark.slow

INCLUDING = SPEC.replace(
    "teacher0: {mimic_name: [logits], allow_random: true, allow_weak_teacher: true}",
    "teacher0: !include parts/teacher.yaml",
)
LISTED = "dataset.{side}.dataset={{type: cls, kwargs: {{meta_file: data/list.txt, image_reader: {{type: fs_pillow, "
LISTED += "kwargs: {{image_dir: data/images, color_mode: GRAY}}}}, transformer: [{{type: to_tensor}}]}}}}"
FOLDERS = "dataset.{side}.dataset={{type: image_folder, kwargs: {{root: data/images, "
FOLDERS += "transformer: [{{type: to_tensor}}]}}}}"
WEIGHT = "mimic.teacher0.teacher_weight=weights/teacher.pt"
CACHE = "mimic.teacher0.cache={dir: stores/cache}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specs, data, weights and a finished run, all of it readable."""
    root = tmp_path_factory.mktemp("rights")
    before = Path.cwd()
    os.chdir(root)
    try:
        for name in ("weights", "parts", "data/images/cats", "out", "stores"):
            Path(name).mkdir(parents=True)
        Path("small.yaml").write_text(SPEC)
        Path("including.yaml").write_text(INCLUDING)
        Path("parts/teacher.yaml").write_text(
            "{mimic_name: [logits], allow_random: true, allow_weak_teacher: true}"
        )
        Path("weights/teacher.pt").write_bytes(b"")
        Path("data/list.txt").write_text("cats/a.png 0\n")
        Image.new("L", (8, 8)).save("data/images/cats/a.png")
        Path("kd_shut.py").write_text("")
        assert guarded(lambda: train(TrainOptions(spec="small.yaml", report=False))) == 0
    finally:
        os.chdir(before)
    return root


def both(text: str) -> tuple[str, str]:
    return text.format(side="train"), text.format(side="test")


READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "spec": ("small.yaml", ("validate", "small.yaml")),
    "include": ("parts/teacher.yaml", ("validate", "including.yaml")),
    "folder of an include": ("parts", ("validate", "including.yaml")),
    "weights": ("weights/teacher.pt", ("train", "small.yaml", WEIGHT)),
    "folder of weights": ("weights", ("validate", "small.yaml", WEIGHT)),
    "pretrained": ("weights", ("train", "small.yaml", "saver.pretrain_model=weights/teacher.pt")),
    "weights of eval": ("weights/teacher.pt", ("eval", "small.yaml", "--weights", "weights/teacher.pt")),
    "checkpoint": ("runs/small/checkpoints", ("train", "small.yaml", "--resume")),
    "checkpoint by name": ("weights/teacher.pt", ("train", "small.yaml", "--resume", "weights/teacher.pt")),
    "resume_model": (
        "weights",
        ("train", "small.yaml", "--overwrite", "saver.resume_model=weights/teacher.pt"),
    ),
    "image list": ("data/list.txt", ("validate", "small.yaml", *both(LISTED), "--files")),
    "folder of the list": ("data", ("validate", "small.yaml", *both(LISTED), "--files")),
    "image_dir": ("data/images", ("validate", "small.yaml", *both(LISTED), "--files")),
    "folder of an image": ("data/images/cats", ("validate", "small.yaml", *both(LISTED), "--files")),
    "image": ("data/images/cats/a.png", ("validate", "small.yaml", *both(LISTED), "--files")),
    "image folder": ("data/images", ("train", "small.yaml", *both(FOLDERS))),
    "class folder": ("data/images/cats", ("train", "small.yaml", *both(FOLDERS))),
    "plugin": ("kd_shut.py", ("validate", "small.yaml", "net.model.type=kd_shut:Net", "--plugin", "kd_shut")),
    "run of eval": ("runs/small", ("eval", "runs/small")),
    "run of report": ("runs/small", ("report", "runs/small", "--quick")),
    "metrics of report": ("runs/small/metrics.jsonl", ("report", "runs/small", "--quick")),
    "run of compare": ("runs", ("compare", "runs/small")),
    "run of export": ("runs/small/spec.resolved.yaml", ("export", "runs/small")),
    "student": ("runs/small/student_best.safetensors", ("export", "runs/small", "--format", "safetensors")),
}
"""What may not be looked at, and a command that has to."""

WRITTEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "save_dir": ("out", ("train", "small.yaml", "saver.save_dir=out/run")),
    "run folder": ("runs/small", ("train", "small.yaml", "--overwrite")),
    "checkpoints": ("runs/small/checkpoints", ("train", "small.yaml", "--overwrite")),
    "results_dir": (
        "out",
        ("train", "small.yaml", "saver.results_dir=out/results", "saver.save_dir=stores/run"),
    ),
    "cache": ("stores", ("train", "small.yaml", CACHE, "saver.save_dir=out/run")),
    "cache command": ("stores", ("cache", "small.yaml", CACHE, "saver.save_dir=out/run")),
    "export": ("out", ("export", "runs/small", "--format", "safetensors", "-o", "out/student.safetensors")),
    "picture": ("out", ("compare", "runs/small", "--picture", "out/runs.svg")),
    "report": ("runs/small", ("report", "runs/small", "--quick")),
    "sample": ("out", ("init", "digits_kd", "out/samples")),
    "scenes": ("out", ("make-data", "fashion-scenes", "out/scenes")),
}
"""Where nothing may be written, and a command that has to."""


@pytest.fixture
def run(made: Path, kdcli: Kdcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def say(path: str, mode: int, words: tuple[str, ...]) -> str:
        with without_rights(Path(path), mode):
            code, output, errors = kdcli(*words)
        assert code in (1, 2) and "own fault" not in errors and "Traceback" not in errors, output + errors
        return output + errors

    return say


@pytest.mark.parametrize("place", READ)
def test_what_may_not_be_read(place: str, run: Callable[..., str]) -> None:
    path, words = READ[place]
    said = run(path, 0, words)
    assert "ermission" in said, said
    if "=" in words[2:3]:
        assert "argument 1:1:" in said, said


@pytest.mark.parametrize("place", WRITTEN)
def test_what_may_not_be_written(place: str, run: Callable[..., str]) -> None:
    path, words = WRITTEN[place]
    said = run(path, 0o500, words)
    assert "ermission denied" in said or "KD506" in said, said
    if "saver." in words[2]:
        assert "argument 1:1:" in said and "KD740" in said, said
