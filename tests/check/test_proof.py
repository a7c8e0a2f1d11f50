"""What `validate --files` proves, `train` proves before it starts: by the same function, once, on data opened once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdcli.api.validate import examined
from kdcli.check import check, proof
from kdcli.check.proof import proved
from kdcli.data.classification import image_folder
from kdcli.errors import SpecError
from kdcli.parallel.distributed import Processes
from kdcli.report.quantities import flops
from kdcli.spec.parse import read
from kdcli.training.run import RunOptions
from kdcli.training.sides import Sides
from tests.training.conftest import Kdcli
from tests.training.runs import SPEC, spec_of
from tests.training.test_classes import GREY, lay
from tests.training.test_classes import SPEC as FOLDERS

CHANNELS = ["net.model.kwargs.in_channels=3", "teacher0.model.kwargs.in_channels=1"]
QUICK = ["--no-report", "trainer.max_epoch=1"]


def write(text: str = SPEC) -> str:
    Path("cfg.yaml").write_text(text)
    return "cfg.yaml"


def test_a_network_that_cannot_run_is_one_message_in_train_too(kdcli: Kdcli) -> None:
    """It was a traceback out of conv2d."""
    code, out, err = kdcli("train", write(), *CHANNELS)
    assert code == 1 and "KD418" in err and "Traceback" not in err
    assert "net.model.kwargs.in_channels=3" not in out and not Path("runs").exists()


WRONG: list[tuple[str, str, list[str]]] = [
    ("check_losses", "KD438", ["net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}},"
                               " {type: self, kwargs: {freeze_patterns: [model]}}]"]),
    ("check_stages", "KD440", ["trainer.optimizer.kwargs={lr: 0.1, nesterov: true}"]),
    ("check_weight_files", "KD532", ["mimic.teacher0={mimic_name: [logits], teacher_weight: text.pth}"]),
]  # fmt: skip


@pytest.mark.parametrize(("piece", "code", "changes"), WRONG)
def test_both_commands_lack_what_is_taken_out_of_the_check(
    kdcli: Kdcli, piece: str, code: str, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lines.txt").write_text("a.png\n")
    Path("text.pth").write_text("no weights")

    def told(*command: str) -> bool:
        exit_code, out, err = kdcli(*command, write(), *changes)
        return exit_code == 1 and code in out + err and "Traceback" not in out + err

    # Wherever else a run would come upon it, it is not built here.
    monkeypatch.setattr("kdcli.training.build.built", None)
    assert told("validate", "--files") and told("train")
    nothing: dict[str, Any] = {"check_stages": ((), float("nan")), "check_weight_files": None}
    monkeypatch.setattr(check, piece, lambda *_, **__: nothing.get(piece, []))
    assert not told("validate", "--files")
    with pytest.raises(AssertionError):  # past the check: a built run is wanted, which is an own fault here
        assert told("train")


def test_the_proof_can_be_left_out(kdcli: Kdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "check", None)
    code, _, err = kdcli("train", write(), "--no-check", *QUICK)
    assert code == 0, err
    assert not Path("runs/cfg/proved.json").exists()
    assert kdcli("train", write(), "--overwrite", *QUICK)[0] == 3, "without it the check is called"


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return check.check(*args, **kwargs)

    monkeypatch.setattr(proof, "check", counted)
    return calls


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_proved_again(kdcli: Kdcli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(monkeypatch)
    spec = write()
    assert kdcli("train", spec, *QUICK)[0] == 0 and calls == [1]
    longer = ["--no-report", "trainer.max_epoch=1", "--resume"]
    assert kdcli("train", spec, *longer)[0] == 0 and calls == [1]
    changed = ["--no-report", "trainer.max_epoch=2", "--resume", "--allow-changed", "trainer.max_epoch"]
    code, _, err = kdcli("train", spec, *changed)
    assert code == 0 and calls == [2], err
    monkeypatch.setattr(proof, "__version__", "9.9")
    assert kdcli("train", spec, "--no-report", "trainer.max_epoch=2", "--resume")[0] == 0 and calls == [3]


def test_the_others_are_told_what_rank_0_finds() -> None:
    parsed = spec_of(SPEC, *CHANNELS)

    class Two(Processes):
        def broadcast(self, value: Any) -> Any:
            if self.rank == 0:
                box.append(value)
                return value
            return box.pop()

    box: list[Any] = []
    cpu = torch.device("cpu")
    for rank in (0, 1):
        with pytest.raises(SpecError, match="KD418"):
            here = Two(device=cpu, rank=rank, world_size=2)
            sides = Sides(parsed.spec, parsed.places)
            proved(parsed, RunOptions(prove=True), sides, here)
    assert box == []


def test_what_validate_counts_a_training_shows(kdcli: Kdcli, folder: Path) -> None:
    spec = write()
    plan = examined(lambda: read(Path(spec)))[1]
    assert plan is not None and plan.flops_size == (8, 8)
    counted = {one.name: one.flops for one in plan.networks}
    code, _, shown = kdcli("train", spec, "--no-report", "trainer.max_epoch=1")
    assert code == 0 and "FLOPs at 8x8" in shown, shown
    lines = [line.split() for line in shown.splitlines()]
    for name, number in counted.items():
        assert flops(number) in next(" ".join(line) for line in lines if line[:1] == [name])


COUNTED = """
from pathlib import Path

from torch import nn


class Counted(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4))
        with open("built.txt", "a") as file:
            file.write("x")

    def forward(self, image):
        return super().forward(image)
"""


@pytest.mark.slow
def test_a_launcher_proves_once_for_all_that_it_starts(folder: Path) -> None:
    (folder / "counted.py").write_text(COUNTED)
    spec = write(SPEC.replace("type: cifar_resnet8\n  kwargs: {num_classes: 4, in_channels: 1, widths: [2, 2, 4, 4]}",
                              "type: 'counted:Counted'"))  # fmt: skip
    command = [sys.executable, "-m", "kdcli.cli", "train", spec, "--device", "cpu", "--nproc", "2", "--plugin",
               "counted", "trainer.max_epoch=1", "--no-report"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "built.txt").read_text() == "xxx", (
        "by the launcher's check, and by each of its two processes"
    )
    assert (folder / "runs/cfg/proved.json").exists()


def opened_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    listed: list[str] = []
    beside = image_folder.beside_classes

    def listing(folder: Path) -> Any:
        listed.append(os.path.relpath(folder))
        return beside(folder)

    monkeypatch.setattr(image_folder, "beside_classes", listing)
    return listed


@pytest.mark.parametrize("command", [["validate", "--files"], ["train", *QUICK]])
def test_a_folder_of_images_is_listed_once_a_command(
    kdcli: Kdcli, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened five times."""
    for side in ("train", "test"):
        lay(Path(side), GREY, 2)
    listed = opened_folders(monkeypatch)
    code, out, err = kdcli(command[0], write(FOLDERS), *command[1:])
    assert code == 0, out + err
    assert listed == ["train", "test"]


def test_validate_knows_the_size_of_the_images_by_looking(kdcli: Kdcli) -> None:
    """8x8 images were checked, and their cost told, at 224x224."""
    for side in ("train", "test"):
        lay(Path(side), GREY, 2)
    spec = write(FOLDERS)
    assert "KD620" in kdcli("validate", spec)[1]
    code, out, _ = kdcli("validate", "--files", spec)
    assert code == 0 and "KD620" not in out and "kFLOPs" in out


Break = Callable[[Path], object]


def shifted(root: Path) -> None:
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(
        "".join(f"{n} {int(k) + 1}\n" for n, k in map(str.split, text.splitlines()))
    )


def into(name: str, change: Callable[[bytes], bytes]) -> Break:
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


def renamed(old: str, new: str) -> Break:
    return lambda root: (root / old).rename(root / new)


def emptied(folder: str) -> Break:
    return lambda root: [file.unlink() for file in (root / folder).iterdir()]


def dropped(folder: str) -> Break:
    return lambda root: shutil.rmtree(root / folder)


def added(folder: str) -> Break:
    return lambda root: lay((root / folder).parent, {(root / folder).name: 99}, 2)


def saved(name: str, mode: str, size: tuple[int, int] = (8, 8)) -> Break:
    return lambda root: Image.new(mode, size).save(root / name)


def doubled(root: Path) -> None:
    for file in list((root / "train/a").iterdir()):
        (root / "train/b" / f"again_{file.name}").write_bytes(file.read_bytes())


BREAKS: dict[str, Break] = {
    "nothing": lambda root: None,
    "class dropped from train": dropped("train/b"),
    "class dropped from test": dropped("test/b"),
    "class renamed in train": renamed("train/b", "train/bb"),
    "class renamed in test": renamed("test/b", "test/bb"),
    "class added to train": added("train/d"),
    "class added to test": added("test/d"),
    "class emptied in train": emptied("train/b"),
    "class emptied in test": emptied("test/b"),
    "class doubled": doubled,
    "first image half": into("train/a/0.png", lambda data: data[: len(data) // 2]),
    "last image half": into("train/c/5.png", lambda data: data[: len(data) // 2]),
    "test image empty": into("test/a/0.png", lambda data: b""),
    "image of floats": saved("train/b/0.tiff", "F"),
    "image with alpha": saved("train/b/1.png", "RGBA"),
    "image of another size": saved("train/b/2.png", "L", (9, 9)),
    "test image of another size": saved("test/b/1.png", "L", (16, 16)),
    "labels shifted": shifted,
    "list with a BOM": into("train.txt", lambda data: b"\xef\xbb\xbf" + data),
    "list with CRLF": into("train.txt", lambda data: data.replace(b"\n", b"\r\n")),
    "list with commas": into("train.txt", lambda data: data.replace(b" ", b",")),
    "list of a missing image": into("train.txt", lambda data: data.replace(b"b/1.png", b"b/none.png")),
}
LISTED = """{type: cls, kwargs: {meta_file: %s.txt, transformer: [{type: to_tensor}],
  image_reader: {type: fs_pillow, kwargs: {image_dir: ., color_mode: GRAY}}}}"""


def data(root: Path) -> None:
    for side, count in (("train", 6), ("test", 2)):
        lay(root / side, GREY, count)
        lines = [f"{side}/{name}/{n}.png {k}\n" for k, name in enumerate("abc") for n in range(count)]
        (root / f"{side}.txt").write_text("".join(lines))


QUICK_CASES = {("folders", "image of another size"), ("folders", "class renamed in test"), ("lists", "labels shifted"),
               ("lists", "list with a BOM"), ("folders", "last image half")}  # fmt: skip
CASES = [
    pytest.param(kind, broken, marks=() if (kind, broken) in QUICK_CASES else pytest.mark.slow)
    for kind in ("folders", "lists")
    for broken in BREAKS
]


@pytest.mark.parametrize(("kind", "broken"), CASES)
def test_what_validate_calls_right_train_does_not_refuse(
    kdcli: Kdcli, folder: Path, kind: str, broken: str
) -> None:
    """And what it calls wrong, train refuses before its first step, with the same code."""
    data(folder)
    BREAKS[broken](folder)
    spec = write(FOLDERS)
    sides = (
        [f"dataset.{side}.dataset={LISTED % side}" for side in ("train", "test")] if kind == "lists" else []
    )
    code, out, _ = kdcli("validate", "--files", spec, *sides)
    trained, said, log = kdcli("train", spec, *sides, *QUICK)
    assert "Traceback" not in said + log and trained in (0, 1), said + log
    if code == 0:
        assert trained == 0, said + log
    elif trained == 1:
        assert not Path("runs/cfg/metrics.jsonl").exists() or "KD" in log
    else:
        # Only what decoding one of the first images, or a listing, can't show may pass here.
        assert broken == "last image half", out


def test_without_the_proof_a_network_that_cannot_run_is_no_fault_of_kdcli(kdcli: Kdcli) -> None:
    code, _, err = kdcli("train", write(), "--no-check", *CHANNELS)
    assert code == 1 and "KD418" in err and "Traceback" not in err
